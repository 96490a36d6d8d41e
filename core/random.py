"""Derived keys: every random number of a run comes from (seed, path), never from a global generator.

    derive(seed, "round", 7, "client", 42).generator()

Equal paths give equal numbers in every process and on every platform; distinct paths are independent, since a key is
a BLAKE2b digest of its path.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

import numpy as np


class Key(NamedTuple):
    """Randomness of 128 bits with a path behind it. Derive from it; never use one key for two purposes."""

    digest: bytes

    @staticmethod
    def fresh() -> Key:
        """Draw a key from the operating system's entropy, that no seed leads to: for what protects real devices."""
        return Key(os.urandom(16))

    def derive(self, *path: str | int) -> Key:
        """Derive the key at `path` below this one."""
        hasher = hashlib.blake2b(self.digest, digest_size=16, person=b"umbel-key")
        for part in path:
            # Type and length go in, so that ("ab", "c") and ("a", "bc"), or 1 and "1", are different paths.
            text = str(int(part) if isinstance(part, (int, np.integer)) else part).encode()
            hasher.update(b"%c%d:" % (b"s" if isinstance(part, str) else b"i", len(text)) + text)
        return Key(hasher.digest())

    def generator(self) -> np.random.Generator:
        """Return a NumPy generator (Philox) keyed by these 128 bits."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.digest, "little")))

    def words(self, count: int) -> np.ndarray:
        """Draw `count` seeds for other generators: int64, shape (count,), each in [0, 2³¹)."""
        stream = hashlib.shake_128(self.digest).digest(4 * count)
        return np.frombuffer(stream, "<u4").astype(np.int64) >> 1


class Dealer:
    """One generator, begun anew for each key: making one takes longer than dealing a small client's order."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._state: Any = self._bits.state

    def at(self, key: Key) -> np.random.Generator:
        """Return the generator as `key.generator()` has it. It is the same one in every call."""
        self._state["state"]["key"] = np.frombuffer(key.digest, "<u8")
        self._bits.state = self._state
        return self._generator


def derive(seed: int, *path: str | int) -> Key:
    """Derive the key at `path` of the run seeded with `seed`: equal arguments, equal random numbers.

        derive(0, "round", 7, "client", 42).generator().normal(size=3)

    Parameters
    ----------
    seed
        Seed of the run.
    path
        Words and numbers that say what the key is for.
    """
    return Key(b"").derive("seed", seed, *path)
