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
WIDE = np.dtype("<u8")  # type of integers that are summed modulo 2⁶⁴ whatever the ring
STREAMS = 256  # number of streams that are open at a time
_ZEROS = memoryview(bytes(BLOCK_BYTES))


def stream(seed: bytes) -> CipherContext:
    """Open the seed's AES-CTR stream, at its start."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"expected a seed of {SEED_BYTES} bytes, got {len(seed)}")
    return Cipher(algorithms.AES(bytes(seed[:16])), modes.CTR(bytes(seed[16:]))).encryptor()


def keystream(seed: bytes, size: int) -> bytes:
    """Return the first `size` bytes of the seed's stream.

    Equal seeds, equal bytes; never use one seed for two purposes.
    """
    return stream(seed).update(bytes(size))


def rings_of(values: np.ndarray, wide: int) -> list[np.ndarray]:
    """Return views of a vector's parts, each of the ring that it is summed in.

    The last `wide` integers are of 64 bits, two elements each where the ring has 32.
    """
    if not wide or values.itemsize == WIDE.itemsize:
        return [values]
    words = wide * WIDE.itemsize // values.itemsize
    return [values[:-words], values[-words:].view(WIDE)]


def add_to(total: np.ndarray, values: np.ndarray, wide: int = 0) -> None:
    """Add values to total, in place, modulo the rings."""
    for part, other in zip(rings_of(total, wide), rings_of(values, wide), strict=True):
        part += other


def apply_masks(
    values: np.ndarray, added: Sequence[bytes] = (), subtracted: Sequence[bytes] = (), wide: int = 0
) -> None:
    """Add Σ mask(added) − Σ mask(subtracted) to values, in place, modulo the rings.

    values: little-endian uint32 or uint64, contiguous, writable; its dtype is the ring, but for the last `wide`
    integers, which are of 64 bits.
    """
    parts = rings_of(values, wide)
    for seeds, combine in ((added, np.add), (subtracted, np.subtract)):
        for start in range(0, len(seeds), STREAMS):
            streams = [stream(seed) for seed in seeds[start : start + STREAMS]]
            for part in parts:
                _apply(part, streams, combine)


def _apply(values: np.ndarray, streams: list[CipherContext], combine: np.ufunc) -> None:
    """Combine values with each stream, in place: blocks outside, streams inside, so a block stays in the cache.

    Streams go on where they are.
    """
    buffer = bytearray(BLOCK_BYTES + 16)  # update_into asks for room for one block of the cipher more
    mask = np.frombuffer(buffer, values.dtype, BLOCK_BYTES // values.itemsize)
    for start in range(0, len(values), len(mask)):
        part = values[start : start + len(mask)]
        zeros, own = _ZEROS[: part.nbytes], mask[: len(part)]
        for one in streams:
            one.update_into(zeros, buffer)
            combine(part, own, out=part)
