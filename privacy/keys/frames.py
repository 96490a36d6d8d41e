"""Data in authenticated frames: AES-256-GCM, 1 MiB each, so that any size can be sealed, and opened as a stream.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015, https://eprint.iacr.org/2015/189): frame i is
sealed with i as its nonce and with (context, i, whether it is the last) as associated data. So frames that are cut off,
swapped, repeated, added or moved to another object do not open. A key seals one object only: the nonces start at 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...core.errors import ConfigError, UmbelError
from ...core.validation import require

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
# Content of a frame; it fits the cache: 100 MB in one call ran at 2 GB/s, in frames into warm memory at 17.
FRAME_BYTES = 1 << 20
Buffer: TypeAlias = "bytes | bytearray | memoryview"


class SealBroken(UmbelError):
    """Sealed bytes do not open: another key or context, or a byte was changed, cut off, moved or added."""

    exit_status = 2


def fresh_key() -> bytes:
    """Draw a key for one object."""
    return os.urandom(KEY_BYTES)


def sealed_size(size: int) -> int:
    """Return the bytes that `size` bytes take once sealed: a tag per frame; what is empty is one frame too."""
    return size + TAG_BYTES * max(1, -(-size // FRAME_BYTES))


def opened_size(size: int) -> int:
    """Invert `sealed_size`. Errors: SealBroken for a size that it never gives."""
    frames = -(-size // (FRAME_BYTES + TAG_BYTES))
    content = size - TAG_BYTES * frames
    if content < 0 or sealed_size(content) != size:
        raise SealBroken("sealed bytes do not open: they are cut short")
    return content


def seal(key: bytes, content: Buffer, context: bytes = b"") -> memoryview:
    """Seal content in frames, under a key that seals nothing else. context: what it must be opened with."""
    view = flat(content)
    sealed = new_buffer(sealed_size(len(view)))
    seal_into(key, view, sealed, context)
    return sealed


def seal_into(key: bytes, content: memoryview, sealed: memoryview, context: bytes = b"") -> None:
    """Do what `seal` does, into memory of `sealed_size(len(content))` bytes."""
    cipher, at = _cipher(key), 0
    for index, start in enumerate(range(0, max(1, len(content)), FRAME_BYTES)):
        piece = content[start : start + FRAME_BYTES]
        end, is_last = at + len(piece) + TAG_BYTES, start + FRAME_BYTES >= len(content)
        cipher.encrypt_into(_nonce(index), piece, _bound(context, index, is_last), sealed[at:end])
        at = end


def unseal(key: bytes, sealed: Buffer, context: bytes = b"") -> memoryview:
    """Open what `seal` sealed. Errors: SealBroken, and nothing of it is returned."""
    view = flat(sealed)
    content = new_buffer(opened_size(len(view)))
    cipher, at = _cipher(key), 0
    for index, start in enumerate(range(0, len(view), FRAME_BYTES + TAG_BYTES)):
        frame = view[start : start + FRAME_BYTES + TAG_BYTES]
        end, is_last = at + len(frame) - TAG_BYTES, start + len(frame) == len(view)
        try:
            cipher.decrypt_into(_nonce(index), frame, _bound(context, index, is_last), content[at:end])
        except InvalidTag:
            raise _broken(index) from None
        at = end
    return content


def seal_stream(key: bytes, pieces: Iterable[Buffer], context: bytes = b"") -> Iterator[bytes]:
    """Yield the frames of what pieces of any sizes join to, one at a time; the frames join to what `seal` returns."""
    cipher = _cipher(key)
    for index, (piece, is_last) in enumerate(_cut(pieces, FRAME_BYTES)):
        yield cipher.encrypt(_nonce(index), piece, _bound(context, index, is_last))


def unseal_stream(key: bytes, pieces: Iterable[Buffer], context: bytes = b"") -> Iterator[bytes]:
    """Yield the content, a frame at a time, of sealed bytes that arrive in pieces of any size.

    Each frame was verified, but what is cut off at the end is found only at the end: act on nothing before the iterator
    is exhausted. Errors: SealBroken.
    """
    cipher = _cipher(key)
    for index, (frame, is_last) in enumerate(_cut(pieces, FRAME_BYTES + TAG_BYTES)):
        try:
            yield cipher.decrypt(_nonce(index), frame, _bound(context, index, is_last))
        except InvalidTag:
            raise _broken(index) from None


def flat(content: Buffer) -> memoryview:
    """Return the bytes of contiguous memory, not copied."""
    view = memoryview(content)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty view of floats cannot be cast


def new_buffer(size: int) -> memoryview:
    """Allocate memory that is not zeroed first: zeroing costs as much as sealing."""
    return np.empty(size, np.uint8).data


def _cipher(key: bytes) -> AESGCM:
    require(len(key) == KEY_BYTES, f"a key of {len(key)} bytes; AES-256 takes {KEY_BYTES}")
    return AESGCM(key)


def _nonce(index: int) -> bytes:
    return index.to_bytes(NONCE_BYTES, "big")


def _bound(context: bytes, index: int, is_last: bool) -> bytes:
    """Return the associated data of a frame. Its tail has a fixed length, so no two of them are equal."""
    if index >= 1 << 32:
        raise ConfigError("an object of more than 2³² frames cannot be sealed under one key; split it")
    return b"%s%s%c" % (context, index.to_bytes(8, "big"), is_last)


def _broken(index: int) -> SealBroken:
    return SealBroken(
        f"sealed bytes do not open at frame {index}: the key is another one, or they were changed, cut off or moved"
    )


def _cut(pieces: Iterable[Buffer], size: int) -> Iterator[tuple[Buffer, bool]]:
    """Yield the pieces' bytes, `size` at a time, and whether they are the last; at least once, if empty."""
    held = bytearray()
    for piece in pieces:
        view = flat(piece)
        while len(held) + len(view) > size:  # not ≥: a full frame is known to be not the last only when more comes
            if not held:
                yield view[:size], False
                view = view[size:]
                continue
            missing = size - len(held)
            held += view[:missing]
            yield held, False
            held, view = bytearray(), view[missing:]
        held += view
    yield held, True
