"""Accounting of what the privacy events in a ledger cost together, as (ε, δ)-differential privacy.

A ledger is data, {event: count}: an event is the text of a frozen value of `events`, and `parse_event` reads it back.
All counts are composed at once. ε comes from privacy loss distributions (PLD), rounded up to their grid; Rényi
differential privacy (RDP) gives a second, looser upper bound, independently computed.

Sources: PLD: Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380. RDP: Mironov, Talwar, Zhang 2019,
https://arxiv.org/abs/1908.10530; without replacement Wang, Balle, Kasiviswanathan 2019,
https://arxiv.org/abs/1808.00087. Cohorts of a fixed size: Balle, Barthe, Gaboardi 2018, Theorem 9,
https://arxiv.org/abs/1807.01647, composed after Zhu, Dong, Wang 2022, https://arxiv.org/abs/2106.08567. Gaussians
without sampling: Balle, Wang 2018, https://arxiv.org/abs/1805.06530. Skellam noise: Agarwal, Kairouz, Liu 2021,
https://arxiv.org/abs/2110.04995, Theorem 3.5, summed over coordinates.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial, reduce
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core.errors import ConfigError
from ..core.validation import fields_of, require, require_count, require_real
from .events import (
    LARGEST_NOISE,
    SMALLEST_NOISE,
    Event,
    FixedCohortGaussian,
    Gaussian,
    Ledger,
    LocalRelease,
    SkellamSum,
    TruncatedGaussian,
    compose,
    parse_event,
    require_sampling_rate,
)
from .search import PRECISION, on_grid, smallest_within

__all__ = [
    "Epsilon",
    "FixedCohortGaussian",
    "Gaussian",
    "LocalRelease",
    "SkellamSum",
    "TruncatedGaussian",
    "calibrate",
    "compose",
    "epsilon",
    "local_noise",
    "parse_event",
    "smallest_noise",
]

SMALLEST_DELTA = 1e-12  # PLD arithmetic drops up to 1e-15 of probability per composition, and adds it to δ
INTERVAL = 1e-4  # interval of the PLD's grid, for ε up to INTERVALS_COARSEN_AT; then it doubles with ε
INTERVALS_COARSEN_AT = 20.0
LARGEST_EPSILON = 1e6  # above it, ε is called infinite
LARGEST_COUNT = 10**6  # largest count of one event; PLD arithmetic takes a second for as many
FFT_ROUNDING = 2e-15  # rounding of δ by a release: a transform's, 2⁻⁵³·log₂(length), times the count in its exponent


class Epsilon(NamedTuple):
    """Two upper bounds on ε.

    `pld` is reported, and is the smaller of both: where δ is so small that the rounding of a Fourier transform could
    hide it, PLD gives none. `rdp` is None where no RDP bound is known.
    """

    pld: float
    rdp: float | None


def epsilon(ledger: Ledger, delta: float, *, population: int | None = None) -> Epsilon:
    """Compute ε of all events in the ledger together, at this δ. An empty ledger costs 0.

    The cost grows with the number of different events, hardly with their counts.
    population: number of clients; δ has to be below one over it, and over that of any event.
    Errors: ConfigError for δ outside its bounds, an event that does not parse, a count that is none, events whose
    neighbouring relations differ (their ε would mean different things), or dp-accounting not installed.
    """
    for text, count in ledger.items():
        require_count(f"the count of {text}", count, at_least=0)
        require(count <= LARGEST_COUNT, f"expected the count of {text}={count} ≤ {LARGEST_COUNT}")
    events = {parse_event(text): count for text, count in ledger.items() if count}
    populations = [size for event in events if (size := fields_of(event).get("population")) is not None]
    for size in (*populations, population):
        require_delta(delta, size)
    relations = {event.relation for event in events}
    require(len(relations) <= 1, f"expected events of one neighbouring relation, got {' and '.join(sorted(relations))}")
    return epsilon_of(events, delta)


def epsilon_of(events: Mapping[Event, int], delta: float) -> Epsilon:
    """Compute the same as `epsilon`, for events that were checked."""
    if not events:
        return Epsilon(0.0, 0.0)
    by_rdp = rdp_epsilon(events, delta)
    if any(isinstance(event, SkellamSum) for event in events):
        return Epsilon(by_rdp, by_rdp)  # no privacy loss distribution of it is known
    by_pld = pld_epsilon(events, delta, estimate=by_rdp)
    if not has_rdp_bound(events):
        return Epsilon(by_pld, None)
    return Epsilon(min(by_pld, by_rdp) if by_rdp <= LARGEST_EPSILON else by_pld, by_rdp)


def has_rdp_bound(events: Iterable[Event]) -> bool:
    """Return whether `rdp_epsilon` is an upper bound, and no guess."""
    return not any(isinstance(event, TruncatedGaussian) for event in events)


def calibrate(
    epsilon: float,
    delta: float,
    rounds: int,
    sampling_rate: float,
    *,
    population: int | None = None,
    accountant: Literal["pld", "rdp"] = "pld",
) -> float:
    """Find the smallest noise multiplier, a multiple of PRECISION, for `rounds` Poisson rounds to cost at most epsilon.

    At least SMALLEST_NOISE, whatever the budget. accountant: "pld", as reported, or "rdp", which asks for more noise.
    Errors: ConfigError for a value out of bounds, or a budget that no noise up to LARGEST_NOISE keeps.
    """
    require_delta(delta, population)
    require_sampling_rate(sampling_rate)
    return smallest_noise(partial(Gaussian, sampling_rate=sampling_rate), epsilon, delta, rounds, accountant)


def smallest_noise(
    event: Callable[[float], Event],
    epsilon: float,
    delta: float,
    rounds: int,
    accountant: Literal["pld", "rdp"] = "pld",
) -> float:
    """Find the same as `calibrate`, for `rounds` releases of the event that a noise multiplier makes."""
    require_real("epsilon", epsilon, above=0)
    require_delta(delta, None)
    require_count("rounds", rounds)
    require(rounds <= LARGEST_COUNT, f"expected rounds={rounds} ≤ {LARGEST_COUNT}")
    require(accountant in ("pld", "rdp"), f"expected accountant={accountant!r} in pld, rdp")

    def cost(bound: str, units: int) -> float:
        events = {event(on_grid(units)): rounds}
        return rdp_epsilon(events, delta) if bound == "rdp" else epsilon_of(events, delta).pld

    # RDP costs a tenth of PLD's time and asks for a little more noise: the search goes on from there. Its orders are
    # bounded, and so are the budgets that it can keep.
    budget = epsilon if accountant == "rdp" else max(epsilon, 0.1)
    found = smallest_within(partial(cost, "rdp"), budget, start=round(1 / PRECISION))
    return on_grid(found if accountant == "rdp" else smallest_within(partial(cost, "pld"), epsilon, start=found))


def local_noise(epsilon: float, delta: float, releases: int = 1) -> float:
    """Compute the noise multiplier of a LocalRelease of which `releases` together cost epsilon at delta.

    It is the analytic Gaussian's, exact at any ε: releases compose to one Gaussian of 1/√releases the noise. Errors:
    ConfigError for a value out of bounds, or a budget that needs more noise than LARGEST_NOISE, or less than
    SMALLEST_NOISE.
    """
    require_real("epsilon", epsilon, above=0)
    require_delta(delta, None)
    require_count("releases", releases)
    sensitivity = 2.0  # in clip norms, between any two updates
    with np.errstate(divide="ignore"):
        once = float(library().get_sigma_gaussian(epsilon, delta)) * (1 + 1e-8)  # the search's own tolerance
    found = sensitivity * math.sqrt(releases) * once
    require(
        SMALLEST_NOISE <= found <= LARGEST_NOISE,
        f"epsilon={epsilon!r} over {releases} releases asks for a noise multiplier of {found:.3g}; "
        f"allow an epsilon that one from {SMALLEST_NOISE:g} to {LARGEST_NOISE:g} keeps",
    )
    return found


def pld_epsilon(events: Mapping[Event, int], delta: float, estimate: float) -> float:
    """Compute ε from the events' privacy loss distributions.

    estimate: of ε, for the grid's interval; it may be far off.
    """
    losses = [estimate, *(largest_loss(event) for event in events)]
    if not max(losses) <= LARGEST_EPSILON:
        return math.inf
    if all(is_plain(event) for event in events):
        return plain_epsilon(events, delta)
    left = delta - FFT_ROUNDING * sum(events.values())
    if not left > 0:
        return math.inf
    interval = grid_interval(max(losses))
    distributions = [loss_distribution(event, count, interval) for event, count in events.items()]
    total = reduce(lambda one, other: one.compose(other), distributions)
    return float(total.get_epsilon_for_delta(left))


def grid_interval(largest: float) -> float:
    """Return the interval of the losses' grid, for losses up to about `largest`."""
    # Doubled, not scaled: ε then falls as the noise grows, and nearby events share a grid.
    return INTERVAL * 2 ** max(0, math.ceil(math.log2(largest / INTERVALS_COARSEN_AT)))


