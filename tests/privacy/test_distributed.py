import math

import numpy as np
import pytest
from scipy.special import ive
from scipy.stats import kstest
from scipy.stats import skellam as reference

from umbel import ConfigError
from umbel.core.errors import ClientError, RunStopped
from umbel.core.random import derive
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import NOTHING, ClientUpdate, Total, Weighted
from umbel.privacy import accounting, skellam
from umbel.privacy.accounting import LocalRelease, SkellamSum
from umbel.privacy.distributed import LEVELS, DistributedSkellam, grid_limit
from umbel.privacy.secagg import FixedPoint

LIMIT, FLOOR, SIZE = grid_limit(20.0), 8, 20_000
DISTRIBUTED = DistributedSkellam(1.0, 4.0, FLOOR, LIMIT)


def spec(size=SIZE):
    return ModelSpec((VariableSpec("dense/kernel", (size,), "float32", True, 0),))


def update(value=0.0, size=SIZE, weight=1.0):
    return ClientUpdate(np.full(size, value, np.float32), np.zeros(3, np.float32), weight, {"loss": Weighted(1.0, 2.0)})


@pytest.mark.parametrize("variance", [0.01, 0.7, 30.0, 1e4])
def test_draws_follow_the_distribution(variance):
    size = 100_000
    drawn = skellam.draw(size, variance, derive(0, str(variance)))
    values = np.arange(-4, 5) if variance < 100 else np.arange(-400, 401, 25)
    for value in values:
        expected = reference.cdf(value, variance / 2, variance / 2)
        deviation = math.sqrt(max(expected * (1 - expected), 1e-9) / size)
        assert abs((drawn <= value).mean() - expected) < 5 * deviation + 1e-5
    if variance >= 1:
        assert drawn.var() == pytest.approx(variance, rel=0.03)
        assert drawn.var() != pytest.approx(2 / 3 * variance, rel=0.03)


@pytest.mark.parametrize("variance", [0.01, 3.0, 1e4, 1e6])
def test_the_table_is_the_distribution_function(variance):
    high, low = skellam.table(variance)
    found = (high.astype(float) + low.astype(float) * 2.0**-64) * 2.0**-64
    reach = len(high) // 2
    places = np.arange(-reach, reach)
    exact = np.cumsum(ive(np.abs(places), variance))
    np.testing.assert_allclose(found, exact, atol=1e-12)
    # Its ends are beyond what 128 bits can tell.
    assert high[0] == 0
    assert high[-1] == 2**64 - 1


def test_sums_of_shares_are_shares_of_the_sum():
    shares = sum(skellam.draw(5_000, 2e4 / 5, derive(1, client)) for client in range(5))
    assert kstest(shares, reference(1e4, 1e4).cdf).pvalue > 1e-2
    assert kstest(shares, reference(2 / 3 * 1e4, 2 / 3 * 1e4).cdf).pvalue < 1e-6


def rdp_of_shift(order, moved, variance):
    """The Rényi divergence of Skellam noise moved by a whole number, by summing its definition."""
    reach = int(40 * math.sqrt(variance)) + 60
    places = np.arange(-reach, reach + 1)
    here, there = (ive(np.abs(places - shift), variance) for shift in (moved, 0))
    kept = (here > 0) & (there > 0)
    terms = order * np.log(here[kept]) + (1 - order) * np.log(there[kept])
    return (terms.max() + math.log(np.exp(terms - terms.max()).sum())) / (order - 1)


@pytest.mark.parametrize("order", [2, 3, 8, 20])
@pytest.mark.parametrize(("moved", "variance"), [(2, 1.0), (2, 4.0), (4, 4.0), (2, 60.0), (10, 500.0), (40, 2000.0)])
def test_the_divergence_is_bounded_and_not_by_much(order, moved, variance):
    exact = rdp_of_shift(order, moved, variance)
    # Two vectors of this norm lie as far apart as the noise was moved.
    event = SkellamSum(2 * math.sqrt(variance) / moved, moved / 2)
    bound = accounting.skellam_divergence(event, np.array([float(order)]))[0]
    assert exact <= bound
    if variance >= 500:
        assert bound < 1.05 * exact


def test_fine_grids_cost_what_gaussian_noise_does():
    fine, coarse = (accounting.epsilon({str(SkellamSum(20.0, norm)): 10}, 1e-5) for norm in (1e5, 1.0))
    gaussian = accounting.epsilon({str(LocalRelease(20.0)): 10}, 1e-5)
    assert fine.pld == fine.rdp == pytest.approx(gaussian.rdp, rel=0.02)
    assert coarse.rdp > fine.rdp >= gaussian.pld
    assert accounting.epsilon({str(SkellamSum(20.0, 1e5)): 11}, 1e-5).pld > fine.pld


