"""The search for the smallest noise multiplier whose cost is within a budget, on a grid of multiples of PRECISION."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from ..core.errors import ConfigError
from .events import LARGEST_NOISE, SMALLEST_NOISE

PRECISION = 1e-3  # distance of neighbouring noise multipliers
PATIENCE = 14  # attempts after which a search may end near the smallest
ENOUGH = 1e-3  # share of the smallest that a search may then be above it


def on_grid(units: int) -> float:
    """Return the noise multiplier of so many units of PRECISION."""
    return round(units * PRECISION, 9)


def smallest_within(cost: Callable[[int], float], budget: float, start: int) -> int:
    """Return the number of units whose cost is within budget while that of one fewer is not. cost falls as units grow.

    Guarantees: the cost of what is returned was asked, and is within budget. One attempt takes seconds where losses are
    large and rounds many: after PATIENCE of them a number that is larger by a share of ENOUGH at most will do.
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
        gap = within[0] - below[0]
        is_enough = attempt >= PATIENCE and within[0] <= most and gap <= ENOUGH * within[0]
        if gap == 1 or is_enough:
            break
        units = min(max(guess(below, within, budget, attempt), below[0] + 1), within[0] - 1)
    if within[0] > most:
        raise ConfigError(
            f"no noise multiplier up to {LARGEST_NOISE:g} keeps epsilon={budget!r}; "
            "allow a larger epsilon or delta, fewer rounds or a lower sampling rate"
        )
    return within[0]


def guess(below: tuple[int, float], within: tuple[int, float], budget: float, attempt: int) -> int:
    """Return where the cost may meet the budget: on a line in logarithms, in steps of four at most.

    Where that is slow, half way between the two, in logarithms.
    """
    (low, dear), (high, cheap) = below, within
    if attempt > 10:
        return round(math.sqrt(low * high)) if low else high // 2
    if not cheap:
        return round(low * min(dear / budget, 4.0) * 1.02)
    if not math.isfinite(dear):
        return round(high * max(cheap / budget, 0.25) * 0.98)
    return round(low * (high / low) ** (math.log(dear / budget) / math.log(dear / cheap)))