def noise_over_sensitivity(event: Event) -> float:
    """Return the standard deviation of the noise over how far one client moves what it is added to."""
    return event.noise_multiplier / (1 if event.relation == "add-or-remove-one" else 2)


def largest_loss(event: Event) -> float:
    """Bound one release's privacy loss: beyond it lies a probability of 1e-23."""
    sigma = event.noise_multiplier / (1 if isinstance(event, Gaussian) else 2)
    return 1 / (2 * sigma**2) + 10 / sigma


def is_plain(event: Event) -> bool:
    """Return whether an event is a Gaussian mechanism without sampling, which composes in closed form."""
    return isinstance(event, LocalRelease) or (isinstance(event, Gaussian) and event.sampling_rate == 1)


def plain_epsilon(events: Mapping[Event, int], delta: float) -> float:
    """Compute ε of plain Gaussians, exactly: together they are one."""
    precision = sum(count / noise_over_sensitivity(event) ** 2 for event, count in events.items())
    with np.errstate(divide="ignore"):
        found = float(library().get_epsilon_gaussian(1 / math.sqrt(precision), delta))
    return found * (1 + 1e-9)  # the search's own tolerance


def loss_distribution(event: Event, count: int, interval: float) -> Any:
    """Compute the privacy loss distribution of `count` releases of event, rounded up to a grid of this interval."""
    plds, grid = library().pld.privacy_loss_distribution, {"value_discretization_interval": interval}
    match event:
        case Gaussian(_, 1.0) | LocalRelease():
            return plds.from_gaussian_mechanism(noise_over_sensitivity(event) / math.sqrt(count), **grid)
        case Gaussian(noise, rate):
            once = plds.from_gaussian_mechanism(noise, sampling_prob=rate, **grid)
        case TruncatedGaussian(noise, rate, cap, population):
            once = plds.from_truncated_subsampled_gaussian_mechanism(population, rate, cap, noise, **grid)
        case FixedCohortGaussian():
            once = without_replacement(event, interval)
    return once if count == 1 else once.self_compose(count)  # one would be transformed, and rounded, too