def test_what_is_sent_lies_on_the_grid_and_is_aggregated_as_it_is():
    sent = DISTRIBUTED.encode((), update(0.003), derive(0)).delta
    encoding = FixedPoint(LIMIT, clients=100)
    assert encoding.step == DISTRIBUTED.step
    for seed in range(5):
        ring = encoding.encode(sent, 1, bytes([seed]) * 32)
        assert ring.saturated == 0
        np.testing.assert_array_equal(encoding.decode(ring.values, 1).vector, sent.astype(np.float64))
    edges = np.array([LEVELS, -LEVELS, LEVELS - 1, 1, 0], np.float64) * DISTRIBUTED.step
    ring = encoding.encode(edges.astype(np.float32), 1, bytes(32))
    np.testing.assert_array_equal(encoding.decode(ring.values, 1).vector, edges)


def test_a_limit_whose_steps_float32_cannot_hold_is_refused():
    assert grid_limit(LIMIT) == LIMIT >= 20.0 > LIMIT / 2
    with pytest.raises(ConfigError, match="power of two; use"):
        DistributedSkellam(1.0, 4.0, FLOOR, 20.0)


def test_the_floor_of_survivors_adds_the_noise_claimed():
    clients = [DISTRIBUTED.encode((), update(), derive(0, client)).delta for client in range(FLOOR)]
    noise = np.sum(clients, axis=0, dtype=np.float64)
    # Rounding nothing adds nothing: what is left is noise.
    assert noise.var() == pytest.approx(16.0, rel=5 * math.sqrt(2 / SIZE))
    for wrong in (2 / 3, 3 / 2):
        assert noise.var() != pytest.approx(16.0 * wrong, rel=5 * math.sqrt(2 / SIZE))
    total = Total(noise.astype(np.float32), NOTHING, float(FLOOR), FLOOR, {"loss": Weighted(1.0, 1.0)})
    assert DISTRIBUTED.decode((), total, derive(0))[1] == total._replace(metrics={})
    with pytest.raises(RunStopped, match="survivors_floor=8"):
        DISTRIBUTED.decode((), total._replace(clients=FLOOR - 1), derive(0))


def test_rounded_updates_keep_to_the_norm_that_is_priced(monkeypatch):
    monkeypatch.setattr(skellam, "draw", lambda size, variance, key: np.zeros(size, np.int64))
    for seed in range(5):
        generator = np.random.default_rng(seed)
        sent = ClientUpdate(generator.normal(size=SIZE).astype(np.float32), NOTHING, 1.0, {})
        rounded = DISTRIBUTED.encode((), sent, derive(seed)).delta / DISTRIBUTED.step
        np.testing.assert_array_equal(rounded, np.rint(rounded))
        assert np.linalg.norm(rounded.astype(np.float64)) <= DISTRIBUTED.event.norm
    # Rounding is right on average: of a number that lies 3 tenths of a step above a point, it adds 3 tenths.
    part = ClientUpdate(np.full(SIZE, 40.3 * DISTRIBUTED.step, np.float32), NOTHING, 1.0, {})
    mean = DISTRIBUTED.encode((), part, derive(0)).delta.mean(dtype=np.float64) / DISTRIBUTED.step
    assert mean == pytest.approx(40.3, abs=5 * math.sqrt(0.21 / SIZE))


def test_what_cannot_hold_the_noise_is_refused_with_what_can():
    small = DistributedSkellam(1.0, 4.0, FLOOR, grid_limit(1.5))
    with pytest.raises(ConfigError, match=r"cannot hold an update of norm 1 .* use limit=") as refused:
        small.init(spec())
    enough = float(str(refused.value).rpartition("=")[2])
    assert DistributedSkellam(1.0, 4.0, FLOOR, enough).init(spec()) == ()
    with pytest.raises(ConfigError, match="beyond clip_norm"):
        DISTRIBUTED.init(spec(10**12))


def test_bad_updates_and_numbers():
    with pytest.raises(ClientError, match="not finite"):
        DISTRIBUTED.encode((), update(np.inf), derive(0))
    with pytest.raises(ConfigError, match="weight=2"):
        DISTRIBUTED.encode((), update(weight=2.0), derive(0))
    for change in ({"clip_norm": 0}, {"noise_multiplier": 0.0}, {"survivors_floor": 0}, {"limit": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            DistributedSkellam(
                **{"clip_norm": 1.0, "noise_multiplier": 4.0, "survivors_floor": 8, "limit": LIMIT} | change
            )
