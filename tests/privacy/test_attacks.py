"""Laws of the attacks' statistics: closed forms, and that they find what is there and nothing else."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from umbel.core.errors import ConfigError
from umbel.core.random import derive
from umbel.privacy import attacks


def analytic_delta(epsilon: float, mean: float) -> float:
    """Balle, Wang 2018, Theorem 8, for a standard deviation of 1."""
    return float(norm.cdf(mean / 2 - epsilon / mean) - math.exp(epsilon) * norm.cdf(-mean / 2 - epsilon / mean))


@pytest.mark.parametrize("mean", [0.3, 1.0, 2.5])
def test_epsilon_of_equal_deviations_is_the_analytic_gaussians(mean):
    found = attacks.gaussian_epsilon(mean, 1.0, 1.0, 1e-5)
    assert analytic_delta(found, mean) == pytest.approx(1e-5, rel=2e-3)


def test_epsilon_does_not_depend_on_which_world_is_first():
    one = attacks.gaussian_epsilon(1.0, 1.0, 1.7, 1e-5)
    assert one == pytest.approx(attacks.gaussian_epsilon(1.0 / 1.7, 1.0, 1 / 1.7, 1e-5), abs=1e-3)


@pytest.mark.parametrize(("deviation", "other"), [(1.0, 1.0), (1.0, 1.5), (2.0, 1.0)])
def test_hockey_stick_is_the_integral(deviation, other):
    x = np.linspace(-60, 60, 2_000_001)
    gap = norm.pdf(x, 0, deviation) - math.exp(0.7) * norm.pdf(x, 1, other)
    numeric = float(np.maximum(gap, 0).sum() * (x[1] - x[0]))
    assert attacks.hockey_stick(0.0, deviation, 1.0, other, 0.7) == pytest.approx(numeric, abs=1e-6)


def test_canaries_are_unit_vectors_and_nearly_orthogonal():
    one, other = (attacks.canary(derive(0), number, 10_000).astype(float) for number in (0, 1))
    assert (one * one).sum() == pytest.approx(1, abs=1e-5)
    assert abs((one * other).sum()) < 0.05


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_estimate_finds_the_epsilon_of_gaussians(shift):
    generator = np.random.default_rng(3)
    found = attacks.canary_estimate(generator.normal(shift, 1, 4000), generator.normal(0, 1, 4000), 1e-5)
    truth = attacks.gaussian_epsilon(shift, 1.0, 1.0, 1e-5)
    assert found.lower <= truth <= 1.1 * found.epsilon
    assert found.lower > 0.85 * truth


def test_lower_bound_holds_as_often_as_it_says():
    generator = np.random.default_rng(5)
    trials = [
        attacks.canary_estimate(generator.normal(0.5, 1, 100), generator.normal(0, 1, 100), 1e-5) for _ in range(200)
    ]
    truth = attacks.gaussian_epsilon(0.5, 1.0, 1.0, 1e-5)
    assert np.mean([trial.lower <= truth for trial in trials]) >= 0.88  # 0.90 claimed: mean and deviation at 0.95 each
    assert np.mean([trial.lower == 0 for trial in trials]) < 0.9  # and it is not empty


def test_a_model_that_did_not_move_shows_nothing():
    with pytest.raises(ConfigError, match="to have moved"):
        attacks.canary_estimate(np.zeros(20), np.zeros(20), 1e-5)


def test_membership_of_equal_losses_is_a_coin():
    generator = np.random.default_rng(1)
    found = attacks.membership(generator.exponential(size=1000), generator.exponential(size=1000), 1e-5, derive(0))
    assert found.auc == pytest.approx(0.5, abs=0.05)
    assert found.lower == 0


def test_membership_finds_what_was_learnt_by_heart():
    generator = np.random.default_rng(1)
    found = attacks.membership(0.01 * generator.random(500), 1 + generator.random(500), 1e-5, derive(0))
    assert found.auc == 1
    assert found.true_positives == 1
    assert found.lower > 3


def test_auc_is_the_probability_of_the_right_order():
    scores, labels = np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])
    assert attacks.auc(scores, labels) == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_clopper_pearson_covers():
    generator = np.random.default_rng(0)
    counts = generator.binomial(50, 0.3, 2000)
    covered = [low <= 0.3 <= high for low, high in (attacks.clopper_pearson(int(count), 50) for count in counts)]
    assert 0.95 <= np.mean(covered) <= 0.99
    assert attacks.clopper_pearson(0, 50)[0] == 0
    assert attacks.clopper_pearson(50, 50)[1] == 1


@pytest.mark.parametrize("losses", [np.ones(5), np.full(30, np.nan)])
def test_losses_that_show_nothing_are_refused(losses):
    with pytest.raises(ConfigError, match="members"):
        attacks.membership(losses, np.ones(30), 1e-5, derive(0))
