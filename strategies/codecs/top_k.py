"""Top-k sparsification: only the largest numbers travel, and the others wait for their turn.

Stich, Cordonnier, Jaggi 2018: Sparsified SGD with Memory. https://arxiv.org/abs/1809.07599
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.bases import Codec
from ...core.errors import ClientError
from ...core.random import Key
from ...core.types import Vector
from ...core.validation import require_real
from .payloads import check_finite, check_length, check_vector, kept, require_flag


@dataclass(frozen=True)
class TopK(Codec):
    """The k = ⌈fraction·d⌉ numbers that are largest in absolute value, exactly; the others arrive as 0.

    A contraction: ‖v − C(v)‖² ≤ (1 − k/d)·‖v‖². Biased: what it leaves out has to be made up for, or is lost.

    The payload is where they are, then the k numbers. Where: k indices of 4 bytes, or d bits, whichever is shorter;
    bits for more than one number in 32.

    Parameters
    ----------
    error_feedback
        The client adds what it left out to its next update.
    """

    fraction: float
    error_feedback: bool = True

    shrinks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("fraction", self.fraction, above=0, at_most=1)
        require_flag("error_feedback", self.error_feedback)

    def payload_bytes(self, size: int) -> int:
        """Return the length in bytes of every payload for `size` numbers."""
        count = kept(self.fraction, size)
        return min(4 * count, _bitmap_bytes(size)) + 4 * count

    def encode(self, vector: Vector, key: Key) -> bytes:
        """Return the payload. Errors: ClientError for a number that is not finite."""
        check_vector(vector)
        size = len(vector)
        count = kept(self.fraction, size)
        if count == size:
            indices = np.arange(size)
        else:
            indices = np.sort(np.argpartition(np.abs(vector), size - count)[size - count :])
        values = vector[indices].astype("<f4", copy=False).tobytes()
        if 4 * count <= _bitmap_bytes(size):
            return indices.astype("<u4").tobytes() + values
        is_kept = np.zeros(size, bool)
        is_kept[indices] = True
        return np.packbits(is_kept).tobytes() + values

    def decode(self, payload: bytes, size: int) -> Vector:
        """Return the vector, 0 where nothing was sent. Errors: ClientError for what is no payload of `size` numbers."""
        check_length(payload, self.payload_bytes(size), size)
        count = kept(self.fraction, size)
        values = np.frombuffer(payload, "<f4", count, len(payload) - 4 * count)
        check_finite(values, "a payload")
        vector = np.zeros(size, np.float32)
        vector[self._indices(payload, size, count)] = values
        return vector

    def _indices(self, payload: bytes, size: int, count: int) -> np.ndarray:
        """Return where the numbers go: `count` places below size, ascending."""
        if 4 * count <= _bitmap_bytes(size):
            indices = np.frombuffer(payload, "<u4", count).astype(np.int64)
            if count and (indices[-1] >= size or (np.diff(indices) <= 0).any()):
                raise ClientError(f"expected a payload of ascending indices below {size}")
            return indices
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, _bitmap_bytes(size)))
        indices = np.flatnonzero(bits.view(bool))
        if len(indices) != count or indices[-1] >= size:
            raise ClientError(f"expected a payload that marks {count} of {size} numbers, got {len(indices)} marks")
        return indices


def _bitmap_bytes(size: int) -> int:
    return -(-size // 8)
