"""Accounting: what the privacy events in a ledger cost together, as (ε, δ)-differential privacy.

A ledger is data, {event: count}: an event is the text of a frozen value below, and `parse_event` reads it back. All
counts are composed at once. ε comes from privacy loss distributions (PLD), rounded up to their grid; Rényi differential
privacy (RDP) gives a second, looser upper bound, independently computed.

Sources: PLD: Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380. RDP: Mironov, Talwar, Zhang 2019,
https://arxiv.org/abs/1908.10530; without replacement Wang, Balle, Kasiviswanathan 2019,
https://arxiv.org/abs/1808.00087. Cohorts of a fixed size: Balle, Barthe, Gaboardi 2018, Theorem 9,
https://arxiv.org/abs/1807.01647, composed after Zhu, Dong, Wang 2022, https://arxiv.org/abs/2106.08567.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from ..core.errors import ConfigError
from ..core.validation import require, require_count, require_real, suggest

Ledger = Mapping[str, int]

SMALLEST_DELTA = 1e-12  # PLD arithmetic drops up to 1e-15 of probability per composition, and adds it to δ
SMALLEST_NOISE, LARGEST_NOISE = 0.01, 1e6  # outside, ε is either absurd or lost in the grid's rounding
INTERVAL = 1e-4  # of the PLD's grid, for ε up to INTERVALS_COARSEN_AT; then it doubles with ε
INTERVALS_COARSEN_AT = 20.0
LARGEST_EPSILON = 1e6  # above, it is called infinite
LARGEST_COUNT = 10**6  # of one event; PLD arithmetic takes a second for as many
PRECISION = 1e-3  # of calibrated noise multipliers


@dataclass(frozen=True)
class Gaussian:
    """A clipped sum over a Poisson cohort, plus N(0, (noise_multiplier·clip_norm)²). Neighbours: add or remove one.

    sampling_rate: each client's probability of taking part, on its own; 1 is the plain Gaussian mechanism.
    """

    name: ClassVar[str] = "gaussian"
    relation: ClassVar[str] = "add-or-remove-one"

    noise_multiplier: float
    sampling_rate: float

    def __post_init__(self) -> None:
        settle(self)

    def __str__(self) -> str:
        return event_text(self)


@dataclass(frozen=True)
class FixedCohortGaussian:
    """A clipped sum over `cohort` of `population` clients, drawn without replacement, plus Gaussian noise.

    Neighbours: replace one, which moves the sum by up to 2·clip_norm; so it costs more than a Poisson cohort of the
    same expected size.
    """

    name: ClassVar[str] = "fixed_cohort_gaussian"
    relation: ClassVar[str] = "replace-one"

    noise_multiplier: float
    cohort: int
    population: int

    def __post_init__(self) -> None:
        settle(self)
        require(self.cohort <= self.population, f"expected cohort={self.cohort} ≤ population={self.population}")

    def __str__(self) -> str:
        return event_text(self)


@dataclass(frozen=True)
class TruncatedGaussian:
    """A Poisson cohort cut to a random `cohort_cap` of its clients where it is larger. Neighbours: add or remove one.

    Priced as in https://arxiv.org/abs/2508.15089; there is no RDP bound for it.
    """

    name: ClassVar[str] = "truncated_gaussian"
    relation: ClassVar[str] = "add-or-remove-one"

    noise_multiplier: float
    sampling_rate: float
    cohort_cap: int
    population: int

    def __post_init__(self) -> None:
        settle(self)

    def __str__(self) -> str:
        return event_text(self)


Event = Gaussian | FixedCohortGaussian | TruncatedGaussian
EVENTS: dict[str, type[Event]] = {kind.name: kind for kind in (Gaussian, FixedCohortGaussian, TruncatedGaussian)}


class Epsilon(NamedTuple):
    """Two upper bounds on ε. `pld` is reported; `rdp` checks it, and is None where no RDP bound is known."""

    pld: float
    rdp: float | None


def parse_event(text: str) -> Event:
    """The event that `str(event)` wrote as text.

    Errors: ConfigError for another text, however close: one event has one text, or a ledger would count it apart.
    """
    matched = re.fullmatch(r"(\w+)\(([^()]*)\)", text)
    kind = EVENTS.get(matched[1]) if matched else None
    if matched is None or kind is None:
        raise ConfigError(f"unknown privacy event {text!r}; {suggest(text.split('(')[0], EVENTS)}")
    try:
        words = dict(part.split("=") for part in matched[2].split(","))
        types = {field.name: int if field.type == "int" else float for field in dataclasses.fields(kind)}
        event = kind(**{name: types[name](word) for name, word in words.items()})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        expected = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ConfigError(f"expected the privacy event {text!r} to give {expected}, as numbers") from error
    require(str(event) == text, f"expected the privacy event {text!r} to be written {str(event)!r}")
    return event


def compose(ledger: Ledger, event: Event, count: int = 1) -> dict[str, int]:
    """A new ledger with `count` more releases of event."""
    require_count("count", count)
    return {**ledger, str(event): ledger.get(str(event), 0) + count}


def epsilon(ledger: Ledger, delta: float, *, population: int | None = None) -> Epsilon:
    """ε of all events in the ledger together, at this δ. An empty ledger costs 0.

    The cost grows with the number of different events, hardly with their counts.
    population: number of clients; δ has to be below one over it, and over that of any event.
    Errors: ConfigError for δ outside its bounds, an event that does not parse, a count that is none, events whose
    neighbouring relations differ (their ε would mean different things), or dp-accounting not installed.
    """
    for text, count in ledger.items():
        require_count(f"the count of {text}", count, at_least=0)
        require(count <= LARGEST_COUNT, f"expected the count of {text}={count} ≤ {LARGEST_COUNT}")
    events = {parse_event(text): count for text, count in ledger.items() if count}
    populations = [size for event in events if (size := getattr(event, "population", None)) is not None]
    for size in (*populations, population):
        require_delta(delta, size)
    relations = {event.relation for event in events}
    require(len(relations) <= 1, f"expected events of one neighbouring relation, got {' and '.join(sorted(relations))}")
    return epsilon_of(events, delta)


def epsilon_of(events: Mapping[Event, int], delta: float) -> Epsilon:
    """As `epsilon`, of events that were checked."""
    if not events:
        return Epsilon(0.0, 0.0)
    by_rdp = rdp_epsilon(events, delta)
    is_bound = not any(isinstance(event, TruncatedGaussian) for event in events)
    return Epsilon(pld_epsilon(events, delta, estimate=by_rdp), by_rdp if is_bound else None)


def calibrate(
    epsilon: float,
    delta: float,
    rounds: int,
    sampling_rate: float,
    *,
    population: int | None = None,
    accountant: Literal["pld", "rdp"] = "pld",
) -> float:
    """The smallest noise multiplier, a multiple of PRECISION, with which `rounds` Poisson rounds cost at most epsilon.

    At least SMALLEST_NOISE, whatever the budget. accountant: "pld", as reported, or "rdp", which asks for more noise.
    Errors: ConfigError for a value out of bounds, or a budget that no noise up to LARGEST_NOISE keeps.
    """
    require_real("epsilon", epsilon, above=0)
    require_delta(delta, population)
    require_count("rounds", rounds)
    require(rounds <= LARGEST_COUNT, f"expected rounds={rounds} ≤ {LARGEST_COUNT}")
    require_sampling_rate(sampling_rate)
    require(accountant in ("pld", "rdp"), f"expected accountant={accountant!r} in pld, rdp")

    def cost(bound: str, units: int) -> float:
        events: dict[Event, int] = {Gaussian(on_grid(units), sampling_rate): rounds}
        return rdp_epsilon(events, delta) if bound == "rdp" else epsilon_of(events, delta).pld

    # RDP costs a tenth of PLD's time and asks for a little more noise: the search goes on from there. Its orders are
    # bounded, and so are the budgets that it can keep.
    budget = epsilon if accountant == "rdp" else max(epsilon, 0.1)
    found = smallest_within(partial(cost, "rdp"), budget, start=round(1 / PRECISION))
    return on_grid(found if accountant == "rdp" else smallest_within(partial(cost, "pld"), epsilon, start=found))


def on_grid(units: int) -> float:
    """The noise multiplier of so many units of PRECISION."""
    return round(units * PRECISION, 9)


def smallest_within(cost: Callable[[int], float], budget: float, start: int) -> int:
    """The number of units whose cost is within budget while that of one fewer is not. cost falls as units grow.

    Errors: ConfigError when the largest number allowed costs too much.
    """
    least, most = round(SMALLEST_NOISE / PRECISION), round(LARGEST_NOISE / PRECISION)
    below, within = (least - 1, math.inf), (most + 1, 0.0)  # below costs too much; the ends were never asked
    units = start
    for attempt in itertools.count():
        spent = cost(units)
        if spent <= budget:
            within = units, spent
        else:
            below = units, spent
        if within[0] - below[0] == 1:
            break
        units = min(max(guess(below, within, budget, attempt), below[0] + 1), within[0] - 1)
    if within[0] > most:
        raise ConfigError(
            f"no noise multiplier up to {LARGEST_NOISE:g} keeps epsilon={budget!r}; "
            "allow a larger epsilon or delta, fewer rounds or a lower sampling rate"
        )
    return within[0]


def guess(below: tuple[int, float], within: tuple[int, float], budget: float, attempt: int) -> int:
    """Where the cost may meet the budget: on a line in logarithms, in steps of four at most; by halving if slow."""
    (low, dear), (high, cheap) = below, within
    if attempt > 20:
        return (low + high) // 2
    if not cheap:
        return round(low * min(dear / budget, 4.0) * 1.02)
    if not math.isfinite(dear):
        return round(high * max(cheap / budget, 0.25) * 0.98)
    return round(low * (high / low) ** (math.log(dear / budget) / math.log(dear / cheap)))


def pld_epsilon(events: Mapping[Event, int], delta: float, estimate: float) -> float:
    """ε from the events' privacy loss distributions. estimate: of ε, for the grid's interval; it may be far off."""
    losses = [estimate, *(largest_loss(event) for event in events)]
    if not max(losses) <= LARGEST_EPSILON:
        return math.inf
    # Doubled, not scaled: ε then falls as the noise grows, and nearby events share a grid.
    interval = INTERVAL * 2 ** max(0, math.ceil(math.log2(max(losses) / INTERVALS_COARSEN_AT)))
    distributions = [loss_distribution(event, count, interval) for event, count in events.items()]
    total = reduce(lambda one, other: one.compose(other), distributions)
    return float(total.get_epsilon_for_delta(delta))


def largest_loss(event: Event) -> float:
    """A bound on one release's privacy loss, beyond which lies a probability of 1e-23."""
    sigma = event.noise_multiplier / (1 if isinstance(event, Gaussian) else 2)
    return 1 / (2 * sigma**2) + 10 / sigma


