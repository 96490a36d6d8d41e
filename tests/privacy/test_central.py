import numpy as np
import pytest
from scipy.stats import beta

from umbel import Chain, ConfigError
from umbel.core.errors import ClientError
from umbel.core.random import derive
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import ClientUpdate, Total, Weighted
from umbel.privacy import accounting
from umbel.privacy.adaptive import AdaptiveClip
from umbel.privacy.central import CentralGaussian

CLIP, NOISE, COHORT = 0.5, 2.0, 40.0
CENTRAL = CentralGaussian(CLIP, NOISE, COHORT)


def spec(size):
    return ModelSpec((VariableSpec("dense/kernel", (size,), "float32", True, 0),))


def update(delta=(3.0, 4.0), extra=(), weight=1.0):
    return ClientUpdate(np.array(delta, np.float32), np.array(extra, np.float32), weight, {"loss": Weighted(7.0, 10.0)})


def total(size=50_000, extra=0, clients=40, value=0.0):
    return Total(np.full(size, value, np.float32), np.full(extra, value, np.float32), 13.0, clients, {"loss": 1})


def released(transform, **changes):
    return transform.decode(transform.init(spec(50_000)), total(**changes), derive(0, "decode"))[1]


def is_scale(values, scale):
    """Return whether the mean square lies within 5 of its own deviations of scale²."""
    ratio = np.mean(np.square(values, dtype=np.float64)) / scale**2
    return abs(ratio - 1) < 5 * np.sqrt(2 / values.size)


def test_a_chain_of_nothing_changes_nothing():
    sent, key = update(extra=(1.0,)), derive(0)
    assert Chain().encode((), sent, key) == sent
    summed = total()
    assert Chain().decode((), summed, key) == ((), summed)


def test_delta_and_extra_are_clipped_together_and_metrics_stay():
    sent = CENTRAL.encode((), update((3.0,), (4.0,)), derive(0))
    np.testing.assert_allclose([*sent.delta, *sent.extra], [0.3, 0.4], rtol=2e-5)
    assert (sent.weight, sent.metrics) == (1.0, {})
    small = update((0.1,), (0.1,))
    assert CENTRAL.encode((), small, derive(0)).delta is small.delta


@pytest.mark.parametrize("weight", [0.0, 2.0, 1.5])
def test_a_client_that_weighs_more_is_refused(weight):
    with pytest.raises(ConfigError, match='weighting="uniform"'):
        CENTRAL.encode((), update(weight=weight), derive(0))


@pytest.mark.parametrize("clip_norm", [CLIP, AdaptiveClip()])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_sent_by_nobody(clip_norm, bad):
    transform = CentralGaussian(clip_norm, NOISE, COHORT)
    for sent in (update((1.0, bad)), update((1.0,), (bad,))):
        with pytest.raises(ClientError, match="not finite"):
            transform.encode(transform.init(spec(2)), sent, derive(0))


def test_noise_has_the_scale_it_claims():
    noisy = released(CENTRAL, extra=50_000, value=0.125)
    for part in (noisy.delta, noisy.extra):
        assert is_scale(part - np.float32(0.125), NOISE * CLIP)
        for wrong in (2 / 3, 3 / 2):
            assert not is_scale(part - np.float32(0.125), wrong * NOISE * CLIP)
    assert abs(np.corrcoef(noisy.delta, noisy.extra)[0, 1]) < 0.03


def test_replies_change_neither_noise_nor_divisor():
    full, fewer, nobody = (released(CENTRAL, clients=clients) for clients in (40, 7, 0))
    for one in (fewer, nobody):
        np.testing.assert_array_equal(one.delta, full.delta)
        assert one.weight == full.weight == COHORT
    assert is_scale(nobody.delta, NOISE * CLIP)
    assert (full.metrics, full.clients) == ({}, 40)


def test_every_round_has_noise_of_its_own():
    noisy = [CENTRAL.decode((), total(), derive(0, "round", number))[1].delta for number in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert abs(np.corrcoef(noisy[0], noisy[2])[0, 1]) < 0.03


def test_what_rounding_adds_is_taken_off_before():
    size, step = 10_000, 1e-4
    transform = CentralGaussian(CLIP, NOISE, COHORT, rounding=step)
    sent = transform.encode((), update(np.ones(size)), derive(0)).delta
    worst = sent + np.sign(sent) * np.float32(step)
    assert np.linalg.norm(worst.astype(np.float64)) <= CLIP
    with pytest.raises(ConfigError, match=r"beyond clip_norm=0\.5"):
        CentralGaussian(CLIP, NOISE, COHORT, rounding=0.01).init(spec(size))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"clip_norm": 0}, "clip_norm"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": None}, "noise_multiplier"),
        ({"noise_multiplier": "1"}, "noise_multiplier"),
        ({"expected_cohort": 0}, "expected_cohort"),
        ({"rounding": -1.0}, "rounding"),
    ],
)
def test_bad_numbers(change, name):
    with pytest.raises(ConfigError, match=name):
        CentralGaussian(**{"clip_norm": CLIP, "noise_multiplier": NOISE, "expected_cohort": COHORT} | change)


RELEASES = 20_000


def lower_bound_on_epsilon(scale_of_noise, delta):
    """The ε that an attacker's best threshold proves with 99 % confidence, from rounds with and without one client.

    The query is one-dimensional, and the client moves it by its whole clip norm; each coordinate is another release.
    """
    transform = CentralGaussian(1.0, NOISE, COHORT)
    outputs = []
    for client in (0.0, 1.0):
        summed = total(RELEASES, value=3.0 + client)
        noisy = transform.decode((), summed, derive(5, int(client)))[1].delta
        outputs.append(summed.delta + scale_of_noise * (noisy - summed.delta))
    best = 0.0
    for threshold in np.linspace(0.0, 7.0, 29):
        hits, false_alarms = (int((one > threshold).sum()) for one in outputs[::-1])
        least = beta.ppf(0.005, hits, RELEASES - hits + 1) if hits else 0.0
        most = beta.ppf(0.995, false_alarms + 1, RELEASES - false_alarms)
        if least > delta:
            best = max(best, np.log((least - delta) / most))
    return best


def test_neighbours_cannot_be_told_apart_better_than_claimed():
    delta = 0.01
    claimed = accounting.epsilon({str(accounting.Gaussian(NOISE, 1.0)): 1}, delta).pld
    found = lower_bound_on_epsilon(1.0, delta)
    assert 0.3 * claimed < found <= claimed
    assert lower_bound_on_epsilon(1 / 3, delta) > claimed


def test_the_decode_of_a_chain_reaches_the_sum_before_other_transforms():
    state, decoded = Chain(CENTRAL).decode(((),), total(), derive(0))
    assert (state, decoded.weight) == (((),), COHORT)
