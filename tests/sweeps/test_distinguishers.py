"""Each mechanism against the best test of one number between two neighbours: no more than its event's ε is found."""

import numpy as np
import pytest
from scipy.stats import beta

from umbel.core.random import Key
from umbel.core.types import NOTHING, ClientUpdate, Total
from umbel.privacy import accounting, grid_limit
from umbel.privacy.adaptive import AdaptiveClip, ClipState
from umbel.privacy.central import CentralGaussian
from umbel.privacy.distributed import DistributedSkellam
from umbel.privacy.local import LocalGaussian

DELTA, CONFIDENCE = 1e-5, 0.999  # Clopper and Pearson's, of both rates together
HUGE = 1e6


def shown(one, other):
    """ε is at least this, with CONFIDENCE, from numbers of two worlds; the threshold is chosen on their first half."""
    best, tail = 0.0, (1 - CONFIDENCE) / 2
    for present, absent in ((one, other), (other, one), (-one, -other), (-other, -one)):
        half = len(present) // 2
        thresholds = np.quantile(np.concatenate([present[:half], absent[:half]]), np.linspace(0.01, 0.999, 200))

        def score(threshold, present=present, absent=absent, half=half):
            hits = max((present[:half] > threshold).mean() - DELTA, 1e-12)
            return hits / max((absent[:half] > threshold).mean(), 5 / half)

        threshold, trials = max(thresholds, key=score), len(present) - half
        hits, alarms = (present[half:] > threshold).sum(), (absent[half:] > threshold).sum()
        low = beta.ppf(tail, hits, trials - hits + 1) if hits else 0.0
        high = beta.ppf(1 - tail, alarms + 1, trials - alarms)
        if low > DELTA:
            best = max(best, float(np.log((low - DELTA) / high)))
    return best


def update(number):
    return ClientUpdate(np.array([number], np.float32), NOTHING, 1.0, {})


def central(noise, rate=1.0):
    """A sum of one client, present at that rate or not there, and nobody else."""
    transform, random = CentralGaussian(2.0, noise, 10.0), np.random.default_rng(1)

    def draw(number):
        encoded = transform.encode((), update(number), Key.fresh())
        delta = encoded.delta if random.random() < rate else np.zeros(1, np.float32)
        return transform.decode((), Total(delta, NOTHING, 1.0, 1, {}), Key.fresh())[1].delta[0]

    return draw, (HUGE, 0.0), accounting.Gaussian(noise, rate)


def adaptive(noise):
    """Clip norm and model together: about their log-likelihood ratio."""
    start = 1.0
    transform = CentralGaussian(AdaptiveClip(initial=start, count_noise=0.6, learning_rate=1.0), noise, 2.0)
    scale, state = transform.scale_of_updates(start), ClipState(start)

    def draw(is_there):
        encoded = transform.encode(state, update(start * 0.999), Key.fresh())
        zero = np.zeros(1, np.float32)
        delta, extra = (encoded.delta, encoded.extra) if is_there else (zero, zero)
        after, total = transform.decode(state, Total(delta, extra, 1.0, 1, {}), Key.fresh())
        share = 0.5 - np.log(after.clip_norm / start)
        return total.delta[0] * start / scale**2 + (share - 0.5) / 0.6**2

    return draw, (True, False), accounting.Gaussian(noise, 1.0)


def local(noise):
    transform = LocalGaussian(0.5, noise)
    return (
        lambda number: transform.encode((), update(number), Key.fresh()).delta[0],
        (HUGE, -HUGE),
        accounting.LocalRelease(noise),
    )


def skellam(noise, clients=3):
    transform = DistributedSkellam(1.0, noise, clients, grid_limit(64.0))

    def draw(number):
        shares = (transform.encode((), update(number if one == 0 else 0.0), Key.fresh()) for one in range(clients))
        return sum(float(share.delta[0]) for share in shares)

    return draw, (HUGE, -HUGE), accounting.SkellamSum(noise, transform.norm)


MECHANISMS = {
    "central, little noise": lambda: central(0.5),
    "central": lambda: central(1.0),
    "central, sampled": lambda: central(1.0, 0.3),
    "adaptive": lambda: adaptive(1.0),
    "local, little noise": lambda: local(1.0),
    "local": lambda: local(4.0),
    "distributed, little noise": lambda: skellam(1.0),
    "distributed": lambda: skellam(4.0),
}


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("draws", [1500, pytest.param(30_000, marks=pytest.mark.slow)])
def test_no_more_is_shown_than_is_claimed(name, draws):
    draw, worlds, event = MECHANISMS[name]()
    one, other = (np.array([draw(world) for _ in range(draws)], np.float64) for world in worlds)
    assert shown(one, other) <= accounting.epsilon({str(event): 1}, DELTA).pld


def test_too_little_noise_is_shown():
    """The same distinguisher refutes the ε of four times the noise that there is."""
    draw, worlds, _ = local(1.0)
    one, other = (np.array([draw(world) for _ in range(3000)], np.float64) for world in worlds)
    assert shown(one, other) > accounting.epsilon({str(accounting.LocalRelease(4.0)): 1}, DELTA).pld