def without_replacement(event: FixedCohortGaussian, interval: float) -> Any:
    """Compute the privacy loss distribution of one cohort of a fixed size, which dp_accounting does not have.

    It is that of the mechanism's privacy profile, δ as a function of ε, which amplification by sampling gives for ε ≥ 0
    (Balle et al., Theorem 9) and the symmetry of replacing one for ε < 0; a profile has a pair of distributions that
    dominates the mechanism, and dominating pairs compose (Zhu et al., Theorem 10).
    """
    rate, top = event.cohort / event.population, largest_loss(event)
    last = math.ceil((math.log(rate) + top + math.log1p((1 / rate - 1) * math.exp(-top))) / interval)
    positive = replace_one_profile(np.arange(last + 1) * interval, event.noise_multiplier, rate)
    losses = np.arange(1, last + 1) * interval
    negative = 1 - np.exp(-losses) * (1 - positive[1:])  # 1 − e^ε + e^ε·δ(−ε)
    deltas = np.concatenate([negative[::-1], positive])
    pld = library().pld
    rounded_up = pld.pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, -last, last, deltas)
    return pld.privacy_loss_distribution.PrivacyLossDistribution(rounded_up)


def replace_one_profile(epsilons: np.ndarray, noise_multiplier: float, rate: float) -> np.ndarray:
    """Compute δ at each ε ≥ 0 of a Gaussian sum over a fraction `rate` of clients, of whom one is replaced."""
    from scipy.special import log_ndtr

    # The ε that the whole cohort's mechanism would have: log(1 + (e^ε − 1)/rate), where e^ε does not overflow.
    near, far = np.minimum(epsilons, 1), np.maximum(epsilons, 1)
    whole = np.where(
        epsilons < 1, np.log1p(np.expm1(near) / rate), far + np.log1p(-(1 - rate) * np.exp(-far)) - math.log(rate)
    )
    sigma = noise_multiplier / 2  # replacing a client moves the sum by up to two clip norms
    first, second = log_ndtr(0.5 / sigma - whole * sigma), whole + log_ndtr(-0.5 / sigma - whole * sigma)
    # Balle, Wang 2018, https://arxiv.org/abs/1805.06530, Theorem 8.
    return rate * np.maximum(-np.exp(first) * np.expm1(np.minimum(second - first, 0)), 0)


