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
from .masking import WIDE, stream

BITS = 20  # bits of a number as an integer
# Beyond these, a step, or a sum of many, would leave the range of float32, in which vectors come and go.
SMALLEST_LIMIT, LARGEST_LIMIT, LARGEST_SUM = 1e-30, 1e30, 1e38
CHUNK = 1 << 15  # numbers rounded at a time: their working arrays stay in a core's cache


class Encoded(NamedTuple):
    """One client's contribution, before masking."""

    values: np.ndarray  # ring elements: the ring's dtype, shape (FixedPoint.ring_length(d),)
    saturated: int  # number of numbers that lay outside ±limit and were moved to it

    def __repr__(self) -> str:
        return f"Encoded(values={len(self.values)} hidden, saturated={self.saturated})"


class DecodedSum(NamedTuple):
    """A sum over clients."""

    vector: np.ndarray  # Σ weight·vector, float64, shape (d,)
    weight: int  # Σ weight


def require_limit(name: str, limit: object) -> None:
    """Raise ConfigError unless the largest magnitude of a number is one whose grid float32 can tell apart."""
    require_real(name, limit, at_least=SMALLEST_LIMIT, at_most=LARGEST_LIMIT)


@dataclass(frozen=True)
class FixedPoint:
    """Numbers in ±limit as 20-bit integers, stochastically rounded, in a ring of 2^ring_bits.

    Parameters
    ----------
    limit
        The largest magnitude that is kept, from 1e-30 to 1e30; measure it, since what lies outside saturates (and is
        counted).
    clients
        The most that may be summed.
    max_weight
        The largest weight of a client; above 1 the vector is multiplied by the weight, and the weight travels as one
        more coordinate. Guarantees: no sum of `clients` contributions overflows; checked when built, ConfigError
        otherwise. Each number decodes to itself in expectation, and to within one `step` always.
    wide
        How many integers of 64 bits follow, which no weight multiplies: see `wide_part`.
    """

    limit: float
    clients: int
    max_weight: int = 1
    ring_bits: int = 32
    wide: int = 0

    def __post_init__(self) -> None:
        require_limit("limit", self.limit)
        require_count("clients", self.clients)
        require_count("max_weight", self.max_weight)
        require_count("wide", self.wide, at_least=0)
        require(self.ring_bits in (32, 64), f"expected ring_bits={self.ring_bits!r} to be 32 or 64")
        largest = self.clients * self.max_weight * self.levels
        if largest >= 2 ** (self.ring_bits - 1):
            remedy = "use ring_bits=64" if self.ring_bits == 32 else "bound the weight more tightly"
            raise ConfigError(
                f"clients={self.clients} of max_weight={self.max_weight} overflow a {self.ring_bits}-bit ring; {remedy}"
            )
        require(
            self.limit * self.clients * self.max_weight <= LARGEST_SUM,
            f"limit={self.limit!r} times clients={self.clients} of max_weight={self.max_weight} is above "
            f"{LARGEST_SUM:g}, and no float32; use a smaller limit",
        )

    @property
    def levels(self) -> int:
        """Integer that stands for limit."""
        return 2 ** (BITS - 1) - 1

    @property
    def step(self) -> float:
        """Distance between neighbouring numbers."""
        return self.limit / self.levels

    @property
    def dtype(self) -> np.dtype:
        """Type of ring elements; little-endian on every platform."""
        return np.dtype(f"<u{self.ring_bits // 8}")

    @property
    def is_weighted(self) -> bool:
        """Return whether a coordinate for the weight travels along."""
        return self.max_weight > 1

    @property
    def digest(self) -> bytes:
        """SHA-256 of all settings, for the session to bind: 32 bytes."""
        settings = struct.pack("<dQQBB", self.limit, self.clients, self.max_weight, self.ring_bits, BITS)
        settings += struct.pack("<Q", self.wide) if self.wide else b""
        return hashlib.sha256(b"umbel fixed point 1" + settings).digest()

    def ring_length(self, size: int) -> int:
        """Return the number of ring elements that a vector of `size` numbers takes."""
        return size + self.is_weighted + self._wide_elements

    @property
    def _wide_elements(self) -> int:
        """Number of ring elements that the wide integers take."""
        return self.wide * WIDE.itemsize // self.dtype.itemsize

    def wide_part(self, values: np.ndarray) -> np.ndarray:
        """Return a view of the integers of 64 bits at the end of a vector, or of a sum: int64, shape (wide,)."""
        return values[len(values) - self._wide_elements :].view("<i8")

    def encode(self, vector: Vector, weight: int, seed: bytes) -> Encoded:
        """Compute weight·round(vector) in the ring, then the weight where weighted, then zeros for wide integers.

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
        values[len(vector) :] = 0
        if self.is_weighted:
            values[len(vector)] = weight
        return Encoded(values, saturated)

    def decode(self, total: np.ndarray, clients: int) -> DecodedSum:
        """Return the sum that `clients` contributions add up to in the ring."""
        signed = total[: len(total) - self._wide_elements].view(f"<i{self.dtype.itemsize}")
        if not self.is_weighted:
            return DecodedSum(signed * self.step, clients)
        return DecodedSum(signed[:-1] * self.step, int(signed[-1]))

    def holds(self, total: np.ndarray, clients: int) -> bool:
        """Return whether so many contributions can add up to this sum: larger numbers are what somebody else sent."""
        signed = total[: len(total) - self._wide_elements].view(f"<i{self.dtype.itemsize}")
        most = clients * self.max_weight * self.levels
        return -most <= int(signed.min(initial=0)) and int(signed.max(initial=0)) <= most

    def _round(self, vector: Vector, work: Workspace, out: np.ndarray) -> int:
        """Round vector/step at random to neighbours, into out; return how many numbers saturated."""
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
        """Draw `count` random odd numbers: int32; overwritten by the next draw."""
        self._source.update_into(self._zeros[: 4 * count], self._bytes)
        words = np.frombuffer(self._bytes, "<i4", count)
        words |= 1
        return words
