"""Shared checks of the codecs: of what goes in, and of what comes off the wire."""

from __future__ import annotations

import functools
import math

import numpy as np

from ...core.errors import ClientError
from ...core.random import Key
from ...core.types import Vector
from ...core.validation import require


def require_flag(name: str, value: object) -> None:
    """Raise ConfigError unless value is a boolean."""
    require(isinstance(value, bool), f"expected {name}={value!r} to be True or False")


def check_vector(vector: Vector) -> None:
    """Raise ClientError for anything but a float32 vector of finite numbers."""
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise ClientError(f"expected a float32 vector to encode, got {vector.dtype}{list(vector.shape)}")
    check_finite(vector, "a vector to encode")


def check_length(payload: bytes, expected: int, size: int) -> None:
    """Raise ClientError for a payload that is not as long as that of `size` numbers."""
    if len(payload) != expected:
        raise ClientError(f"expected a payload of {expected} bytes for {size} numbers, got {len(payload)}")


def check_finite(numbers: Vector, what: str) -> None:
    """Raise ClientError where a number is NaN or infinite."""
    # The sum is one pass, and finite for all but numbers that are hardly ever met; those are looked at one by one.
    with np.errstate(over="ignore", invalid="ignore"):
        if not math.isfinite(numbers.sum()) and not np.isfinite(numbers).all():
            raise ClientError(f"expected {what} of finite numbers; lower the client's learning rate")


def kept(fraction: float, size: int) -> int:
    """Return how many of `size` numbers a fraction of them is: rounded up, so that it is at least 1."""
    return min(size, math.ceil(fraction * size * (1 - 1e-12)))  # 0.07·100 is 7.000…001 in floating point


@functools.lru_cache(maxsize=8)
def coordinates(key: Key, size: int, count: int) -> np.ndarray:
    """Draw `count` distinct numbers below size, ascending, every such set equally likely: int64, read-only.

    Kept: a cohort asks for the same ones, and so do both ends of a wire.
    """
    drawn = np.arange(size) if count == size else key.generator().choice(size, count, replace=False, shuffle=False)
    chosen = np.sort(drawn)
    chosen.flags.writeable = False
    return chosen
