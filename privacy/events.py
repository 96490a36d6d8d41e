"""Privacy events: what a round released, as values with a text, so that a ledger is data: {text: count}.

An event says which mechanism ran and with which numbers, not what it costs: that is `accounting`'s.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.validation import fields_of, lacking, require, require_count, require_real, suggest

Ledger = Mapping[str, int]

SMALLEST_NOISE, LARGEST_NOISE = 0.01, 1e6  # outside, ε is either absurd or lost in the grid's rounding


@dataclass(frozen=True)
class Gaussian:
    """A clipped sum over a Poisson cohort, plus N(0, (noise_multiplier·clip_norm)²). Neighbours: add or remove one.

    Parameters
    ----------
    sampling_rate
        Each client's probability of taking part, on its own; 1 is the plain Gaussian mechanism.
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


@dataclass(frozen=True)
class LocalRelease:
    """Each client of a round sent its own clipped update plus N(0, (noise_multiplier·clip_norm)²).

    Neighbours: any two updates of one client, which lie up to 2·clip_norm apart. Whoever receives it sees who sent it,
    so that sampling amplifies nothing; a client that takes part in every round pays for every round.
    """

    name: ClassVar[str] = "local_gaussian"
    relation: ClassVar[str] = "replace-one"

    noise_multiplier: float

    def __post_init__(self) -> None:
        settle(self)

    def __str__(self) -> str:
        return event_text(self)


@dataclass(frozen=True)
class SkellamSum:
    """A sum of integer vectors, each of L2 norm at most `norm`, plus Skellam noise in each coordinate.

    The noise has at least the variance (noise_multiplier·norm)². Neighbours: any two updates of one client, which lie
    up to 2·norm apart. The clients' shares make up the noise, and who takes part is known, so that sampling amplifies
    nothing. norm: of the integers, in steps of their grid.
    """

    name: ClassVar[str] = "skellam_sum"
    relation: ClassVar[str] = "replace-one"

    noise_multiplier: float
    norm: float

    def __post_init__(self) -> None:
        settle(self)

    def __str__(self) -> str:
        return event_text(self)


Event = Gaussian | FixedCohortGaussian | TruncatedGaussian | LocalRelease | SkellamSum
EVENTS: dict[str, type[Event]] = {
    kind.name: kind for kind in (Gaussian, FixedCohortGaussian, TruncatedGaussian, LocalRelease, SkellamSum)
}


def parse_event(text: str) -> Event:
    """Return the event that `str(event)` wrote as text.

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
    """Return a new ledger with `count` more releases of event."""
    require_count("count", count)
    return {**ledger, str(event): ledger.get(str(event), 0) + count}


def require_noise_multiplier(value: float) -> None:
    """Raise unless value is a noise multiplier that can be accounted for."""
    require_real("noise_multiplier", value, at_least=SMALLEST_NOISE, at_most=LARGEST_NOISE)


def require_noise(value: object) -> None:
    """Raise unless value is a noise multiplier, or turns into one later, as a plan's calibration does."""
    if isinstance(value, Real) or lacking(value, ("__float__",)):
        require_noise_multiplier(value)  # type: ignore[arg-type]


def require_sampling_rate(value: float) -> None:
    """Raise unless value is a probability above 0."""
    require_real("sampling_rate", value, above=0, at_most=1)


def require_norm(value: float) -> None:
    """Raise unless value is a norm of integers that are not all 0."""
    require_real("norm", value, at_least=1)


def settle(event: Any) -> None:
    """Check every field of a new event, and turn what equals a float into one: equal events have equal texts."""
    checks = {
        "noise_multiplier": require_noise_multiplier,
        "sampling_rate": require_sampling_rate,
        "norm": require_norm,
    }
    for name, value in fields_of(event).items():
        if name in checks:
            checks[name](value)
            object.__setattr__(event, name, float(value))
        else:
            require_count(name, value)


def event_text(event: Any) -> str:
    """Write an event as name(field=value,…), with every digit."""
    values = ",".join(f"{name}={value!r}" for name, value in fields_of(event).items())
    return f"{event.name}({values})"
