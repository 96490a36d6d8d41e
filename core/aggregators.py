"""The streaming weighted sum, which adds updates up to a Total unless an experiment asks for a robust aggregator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .bases import Aggregator, Codec
from .errors import ClientError, ConfigError
from .traits import Trait
from .types import NOTHING, ClientUpdate, CodedUpdate, Failure, Total, add_metrics

BLOCK = 1 << 16  # numbers per step: the product of a block stays in the processor's cache


@dataclass(frozen=True)
class WeightedSum(Aggregator):
    """Σ weight·delta in one float32 accumulator, in the order updates arrive: equal orders give equal bits."""

    @property
    def hides(self) -> Trait:
        """Nothing. A subclass may sum in another way, and is taken to hide the plain sum."""
        return Trait.NONE if type(self) is WeightedSum else Trait.PLAIN_SUM

    def zero(self, size: int) -> Total:
        """Return the empty sum over vectors of `size` numbers."""
        return Total(np.zeros(size, np.float32), NOTHING, 0.0, 0, {})

    def add(self, accumulator: Total, update: ClientUpdate) -> Total:
        """Add one update in, in place: the accumulator passed in must not be used again."""
        extra = accumulator.extra
        if not accumulator.clients:
            extra = np.zeros(len(update.extra), accumulator.delta.dtype)
        add_scaled(accumulator.delta, update.delta, update.weight)
        add_scaled(extra, update.extra, update.weight)
        return Total(
            accumulator.delta,
            extra,
            accumulator.weight + update.weight,
            accumulator.clients + 1,
            add_metrics(accumulator.metrics, update.metrics),
        )

    def merge(self, one: Total, other: Total) -> Total:
        """Add two sums, in place in `one`."""
        if not one.clients or not other.clients:
            return one if one.clients else other
        add_scaled(one.delta, other.delta, 1.0)
        add_scaled(one.extra, other.extra, 1.0)
        metrics = add_metrics(one.metrics, other.metrics)
        return Total(one.delta, one.extra, one.weight + other.weight, one.clients + other.clients, metrics)

    def total(self, accumulator: Total) -> Total:
        """Return the accumulator itself: it is the total."""
        return accumulator


@dataclass(frozen=True)
class DoubleSum(Aggregator):
    """Same as WeightedSum, in float64: for plans, whose price reckons with a sum that rounding does not move."""

    def zero(self, size: int) -> Total:
        """Return the empty float64 sum over vectors of `size` numbers."""
        return Total(np.zeros(size), NOTHING, 0.0, 0, {})

    def add(self, accumulator: Total, update: ClientUpdate) -> Total:
        """Same as `WeightedSum.add`."""
        return WeightedSum().add(accumulator, update)

    def merge(self, one: Total, other: Total) -> Total:
        """Same as `WeightedSum.merge`."""
        return WeightedSum().merge(one, other)

    def total(self, accumulator: Total) -> Total:
        """Return the accumulator itself: a plan adds its noise to it, and rounds once."""
        return accumulator


def opened(content: Any, codec: Codec | None, size: int) -> ClientUpdate | Failure:
    """Return what one client sent in the open as an update or a Failure, decoded where it is coded.

    size: length of the delta. Errors: ClientError for a payload that the codec does not know; ConfigError for what is
    no update.
    """
    if isinstance(content, CodedUpdate):
        return decoded(content, codec, size)
    if isinstance(content, (ClientUpdate, Failure)):
        return content
    raise ConfigError(f"expected a client's update, got {type(content).__name__}")


def decoded(update: CodedUpdate, codec: Codec | None, size: int) -> ClientUpdate:
    """Decode an update that `codec` sent.

    size: length of the delta. Errors: ClientError for a payload of another codec.
    """
    if codec is None:
        raise ClientError(f"expected a delta of {size} numbers, got a payload of {len(update.payload)} bytes, no codec")
    return ClientUpdate(codec.decode(update.payload, size), update.extra, update.weight, update.metrics)


def add_scaled(target: np.ndarray, vector: np.ndarray, scale: float) -> None:
    """Add scale·vector to target, in place, in target's dtype, without a temporary of the vector's size."""
    scratch = np.empty(min(BLOCK, len(vector)), target.dtype)
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK]
        product = np.multiply(block, target.dtype.type(scale), out=scratch[: len(block)])
        target[start : start + BLOCK] += product
