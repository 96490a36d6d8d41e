"""Ranges of settings, as they are typed after `umbel sweep … --param`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.reading.overrides import override
from ..core.validation import require

EXAMPLE = "local.learning_rate=0.01:0.5:log, local.epochs=1:10 or local.batch_size=16,32,64"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included.

    Parameters
    ----------
    is_log
        Drawn so that each factor is as likely as another.
    is_whole
        Whole numbers alone.
    """

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """The least and the largest value, as `override` reads them."""
        return (str(self.low), str(self.high))

    def value(self, text: str) -> float | int:
        """Return a value of this range, as a number."""
        return int(text) if self.is_whole else float(text)


@dataclass(frozen=True)
class Choices:
    """A few values, as `override` reads them."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All values."""
        return self.values

    def value(self, text: str) -> str:
        """Return a value of these, as it was written."""
        return text


def read_range(path: str, text: str) -> Range | Choices:
    """Read "0.01:0.5:log", "1:10" or "16,32,64".

    A range of whole numbers has whole numbers alone: 1:10 never is 2.5, and 1.0:10 may be. Errors: ConfigError for
    anything else.
    """
    parts = text.split(":")
    if len(parts) == 1:
        values = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        require(len(values) > 1, f"expected two values of {path} at least, got {text!r}: {EXAMPLE}")
        return Choices(values)
    try:
        low, high = (int(part) if part.strip().lstrip("-").isdigit() else float(part) for part in parts[:2])
    except ValueError:
        raise ConfigError(f"expected {path}={text!r} to be a range or a list: {EXAMPLE}") from None
    is_log, is_whole = parts[2:] == ["log"], isinstance(low, int) and isinstance(high, int)
    require(len(parts) == 2 or is_log, f"expected {path}={text!r} to end in :log, or in nothing more: {EXAMPLE}")
    is_finite = math.isfinite(low) and math.isfinite(high)
    require(is_finite and low < high, f"expected {path}={text!r} to go from a number to a larger one")
    require(not is_log or low > 0, f"expected {path}={text!r} to begin above 0: a logarithmic range has no 0 in it")
    return Range(low, high, is_log, is_whole)


def check_ranges(experiment: Experiment, ranges: dict[str, Range | Choices]) -> None:
    """Raise ConfigError for a path that the experiment has not, and for an end of a range that it does not take."""
    require(bool(ranges), f"expected a parameter to vary, got none: {EXAMPLE}")
    for path, one in ranges.items():
        for text in one.ends:
            override(experiment, [f"{path}={text}"])
