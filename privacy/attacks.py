"""Statistics of what attacks on privacy find: canaries, membership inference, gradient inversion.

Sources: canaries in one run: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar 2023: One-shot Empirical Privacy
Estimation for Federated Learning, https://arxiv.org/abs/2302.03098. Membership by the loss: Yeom et al. 2018,
https://arxiv.org/abs/1709.01604; judged at a low false-positive rate after Carlini et al. 2022,
https://arxiv.org/abs/2112.03570. Confidence: Clopper, Pearson 1934, as in Nasr et al. 2021,
https://arxiv.org/abs/2101.04535.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..core.random import Key
from ..core.types import Vector
from ..core.validation import require

CONFIDENCE = 0.95
LARGEST_EPSILON = 100.0  # no attack with a finite number of trials tells larger ones apart
FALSE_POSITIVES = 0.01  # false-positive rate at which membership inference is judged


class CanaryEstimate(NamedTuple):
    """Estimate of ε from canaries that took part, beside canaries that did not."""

    epsilon: float  # estimate of ε
    lower: float  # lower bound on ε, with CONFIDENCE
    signal: float  # mean of the canaries that took part, in standard deviations of those that did not
    canaries: int


class Membership(NamedTuple):
    """Measures of how well losses tell members from others."""

    auc: float  # area under the ROC curve: 0.5 where losses tell nothing
    true_positives: float  # true-positive rate at the rate FALSE_POSITIVES
    lower: float  # lower bound on ε, with CONFIDENCE
    members: int


def canary(key: Key, number: int, size: int) -> Vector:
    """Draw the direction of a canary: uniform on the unit sphere, float32, shape (size,)."""
    direction = key.derive("canary", number).generator().standard_normal(size, dtype=np.float32)
    return direction / np.float32(math.sqrt(float(np.square(direction, dtype=np.float64).sum())))


def canary_estimate(observed: np.ndarray, unobserved: np.ndarray, delta: float) -> CanaryEstimate:
    """Estimate ε at δ between two Gaussians, fitted to how far the model moved along the canaries' directions.

    observed: dot products of the model's way with the canaries that took part; unobserved: with as many, drawn alike,
    that did not. Errors: ConfigError for fewer than 10 of either, which fit no Gaussian.
    """
    for name, values in (("observed", observed), ("unobserved", unobserved)):
        require(len(values) >= 10, f"expected at least 10 {name} canaries, got {len(values)}")
    from scipy.stats import f as fisher

    spread = float(unobserved.std(ddof=1))
    require(spread > 0, "expected the model to have moved: canaries that did not take part all lie at 0")
    scaled = (observed - unobserved.mean()) / spread
    mean, ratio = float(scaled.mean()), float(scaled.var(ddof=1))
    # In the tails a small difference of variances looks like a large ε: one that chance explains is taken for none.
    ratio /= float(fisher.ppf(CONFIDENCE, len(observed) - 1, len(unobserved) - 1))
    deviation = math.sqrt(max(ratio, 1.0))
    error = normal_quantile(CONFIDENCE) * math.sqrt(deviation**2 / len(observed) + 1 / len(unobserved))
    lower = gaussian_epsilon(max(mean - error, 0.0), 1.0, deviation, delta)
    return CanaryEstimate(gaussian_epsilon(max(mean, 0.0), 1.0, deviation, delta), lower, mean, len(observed))


def gaussian_epsilon(mean: float, deviation: float, other: float, delta: float) -> float:
    """Compute the smallest ε ≤ 100 at which N(0, deviation²) and N(mean, other²) are (ε, δ)-indistinguishable."""
    pairs = [(0.0, deviation, mean, other), (mean, other, 0.0, deviation)]

    def exceeds(epsilon: float) -> bool:
        return any(hockey_stick(*pair, epsilon) > delta for pair in pairs)

    low, high = 0.0, LARGEST_EPSILON
    if not exceeds(low):
        return 0.0
    if exceeds(high):
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high


def hockey_stick(mean: float, deviation: float, other_mean: float, other_deviation: float, epsilon: float) -> float:
    """Compute ∫ max(p − e^ε·q, 0) of two normal densities p and q.

    The integrand is positive where log(p/q) > ε, which is a quadratic inequality.
    """
    from scipy.special import log_ndtr

    a = 0.5 / other_deviation**2 - 0.5 / deviation**2
    b = mean / deviation**2 - other_mean / other_deviation**2
    c = 0.5 * (other_mean / other_deviation) ** 2 - 0.5 * (mean / deviation) ** 2
    c += math.log(other_deviation / deviation) - epsilon

    def mass(centre: float, scale: float, low: float, high: float) -> float:
        ends = (low - centre) / scale, (high - centre) / scale
        near, far = (-ends[1], -ends[0]) if ends[0] > 0 else ends  # from the left, where small tails keep their digits
        return math.exp(log_ndtr(far)) - math.exp(log_ndtr(near))

    total = 0.0
    for low, high in positive_intervals(a, b, c):
        p, q = mass(mean, deviation, low, high), mass(other_mean, other_deviation, low, high)
        total += p - (math.exp(epsilon) * q if q else 0.0)
    return total


def positive_intervals(a: float, b: float, c: float) -> list[tuple[float, float]]:
    """Find the intervals in which a·x² + b·x + c > 0."""
    if abs(a) < 1e-12:
        if abs(b) < 1e-12:
            return [(-math.inf, math.inf)] if c > 0 else []
        return [(-c / b, math.inf)] if b > 0 else [(-math.inf, -c / b)]
    root = b * b - 4 * a * c
    if root <= 0:
        return [(-math.inf, math.inf)] if a > 0 else []
    first, second = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))
    return [(-math.inf, first), (second, math.inf)] if a > 0 else [(first, second)]


def membership(members: np.ndarray, others: np.ndarray, delta: float, key: Key) -> Membership:
    """Measure how well a small loss tells that an example was trained on.

    members, others: losses, of examples drawn alike. The threshold is chosen on one half of each and judged on the
    other: the bound on ε then holds. Errors: ConfigError for fewer than 20 of either, or losses that are not finite.
    """
    for name, losses in (("members", members), ("others", others)):
        require(len(losses) >= 20, f"expected the losses of at least 20 {name}, got {len(losses)}")
        require(bool(np.isfinite(losses).all()), f"expected finite losses of {name}")
    scores, labels = -np.concatenate([members, others]), np.repeat([True, False], [len(members), len(others)])
    limit = np.quantile(scores[~labels], 1 - FALSE_POSITIVES)
    rate = float((scores[labels] > limit).mean())
    generator = key.generator()
    first = generator.random(len(scores)) < 0.5
    threshold = best_threshold(scores[first], labels[first])
    caught = scores[~first] > threshold
    return Membership(auc(scores, labels), rate, epsilon_lower_bound(caught, labels[~first], delta), len(members))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Compute the probability that a member scores higher than another; ties count half."""
    from scipy.stats import rankdata

    positive = int(labels.sum())
    ranks = rankdata(scores)[labels].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Find the threshold with the largest ratio of true to false positives, one added to each count."""
    limits = np.unique(np.quantile(scores, np.linspace(0, 1, 101)))
    caught = scores[None, :] > limits[:, None]
    hits, misses = (caught & labels).sum(1), (caught & ~labels).sum(1)
    return float(limits[np.argmax((hits + 1) / (labels.sum() + 1) / ((misses + 1) / ((~labels).sum() + 1)))])


def epsilon_lower_bound(caught: np.ndarray, labels: np.ndarray, delta: float) -> float:
    """Bound ε from below, with CONFIDENCE, for a test that catches these: log((TPR − δ)/FPR), and its mirror."""
    hits, members = int(caught[labels].sum()), int(labels.sum())
    alarms, others = int(caught[~labels].sum()), int((~labels).sum())
    bounds = []
    for good, of, bad, among in ((hits, members, alarms, others), (others - alarms, others, members - hits, members)):
        low, high = clopper_pearson(good, of)[0] - delta, clopper_pearson(bad, among)[1]
        bounds.append(math.log(low / high) if low > 0 else 0.0)
    return max(0.0, *bounds)


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Compute the interval that holds a binomial's probability with CONFIDENCE in each of its two bounds together."""
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def normal_quantile(probability: float) -> float:
    """Compute the standard normal's quantile."""
    from scipy.special import ndtri

    return float(ndtri(probability))