def rdp_epsilon(events: Mapping[Event, int], delta: float) -> float:
    """Compute ε by RDP.

    Truncated cohorts, which have no such bound, count as Poisson cohorts of half the noise, a guess.
    """
    rdp = library().rdp
    orders = rdp.RdpAccountant().orders
    return float(
        rdp.compute_epsilon(orders, sum(count * renyi_curve(event) for event, count in events.items()), delta)[0]
    )


@lru_cache(maxsize=64)
def renyi_curve(event: Event) -> np.ndarray:
    """Compute one release's Rényi divergence at each of dp_accounting's orders."""
    dp = library()
    orders = dp.rdp.RdpAccountant().orders
    if isinstance(event, SkellamSum):
        return skellam_divergence(event, orders)
    relation = dp.NeighboringRelation["REPLACE_ONE" if event.relation == "replace-one" else "ADD_OR_REMOVE_ONE"]
    asked, places = orders, np.arange(len(orders))
    if isinstance(event, FixedCohortGaussian):
        # Its bound takes time in proportion to an order's square up to 256. Divergences grow with their orders, so
        # that any may stand for one below it.
        evened = np.where((orders > 40) & (orders < 64), orders + orders % 2, orders)
        asked, places = np.unique(np.where(orders == 256, 257, evened), return_inverse=True)
    accountant = dp.rdp.RdpAccountant(orders=asked, neighboring_relation=relation)
    with without_orders_left_out():
        accountant.compose(rdp_event(event))
    return np.maximum(accountant.rdp[places], 0.0)  # where nothing is lost, rounding may leave −10⁻²⁰


def skellam_divergence(event: SkellamSum, orders: np.ndarray) -> np.ndarray:
    """Bound the event's Rényi divergence at each order.

    The bounds hold for whole orders, and so for those below them. An integer vector's L1 norm is at most its L2 norm
    squared.
    """
    moved, variance, whole = (2 * event.norm) ** 2, (event.noise_multiplier * event.norm) ** 2, np.ceil(orders)
    rest = np.minimum((2 * whole + 5) * moved / (4 * variance**2), 3 * moved / (2 * variance))
    return whole * moved / (2 * variance) + rest


def rdp_event(event: Event) -> Any:
    """Return the event as dp_accounting's RDP accountant takes it."""
    dp = library()
    match event:
        case Gaussian(noise, rate):
            return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
        case TruncatedGaussian(noise, rate):
            return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise / 2))
        case FixedCohortGaussian(noise, cohort, population):
            # The accountant takes the sum to move by one clip norm whatever the relation; replacing moves it by two.
            return dp.SampledWithoutReplacementDpEvent(population, cohort, dp.GaussianDpEvent(noise / 2))
        case LocalRelease(noise):
            return dp.GaussianDpEvent(noise / 2)
    raise TypeError(f"no RDP event for {event}")


@contextmanager
def without_orders_left_out() -> Iterator[None]:
    """Keep off standard error which Rényi orders a bound does without: any order's bound holds."""
    logger = logging.getLogger("absl")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def library() -> Any:
    """Import dp_accounting, when first needed: it takes a second. Errors: ConfigError where it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ConfigError("accounting for privacy needs dp-accounting: pip install dp-accounting") from error
    return dp_accounting


def require_delta(delta: float, population: int | None) -> None:
    """Raise unless δ is a probability that means something among so many clients."""
    require_real("delta", delta, at_least=SMALLEST_DELTA)
    require(delta < 1, f"expected delta={delta!r} < 1")
    if population is not None:
        require_count("population", population)
        remedy = "a larger one allows giving a client's data away"
        require(delta < 1 / population, f"expected delta={delta!r} < 1/population={1 / population:g}; {remedy}")
