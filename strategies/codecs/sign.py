"""Scaled sign compression: one bit for each number, and one scale for all.

Karimireddy, Rebjock, Stich, Jaggi 2019: Error Feedback Fixes SignSGD and other Gradient Compression Schemes.
https://arxiv.org/abs/1901.09847
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.bases import Codec
from ...core.errors import ClientError
from ...core.random import Key
from ...core.types import Vector
from .payloads import check_finite, check_length, check_vector, require_flag


@dataclass(frozen=True)
class Sign(Codec):
    """The compression C(v) = (‖v‖₁/d)·sign(v), with sign(0) = 1.

    A contraction: ‖v − C(v)‖² = ‖v‖² − ‖v‖₁²/d. Biased: without error feedback it need not converge.

    The payload is the scale, float32, then a bit for each number: 1 for what is not negative; unused bits are 0.

    Parameters
    ----------
    error_feedback
        The client adds what got lost to its next update.
    """

    error_feedback: bool = True

    shrinks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_flag("error_feedback", self.error_feedback)

    def payload_bytes(self, size: int) -> int:
        """Return the length in bytes of every payload for `size` numbers."""
        return 4 + -(-size // 8)

    def encode(self, vector: Vector, key: Key) -> bytes:
        """Return the payload. Errors: ClientError for a number that is not finite."""
        check_vector(vector)
        mean = float(np.abs(vector).sum(dtype=np.float64)) / max(len(vector), 1)
        scale = np.float32(mean)
        if scale > mean:  # towards 0: rounded up, the result could be longer than what it stands for
            scale = np.nextafter(scale, np.float32(0))
        return scale.astype("<f4").tobytes() + np.packbits(vector >= 0).tobytes()

    def decode(self, payload: bytes, size: int) -> Vector:
        """Return the vector. Errors: ClientError for what is no payload of `size` numbers."""
        check_length(payload, self.payload_bytes(size), size)
        scale = np.frombuffer(payload, "<f4", 1)
        check_finite(scale, "a payload with a scale")
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=4))
        if scale[0] < 0 or bits[size:].any():
            raise ClientError(f"expected a payload with a scale ≥ 0 and no bits beyond the {size} numbers")
        return np.concatenate([-scale, scale]).astype(np.float32).take(bits[:size])
