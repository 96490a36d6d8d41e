"""The streaming weighted sum: how updates become a Total unless an experiment asks for a robust fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .errors import ClientError
from .protocols import Codec, Fold
from .random import Key
from .types import NOTHING, ClientUpdate, CodedUpdate, Total, add_metrics

BLOCK = 1 << 16  # numbers per step: the product of a block stays in the processor's cache


@dataclass(frozen=True)
class WeightedSum:
    """Σ weight·delta in one float32 accumulator, in the order updates arrive: equal orders give equal bits."""

    needs_individual_updates: ClassVar[bool] = False

    def zero(self, size: int) -> Total:
        """The empty sum over vectors of `size` numbers."""
        return Total(np.zeros(size, np.float32), NOTHING, 0.0, 0, {})

    def add(self, accumulator: Total, update: ClientUpdate) -> Total:
        """Fold one update in, in place: the accumulator passed in must not be used again."""
        extra = accumulator.extra if accumulator.clients else np.zeros_like(update.extra)
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
        """The sum of two sums, in place in `one`."""
        if not one.clients or not other.clients:
            return one if one.clients else other
        add_scaled(one.delta, other.delta, 1.0)
        add_scaled(one.extra, other.extra, 1.0)
        metrics = add_metrics(one.metrics, other.metrics)
        return Total(one.delta, one.extra, one.weight + other.weight, one.clients + other.clients, metrics)

    def total(self, accumulator: Total) -> Total:
        """The accumulator is the total."""
        return accumulator


class InTheOpen:
    """A round's sum by a fold that sees each update as it is. Streaming: one accumulator."""

    def __init__(self, fold: Fold, size: int, codec: Codec | None = None):
        """size: of delta as it leaves a client. codec: that clients send it with."""
        self.bytes_up = 0
        self._fold, self._sum = fold, fold.zero(size)
        self._size, self._codec = size, codec

    def contribute(self, client: int, update: ClientUpdate | CodedUpdate, key: Key) -> ClientUpdate | CodedUpdate:
        """The update itself."""
        return update

    def add(self, client: int, contribution: ClientUpdate | CodedUpdate) -> None:
        """Fold the update in. Errors: ClientError for a payload that the codec does not know."""
        if isinstance(contribution, CodedUpdate):
            self.bytes_up += contribution.nbytes
            contribution = decoded(contribution, self._codec, self._size)
        else:
            self.bytes_up += contribution.delta.nbytes + contribution.extra.nbytes
        self._sum = self._fold.add(self._sum, contribution)

    def total(self) -> Total:
        """What the fold makes of them."""
        return self._fold.total(self._sum)


def decoded(update: CodedUpdate, codec: Codec | None, size: int) -> ClientUpdate:
    """What arrives of an update that codec sent. size: of its delta. Errors: ClientError for another's payload."""
    if codec is None:
        raise ClientError(f"expected a delta of {size} numbers, got a payload of {len(update.payload)} bytes, no codec")
    return ClientUpdate(codec.decode(update.payload, size), update.extra, update.weight, update.metrics)


def add_scaled(target: np.ndarray, vector: np.ndarray, scale: float) -> None:
    """target += scale·vector, in place, float32, without a temporary of the vector's size."""
    scratch = np.empty(min(BLOCK, len(vector)), np.float32)
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK]
        product = np.multiply(block, np.float32(scale), out=scratch[: len(block)])
        target[start : start + BLOCK] += product
