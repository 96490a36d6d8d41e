"""The base: the values of the variables that training never assigns, which lie outside the federated vector.

A pre-trained body, the base under LoRA, quantised integers, whatever has `trainable=False`. Known by its hash, equal on
all sides, never sent in a round; a model is its vector and its base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .serial import memory_of


@dataclass(frozen=True, eq=False, repr=False)
class Base:
    """Values of a model's frozen variables, in the order of `model.weights`, each in its own type. Equal by digest."""

    arrays: Sequence[np.ndarray] = ()

    def __repr__(self) -> str:
        return f"Base({len(self.arrays)} variables, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Number of bytes that the values take."""
        return sum(array.nbytes for array in self.arrays)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the values' bytes, little-endian, one variable after another, hex; empty where nothing is frozen.

        Shapes and types are not under it: they stand in the spec, as this digest does.
        """
        if not self.arrays:
            return ""
        hashed = hashlib.sha256()
        for array in self.arrays:
            hashed.update(memory_of(little_endian(array)))
        return hashed.hexdigest()

    def to_bytes(self) -> bytes:
        """Return the bytes that `digest` is the hash of."""
        return b"".join(memory_of(little_endian(array)) for array in self.arrays)


NO_BASE = Base()


def little_endian(array: np.ndarray) -> np.ndarray:
    """Return array with its bytes in that order; itself on most machines, and if its type has no order (bfloat16)."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.kind in "biufc" else array
