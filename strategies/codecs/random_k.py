"""Random-k sparsification: numbers at random places, which a seed stands for.

Konečný, McMahan, Yu, Richtárik, Suresh, Bacon 2016: Federated Learning: Strategies for Improving Communication
Efficiency, section 3 (subsampling), section 2 (random mask). https://arxiv.org/abs/1610.05492
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.bases import Codec
from ...core.random import Key
from ...core.types import Vector
from ...core.validation import require_real
from .payloads import check_finite, check_length, check_vector, coordinates, kept, require_flag

SEED_BYTES = 16


@dataclass(frozen=True)
class RandomK(Codec):
    """k = ⌈fraction·d⌉ numbers at places drawn afresh for each update, times d/k: unbiased; the others arrive as 0.

    E‖v − C(v)‖² = (d/k − 1)·‖v‖²: with a small fraction the mean needs many clients.

    The payload is the 16 bytes of the seed that the places are drawn from, then the k numbers.

    Parameters
    ----------
    error_feedback
        The client adds what it left out to its next update. Then nothing is scaled, since what is d/k times too large
        would have to be taken back: a contraction by 1 − k/d in the mean, and biased.
    """

    fraction: float
    error_feedback: bool = False

    def __post_init__(self) -> None:
        require_real("fraction", self.fraction, above=0, at_most=1)
        require_flag("error_feedback", self.error_feedback)

    @property
    def shrinks(self) -> bool:
        """Return whether ‖decode(encode(v))‖ ≤ ‖v‖: with error feedback alone, as nothing is scaled then."""
        return self.error_feedback

    def payload_bytes(self, size: int) -> int:
        """Return the length in bytes of every payload for `size` numbers."""
        return SEED_BYTES + 4 * kept(self.fraction, size)

    def encode(self, vector: Vector, key: Key) -> bytes:
        """Return the payload. key: key of this update alone. Errors: ClientError for a number that is not finite."""
        check_vector(vector)
        seed = key.derive("places")
        values = vector[coordinates(seed, len(vector), kept(self.fraction, len(vector)))]
        return seed.digest + values.astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes, size: int) -> Vector:
        """Return the vector, 0 where nothing was sent. Errors: ClientError for what is no payload of `size` numbers."""
        check_length(payload, self.payload_bytes(size), size)
        count = kept(self.fraction, size)
        values = np.frombuffer(payload, "<f4", offset=SEED_BYTES)
        scale = np.float32(1 if self.error_feedback or not count else size / count)
        with np.errstate(over="ignore", invalid="ignore"):
            values = values * scale
        check_finite(values, "a payload")
        vector = np.zeros(size, np.float32)
        vector[coordinates(Key(payload[:SEED_BYTES]), size, count)] = values
        return vector
