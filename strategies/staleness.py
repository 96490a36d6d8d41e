"""Worth of an update that began some rounds ago. Xie, Koyejo, Gupta 2019, section 5, https://arxiv.org/abs/1903.03934

Staleness 0 is an update of the round it began in; its worth is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..core.validation import require_count, require_real


class Staleness(Protocol):
    """A weight in (0, 1] that does not grow with staleness."""

    def worth(self, staleness: int) -> float: ...


@dataclass(frozen=True)
class Polynomial:
    """The worth (1 + staleness)^−exponent; with exponent 0 staleness does not matter."""

    exponent: float = 0.5

    def __post_init__(self) -> None:
        require_real("exponent", self.exponent, at_least=0)

    def worth(self, staleness: int) -> float:
        """Return the worth of an update: 1 for staleness 0."""
        return (1.0 + staleness) ** -self.exponent


@dataclass(frozen=True)
class Hinge:
    """A worth of 1 up to `grace` rounds, then of 1 / (1 + slope·(staleness − grace))."""

    slope: float = 10.0
    grace: int = 4

    def __post_init__(self) -> None:
        require_real("slope", self.slope, at_least=0)
        require_count("grace", self.grace, at_least=0)

    def worth(self, staleness: int) -> float:
        """Return the worth of an update: 1 for staleness 0."""
        return 1.0 / (1.0 + self.slope * max(staleness - self.grace, 0))
