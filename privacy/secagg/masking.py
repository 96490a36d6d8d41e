"""Masks: a 256-bit seed stretched by AES-128 in counter mode, and added in the same pass.

Half of the seed is the key and half the first counter block, so that all of it matters. The work goes block by block,
small enough for a core's own cache: a mask as long as the vector would be written to memory and read again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

SEED_BYTES = 32
BLOCK_BYTES = 1 << 17
STREAMS = 256  # open at a time
_ZEROS = memoryview(bytes(BLOCK_BYTES))


def stream(seed: bytes) -> CipherContext:
    """The seed's AES-CTR stream, at its start."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"expected a seed of {SEED_BYTES} bytes, got {len(seed)}")
    return Cipher(algorithms.AES(bytes(seed[:16])), modes.CTR(bytes(seed[16:]))).encryptor()


def keystream(seed: bytes, size: int) -> bytes:
    """The first `size` bytes of the seed's stream. Equal seeds, equal bytes; never use one seed for two purposes."""
    return stream(seed).update(bytes(size))


def apply_masks(values: np.ndarray, added: Sequence[bytes] = (), subtracted: Sequence[bytes] = ()) -> None:
    """values += Σ mask(added) − Σ mask(subtracted), in place, modulo the ring.

    values: little-endian uint32 or uint64, contiguous, writable; its dtype is the ring.
    """
    for start in range(0, len(added), STREAMS):
        _apply(values, [stream(seed) for seed in added[start : start + STREAMS]], np.add)
    for start in range(0, len(subtracted), STREAMS):
        _apply(values, [stream(seed) for seed in subtracted[start : start + STREAMS]], np.subtract)


def _apply(values: np.ndarray, streams: list[CipherContext], combine: np.ufunc) -> None:
    """values = values (combine) each stream: blocks outside, streams inside, so a block stays in the cache."""
    buffer = bytearray(BLOCK_BYTES + 16)  # update_into asks for room for one block of the cipher more
    mask = np.frombuffer(buffer, values.dtype, BLOCK_BYTES // values.itemsize)
    for start in range(0, len(values), len(mask)):
        part = values[start : start + len(mask)]
        zeros, own = _ZEROS[: part.nbytes], mask[: len(part)]
        for one in streams:
            one.update_into(zeros, buffer)
            combine(part, own, out=part)
