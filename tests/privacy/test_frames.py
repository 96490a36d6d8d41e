"""Frames: any size comes back; whatever is changed, cut off, moved or added does not open."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel.core.errors import ConfigError
from umbel.privacy.keys import frames
from umbel.privacy.keys.frames import FRAME_BYTES, TAG_BYTES, SealBroken, seal, seal_stream, unseal, unseal_stream

KEY = bytes(range(32))
SIZES = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES]


@pytest.fixture
def small(monkeypatch):
    """Frames of 8 bytes, so that a test can try every one."""
    monkeypatch.setattr(frames, "FRAME_BYTES", 8)


def content_of(size):
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_any_size_comes_back(size):
    content = content_of(size)
    sealed = seal(KEY, content, b"object 1")
    assert unseal(KEY, sealed, b"object 1") == content
    assert len(sealed) == frames.sealed_size(size)
    assert frames.opened_size(len(sealed)) == size
    assert content[:16] not in bytes(sealed) or size < 16


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda content: np.frombuffer(content, "<f4").data])
def test_whatever_holds_the_bytes(kind):
    content = content_of(4000)
    assert unseal(KEY, kind(bytes(seal(KEY, kind(content))))) == content


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1_000_003, FRAME_BYTES, 1 << 30])
def test_streams_give_the_same_bytes_however_they_are_cut(size, step):
    def cut(whole):
        return (whole[start : start + step] for start in range(0, len(whole), step))

    content = content_of(size)
    sealed = b"".join(seal_stream(KEY, cut(content), b"x"))
    assert sealed == seal(KEY, content, b"x")
    assert b"".join(unseal_stream(KEY, cut(sealed), b"x")) == content


def test_streams_of_single_bytes(small):
    content = content_of(41)
    sealed = list(seal_stream(KEY, (content[i : i + 1] for i in range(41))))
    assert [len(frame) for frame in sealed] == [24] * 5 + [17]
    assert b"".join(unseal_stream(KEY, (bytes([one]) for one in b"".join(sealed)))) == content


def test_the_format_is_the_one_that_is_documented():
    content, cipher = content_of(FRAME_BYTES + 5), AESGCM(KEY)
    first = cipher.encrypt(bytes(12), content[:FRAME_BYTES], b"name" + bytes(8) + b"\0")
    second = cipher.encrypt(bytes(11) + b"\1", content[FRAME_BYTES:], b"name" + bytes(7) + b"\1" + b"\1")
    assert seal(KEY, content, b"name") == first + second


def test_more_than_two_gibibytes_are_framed_and_not_refused():
    piece, pieces = bytes(64 << 20), 33
    opened = unseal_stream(KEY, seal_stream(KEY, (piece for _ in range(pieces))))
    assert sum(map(len, opened)) == pieces * len(piece) > 1 << 31


def test_a_known_answer():
    # McGrew and Viega, The Galois/Counter Mode of Operation, test case 13's key and nonce; the tag is over our data.
    assert bytes(seal(bytes(32), b"")) == AESGCM(bytes(32)).encrypt(bytes(12), b"", bytes(8) + b"\1")
    assert AESGCM(bytes(32)).encrypt(bytes(12), b"", None).hex() == "530f8afbc74536b9a963b4f1c4cb738b"


@pytest.mark.parametrize("opened", [unseal, lambda *given: b"".join(unseal_stream(given[0], [given[1]], *given[2:]))])
def test_every_flipped_bit_is_found(small, opened):
    sealed = bytes(seal(KEY, content_of(19), b"x"))
    for place in range(len(sealed)):
        for bit in range(8):
            with pytest.raises(SealBroken, match="frame"):
                opened(KEY, sealed[:place] + bytes([sealed[place] ^ 1 << bit]) + sealed[place + 1 :], b"x")


@pytest.mark.parametrize("size", [0, 7, 8, 16, 19])
@pytest.mark.parametrize("opened", [unseal, lambda *given: b"".join(unseal_stream(given[0], [given[1]], *given[2:]))])
def test_every_cut_and_every_addition_is_found(small, opened, size):
    sealed = bytes(seal(KEY, content_of(size), b"x"))
    for end in range(len(sealed)):
        with pytest.raises(SealBroken):
            opened(KEY, sealed[:end], b"x")
    for tail in (b"\0", bytes(16), sealed[:24], sealed[-24:]):
        with pytest.raises(SealBroken):
            opened(KEY, sealed + tail, b"x")


def test_frames_do_not_fit_another_place_or_object(small):
    content = content_of(40)
    one, other = bytes(seal(KEY, content, b"x")), bytes(seal(KEY, content[::-1], b"y"))
    cut = [one[start : start + 24] for start in range(0, len(one), 24)]
    arrangements = {
        "swapped": [cut[1], cut[0], *cut[2:]],
        "left out": [cut[0], *cut[2:]],
        "repeated": [cut[0], cut[0], *cut[2:]],
        "of another object": [other[:24], *cut[1:]],
    }
    assert b"".join(cut) == one
    for frames_of in arrangements.values():
        with pytest.raises(SealBroken):
            unseal(KEY, b"".join(frames_of), b"x")
    for key, context in ((os.urandom(32), b"x"), (KEY, b"y"), (KEY, b"")):
        with pytest.raises(SealBroken):
            unseal(key, one, context)
    assert unseal(KEY, one, b"x") == content


def test_a_stream_cut_off_fails_at_its_end_at_the_latest(small):
    sealed = bytes(seal(KEY, content_of(40)))
    stream = unseal_stream(KEY, [sealed[:48]])
    assert next(stream) == content_of(40)[:8]
    with pytest.raises(SealBroken):
        list(stream)


def test_the_tag_and_key_have_full_length():
    assert len(seal(KEY, b"")) == TAG_BYTES == 16
    for size in (0, 16, 31, 33):
        with pytest.raises(ConfigError, match=f"a key of {size} bytes"):
            seal(bytes(size), b"")


def test_fresh_keys_differ():
    assert len({frames.fresh_key() for _ in range(100)}) == 100
