"""Stochastic quantisation: a few bits for each number, rounded up or down so that the mean is right.

Alistarh, Grubic, Li, Tomioka, Vojnovic 2017: QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding,
with the maximum of a block in place of its norm, as in section 4 (bucketing). https://arxiv.org/abs/1610.02132
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.bases import Codec
from ...core.errors import ClientError
from ...core.random import Key
from ...core.types import Vector
from ...core.validation import require, require_count
from .payloads import check_finite, check_length, check_vector, require_flag


@dataclass(frozen=True)
class Quantised(Codec):
    """Each number as one of 2s + 1 equidistant levels, from −scale to scale, the largest number of its block.

    s = 127 with 8 bits, 7 with 4. Which of the two levels around a number it becomes is drawn so that the mean is the
    number: unbiased, to float32's rounding. E‖v − C(v)‖² ≤ block/(4s²)·‖v‖². It may lengthen a vector.

    The payload is a float32 scale per block, then the levels, of 8 bits as int8, of 4 bits two in a byte, each plus 7,
    the first in the higher half.

    Parameters
    ----------
    bits
        8 or 4.
    block
        Numbers that share a scale.
    error_feedback
        The client adds what rounding took to its next update; it needs block < 4s², or it would grow.
    """

    bits: int = 8
    block: int = 128
    error_feedback: bool = False

    shrinks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.bits in (4, 8) and self.bits is not True, f"expected bits={self.bits!r} to be 8 or 4")
        require_count("block", self.block)
        require_flag("error_feedback", self.error_feedback)
        bound = 4 * self.levels**2
        require(
            not self.error_feedback or self.block < bound,
            f"expected block={self.block} < {bound} with error feedback on {self.bits} bits: what is left would grow",
        )

    @property
    def levels(self) -> int:
        """Number s of levels of each sign, without 0."""
        return 2 ** (self.bits - 1) - 1

    def payload_bytes(self, size: int) -> int:
        """Return the length in bytes of every payload for `size` numbers."""
        return 4 * -(-size // self.block) + -(-size * self.bits // 8)

    def encode(self, vector: Vector, key: Key) -> bytes:
        """Return the payload. key: what rounding draws from. Errors: ClientError for a number that is not finite."""
        check_vector(vector)
        blocks = _blocks(vector, self.block)
        scales = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
        # The quotient is at most 1 whatever the scale; levels/scale would overflow for a small one.
        levels = blocks / np.where(scales > 0, scales, np.float32(1))[:, None]
        levels *= np.float32(self.levels)
        levels += key.generator().random(blocks.shape, np.float32)
        np.floor(levels, out=levels)
        np.minimum(levels, self.levels, out=levels)  # s plus nearly 1 is s + 1 in float32
        whole = levels.reshape(-1)[: len(vector)].astype(np.int8)
        return scales.astype("<f4", copy=False).tobytes() + (whole if self.bits == 8 else _packed(whole)).tobytes()

    def decode(self, payload: bytes, size: int) -> Vector:
        """Return the vector. Errors: ClientError for what is no payload of `size` numbers."""
        check_length(payload, self.payload_bytes(size), size)
        scales = np.frombuffer(payload, "<f4", -(-size // self.block))
        check_finite(scales, "a payload with scales")
        sent = np.frombuffer(payload, np.int8 if self.bits == 8 else np.uint8, offset=scales.nbytes)
        whole = sent if self.bits == 8 else _unpacked(sent, size)
        if size and (scales.min() < 0 or whole.min() < -self.levels or whole.max() > self.levels):
            raise ClientError(f"expected a payload of scales ≥ 0 and levels from {-self.levels} to {self.levels}")
        blocks = _blocks(whole.astype(np.float32), self.block)
        blocks /= np.float32(self.levels)  # s/s is 1, so that the largest of a block arrives exactly
        blocks *= scales[:, None]
        return blocks.reshape(-1)[:size]


def _blocks(vector: Vector, block: int) -> np.ndarray:
    """Copy vector into rows of `block` numbers, zeros after its end."""
    rows = np.zeros((-(-len(vector) // block), block), vector.dtype)
    rows.reshape(-1)[: len(vector)] = vector
    return rows


def _packed(whole: np.ndarray) -> np.ndarray:
    """Pack levels from −7 to 7, two in a byte; a last half byte that is not needed is 0."""
    halves = np.zeros(len(whole) + len(whole) % 2, np.uint8)
    halves[: len(whole)] = whole + 7
    return halves[::2] << 4 | halves[1::2]


def _unpacked(sent: np.ndarray, size: int) -> np.ndarray:
    """Invert `_packed`. Errors: ClientError where the half byte that is not needed is not 0."""
    halves = np.empty(2 * len(sent), np.uint8)
    halves[::2], halves[1::2] = sent >> 4, sent & 15
    if halves[size:].any():
        raise ClientError(f"expected a payload whose last half byte is 0: {size} numbers do not need it")
    return halves[:size].astype(np.int8) - 7