def loss_distribution(event: Event, count: int, interval: float) -> Any:
    """The privacy loss distribution of `count` releases of event, rounded up to a grid of this interval."""
    plds, grid = library().pld.privacy_loss_distribution, {"value_discretization_interval": interval}
    match event:
        case Gaussian(noise, 1.0):  # composes in closed form
            return plds.from_gaussian_mechanism(noise / math.sqrt(count), **grid)
        case Gaussian(noise, rate):
            once = plds.from_gaussian_mechanism(noise, sampling_prob=rate, **grid)
        case TruncatedGaussian(noise, rate, cap, population):
            once = plds.from_truncated_subsampled_gaussian_mechanism(population, rate, cap, noise, **grid)
        case FixedCohortGaussian():
            once = without_replacement(event, interval)
    return once.self_compose(count)


def without_replacement(event: FixedCohortGaussian, interval: float) -> Any:
    """The privacy loss distribution of one cohort of a fixed size, which dp_accounting does not have.

    It is that of the mechanism's privacy profile, δ as a function of ε, which amplification by sampling gives for
    ε ≥ 0 (Balle et al., Theorem 9) and the symmetry of replacing one for ε < 0; a profile has a pair of distributions
    that dominates the mechanism, and dominating pairs compose (Zhu et al., Theorem 10).
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
    """δ at each ε ≥ 0 of a Gaussian sum over a fraction `rate` of clients, of whom one is replaced."""
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
    """ε by RDP. Truncated cohorts, which have no such bound, count as Poisson cohorts of half the noise, a guess."""
    dp = library()
    replaced = any(isinstance(event, FixedCohortGaussian) for event in events)
    relation = dp.NeighboringRelation["REPLACE_ONE" if replaced else "ADD_OR_REMOVE_ONE"]
    accountant = dp.rdp.RdpAccountant(neighboring_relation=relation)
    with without_orders_left_out():
        for event, count in events.items():
            accountant.compose(rdp_event(event), count)
    return float(accountant.get_epsilon(delta))


def rdp_event(event: Event) -> Any:
    """The event as dp_accounting's RDP accountant takes it."""
    dp = library()
    match event:
        case Gaussian(noise, rate):
            return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
        case TruncatedGaussian(noise, rate):
            return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise / 2))
        case FixedCohortGaussian(noise, cohort, population):
            # The accountant takes the sum to move by one clip norm whatever the relation; replacing moves it by two.
            return dp.SampledWithoutReplacementDpEvent(population, cohort, dp.GaussianDpEvent(noise / 2))


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
    """dp_accounting, imported when first needed: it takes a second. Errors: ConfigError where it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ConfigError("accounting for privacy needs dp-accounting: pip install dp-accounting") from error
    return dp_accounting


def require_noise_multiplier(value: float) -> None:
    """Raise unless value is a noise multiplier that can be accounted for."""
    require_real("noise_multiplier", value, at_least=SMALLEST_NOISE, at_most=LARGEST_NOISE)


def require_sampling_rate(value: float) -> None:
    """Raise unless value is a probability above 0."""
    require_real("sampling_rate", value, above=0, at_most=1)


def require_delta(delta: float, population: int | None) -> None:
    """Raise unless δ is a probability that means something among so many clients."""
    require_real("delta", delta, at_least=SMALLEST_DELTA)
    require(delta < 1, f"expected delta={delta!r} < 1")
    if population is not None:
        require_count("population", population)
        remedy = "a larger one allows giving a client's data away"
        require(delta < 1 / population, f"expected delta={delta!r} < 1/population={1 / population:g}; {remedy}")


def settle(event: Any) -> None:
    """Check every field of a new event, and turn what equals a float into one: equal events have equal texts."""
    checks = {"noise_multiplier": require_noise_multiplier, "sampling_rate": require_sampling_rate}
    for name, check in checks.items():
        if hasattr(event, name):
            check(getattr(event, name))
            object.__setattr__(event, name, float(getattr(event, name)))
    for field in dataclasses.fields(event):
        if field.name not in checks:
            require_count(field.name, getattr(event, field.name))


def event_text(event: Any) -> str:
    """name(field=value,…), with every digit."""
    values = ",".join(f"{field.name}={getattr(event, field.name)!r}" for field in dataclasses.fields(event))
    return f"{event.name}({values})"
