"""Values as JSON can hold them."""

from __future__ import annotations

import math
from typing import Any


def number(value: float | int | None) -> float | int | str | None:
    """Return a number as it is; NaN and the infinities as text, which the page turns back."""
    if value is None or isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain(value: Any) -> Any:
    """Return a value of a record as JSON can hold it: a number, text, or None."""
    return number(value) if isinstance(value, float) else value
