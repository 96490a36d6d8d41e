"""ε over extremes of its numbers, beside what dp_accounting finds when it rounds losses down and beside RDP."""

import math
import time

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as distributions

from umbel.privacy import accounting, composition

RATES = [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 0.99, 0.999, 1.0]
NOISES = [0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 1, 1.5, 2, 5, 20, 100, 1e3, 1e5, 1e6]
ROUNDS = [1, 2, 3, 10, 50, 100, 1000, 10**4, 10**5, 10**6]
DELTAS = [1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-3, 0.05, 0.4]
SECONDS = 60.0  # of one question, on a machine that others use too
LARGEST = 3000.0  # beyond, nothing is compared: no such ε is a promise


def optimistic(noise, rate, rounds, delta, epsilon):
    """ε with every loss rounded down, which the true one is not below."""
    step = 1e-4 if epsilon < 20 else 1e-4 * 2 ** math.ceil(math.log2(epsilon / 20))
    found = distributions.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        value_discretization_interval=step,
        pessimistic_estimate=False,
        use_connect_dots=False,
    )
    return (found if rounds == 1 else found.self_compose(rounds)).get_epsilon_for_delta(delta)


@pytest.mark.parametrize("points", [4, pytest.param(220, marks=pytest.mark.slow)])
def test_epsilon_is_between_the_bounds_whatever_the_numbers(points):
    random = np.random.default_rng(11)
    for _ in range(points):
        rate, delta = float(random.choice(RATES)), float(random.choice(DELTAS))
        rounds = int(random.choice(ROUNDS))
        noise = float(np.clip(random.choice(NOISES) * random.choice([1, 1, 1.0371, 0.9123]), 0.01, 1e6))
        point, ledger = (noise, rate, rounds, delta), {str(accounting.Gaussian(noise, rate)): rounds}
        began = time.monotonic()
        found = accounting.epsilon(ledger, delta)
        spent = composition.spent(ledger, delta, rounds)
        composition.growing.cache_clear()
        assert time.monotonic() - began < SECONDS, point
        assert found.pld >= 0, point
        assert spent >= 0, point
        if not math.isfinite(found.pld):
            assert not (math.isfinite(found.rdp) and found.rdp < 1e5), point
            continue
        assert found.pld <= found.rdp * 1.001 + 1e-3, point
        assert abs(spent - found.pld) <= max(1e-3 * found.pld, 1e-5), point
        if found.pld < LARGEST and rounds <= 10**5:
            low = optimistic(noise, rate, rounds, delta, found.pld)
            assert min(found.pld, spent) >= low - 1e-6 or low <= 1e-3, point
