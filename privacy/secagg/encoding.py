"""Vectors as integers of a ring, so that masks cancel exactly and the sum is exact.

Source of the rounding: Bonawitz, Salehi, Konečný, McMahan, Gruteser 2019: Federated learning with autotuned
communication-efficient secure aggregation. https://arxiv.org/abs/1912.00131
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext

from ...core.errors import ClientError, ConfigError
from ...core.types import Vector
from ...core.validation import require, require_count, require_real
from .masking import stream

BITS = 20
CHUNK = 1 << 15  # numbers rounded at a time: their working arrays stay in a core's cache


class Encoded(NamedTuple):
    """One client's contribution, before masking."""

    values: np.ndarray  # of the ring's dtype, shape (FixedPoint.ring_length(d),)
    saturated: int  # how many numbers lay outside ±limit and were moved to it

    def __repr__(self) -> str:
        return f"Encoded(values={len(self.values)} hidden, saturated={self.saturated})"


class DecodedSum(NamedTuple):
    """A sum over clients."""

    vector: np.ndarray  # Σ weight·vector, float64, shape (d,)
    weight: int  # Σ weight


@dataclass(frozen=True)
class FixedPoint:
    """Numbers in ±limit as 20-bit integers, stochastically rounded, in a ring of 2^ring_bits.

    limit: the largest magnitude that is kept; measure it, since what lies outside saturates (and is counted).
    clients: the most that may be summed. max_weight: the largest weight of a client; above 1 the vector is multiplied
    by the weight, and the weight travels as one more coordinate. Guarantees: no sum of `clients` contributions
    overflows; checked when built, ConfigError otherwise. Each number decodes to itself in expectation, and to within
    one `step` always.
    """

    limit: float
    clients: int
    max_weight: int = 1
    ring_bits: int = 32

    def __post_init__(self) -> None:
        require_real("limit", self.limit, above=0)
        require_count("clients", self.clients)
        require_count("max_weight", self.max_weight)
        require(self.ring_bits in (32, 64), f"expected ring_bits={self.ring_bits!r} to be 32 or 64")
        largest = self.clients * self.max_weight * self.levels
        if largest >= 2 ** (self.ring_bits - 1):
            remedy = "use ring_bits=64" if self.ring_bits == 32 else "bound the weight more tightly"
            raise ConfigError(
                f"clients={self.clients} of max_weight={self.max_weight} overflow a {self.ring_bits}-bit ring; {remedy}"
            )

    @property
    def levels(self) -> int:
        """The integer that stands for limit."""
        return 2 ** (BITS - 1) - 1

    @property
    def step(self) -> float:
        """The distance between neighbouring numbers."""
        return self.limit / self.levels

    @property
    def dtype(self) -> np.dtype:
        """Of ring elements; little-endian on every platform."""
        return np.dtype(f"<u{self.ring_bits // 8}")

    @property
    def is_weighted(self) -> bool:
        """Whether a coordinate for the weight travels along."""
        return self.max_weight > 1

    @property
    def digest(self) -> bytes:
        """SHA-256 of all settings: 32 bytes, for the session to bind."""
        settings = struct.pack("<dQQBB", self.limit, self.clients, self.max_weight, self.ring_bits, BITS)
        return hashlib.sha256(b"umbel fixed point 1" + settings).digest()

    def ring_length(self, size: int) -> int:
        """How many ring elements a vector of `size` numbers takes."""
        return size + self.is_weighted

    def encode(self, vector: Vector, weight: int, seed: bytes) -> Encoded:
        """weight·round(vector) in the ring, then the weight where weighted.

        seed: 32 fresh secret bytes that the rounding is drawn from. Errors: ClientError when a number is not finite,
        ConfigError for a weight that is not an integer in 0…max_weight (unweighted: exactly 1).
        """
        lowest = 0 if self.is_weighted else 1
        require_count("weight", weight, at_least=lowest)
        require(weight <= self.max_weight, f"expected weight={weight} ≤ max_weight={self.max_weight}")
        values = np.empty(self.ring_length(len(vector)), self.dtype)
        signed = values.view(f"<i{self.dtype.itemsize}")
        work = Workspace(min(CHUNK, len(vector)), stream(seed))
        saturated = 0
        for start in range(0, len(vector), CHUNK):
            part = slice(start, min(start + CHUNK, len(vector)))
            saturated += self._round(vector[part], work, signed[part])
        if weight != 1:
            np.multiply(signed[: len(vector)], weight, out=signed[: len(vector)])
        if self.is_weighted:
            values[-1] = weight
        return Encoded(values, saturated)

    def decode(self, total: np.ndarray, clients: int) -> DecodedSum:
        """The sum that `clients` contributions add up to in the ring."""
        signed = total.view(f"<i{self.dtype.itemsize}")
        if not self.is_weighted:
            return DecodedSum(signed * self.step, clients)
        return DecodedSum(signed[:-1] * self.step, int(signed[-1]))

    def _round(self, vector: Vector, work: Workspace, out: np.ndarray) -> int:
        """out = vector/step, rounded at random to one of its neighbours; returns how many numbers saturated."""
        # In float64: next to 2¹⁹ levels, float32 would leave the fraction five bits and bias the rounding.
        scaled, offset = work.scaled[: len(vector)], work.offset[: len(vector)]
        lowest, highest = float(vector.min()), float(vector.max())  # NaN and infinity reach them
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ClientError("an update to encode has numbers that are not finite; check the learning rate")
        scaled[:] = vector
        scaled *= self.levels / self.limit
        saturated = 0
        if max(-lowest, highest) > self.limit:
            saturated = int(np.count_nonzero(np.abs(vector.astype(np.float64)) > self.limit))
            np.clip(scaled, -self.levels, self.levels, out=scaled)
        # Nearest to y + v is ⌊y⌋ or ⌊y⌋ + 1, the second with the probability of y's fraction, for v uniform in
        # (−½, ½). Odd multiples of 2⁻³² never reach ±½, so that whole numbers stay as they are.
        offset[:] = work.draw(len(vector))
        offset *= 2.0**-32
        scaled += offset
        np.rint(scaled, out=scaled)
        out[:] = scaled
        return saturated


class Workspace:
    """Arrays for rounding up to `size` numbers at a time, and the stream that the rounding is drawn from."""

    def __init__(self, size: int, source: CipherContext):
        self.scaled, self.offset = np.empty(size), np.empty(size)
        self._source, self._zeros = source, memoryview(bytes(4 * size))
        self._bytes = bytearray(4 * size + 16)  # update_into asks for room for one block of the cipher more

    def draw(self, count: int) -> np.ndarray:
        """`count` random odd numbers: int32; overwritten by the next draw."""
        self._source.update_into(self._zeros[: 4 * count], self._bytes)
        words = np.frombuffer(self._bytes, "<i4", count)
        words |= 1
        return words
