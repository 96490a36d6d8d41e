"""Checks at the edge: each raises ConfigError with the name and the value. Inside, types are trusted."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless condition holds."""
    if not condition:
        raise ConfigError(message)


def lacking(part: Any, methods: Sequence[str]) -> list[str]:
    """List those of the methods that a value does not have."""
    return [method for method in methods if not hasattr(part, method)]


def require_methods(name: str, part: Any, methods: Sequence[str], example: str) -> None:
    """Raise ConfigError for a value that lacks one of the methods, or that is a class."""
    if isinstance(part, type):
        raise ConfigError(f"expected {name}={part.__name__} to be a value, not a class: {part.__name__}(…)")
    missing = ", ".join(lacking(part, methods))
    if missing:
        raise ConfigError(f"expected {name}={shown(part)} to have {missing}(), such as {example}")


def require_count(name: str, value: object, *, at_least: int = 1) -> None:
    """Raise unless value is an integer (not a bool) of at least `at_least`."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    require(is_integer and value >= at_least, f"expected {name}={value!r} to be an integer ≥ {at_least}")  # type: ignore[operator]


def require_real(
    name: str, value: object, *, above: float | None = None, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Raise unless value is a finite number (not a bool) within the bounds given."""
    bounds = " and ".join(
        f"{sign} {bound:g}" for sign, bound in ((">", above), ("≥", at_least), ("≤", at_most)) if bound is not None
    )
    is_real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    within = is_real and (
        (above is None or value > above)  # type: ignore[operator]
        and (at_least is None or value >= at_least)  # type: ignore[operator]
        and (at_most is None or value <= at_most)  # type: ignore[operator]
    )
    require(within, f"expected {name}={value!r} to be a finite number{' ' + bounds if bounds else ''}")


def fields_of(value: Any, *names: str) -> dict[str, Any]:
    """Return a dataclass's fields by name, all of them or those named; without what else the value holds."""
    return {name: getattr(value, name) for name in names or [field.name for field in dataclasses.fields(value)]}


def callable_name(make: Any, otherwise: str | None = None) -> str:
    """Return a function's name for a message; for a callable value without a name, `otherwise`, or its repr."""
    return str(getattr(make, "__qualname__", otherwise or repr(make)))


def plain_numbers(value: Any) -> None:
    """Turn NumPy's scalars among a frozen dataclass's fields into Python's: those print, hash and serialise alike."""
    for name, number in fields_of(value).items():
        if isinstance(number, np.number):
            object.__setattr__(value, name, number.item())


def shown(value: object, most: int = 80) -> str:
    """Return repr(value) for a message: on one line, and cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error about an unknown name: the nearest known one, and the list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return (f"did you mean {near[0]!r}? " if near else "") + f"Known: {listed}"
