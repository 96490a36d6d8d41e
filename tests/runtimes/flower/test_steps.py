"""Steps on the wire: what was sent arrives, bit for bit; what is too large, or of another form, goes no further."""

import threading
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from crossings import pair
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.deploy import kits
from umbel.privacy.keys.identities import Identity
from umbel.runtimes.flower import steps
from umbel.runtimes.flower.greeting import greet, greeted, invitation_of
from umbel.runtimes.flower.link.pairing import FRAME_BYTES
from umbel.runtimes.flower.malformed import Malformed

FORMS = [steps.Form((None, 3), np.dtype(np.float32)), steps.Form((1,), np.dtype(np.float32)),
         steps.Form((None,), np.dtype(np.int64))]  # fmt: skip
ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3) / 7, np.ones(1, np.float32), np.array([1, 2])]


def federation(folder):
    """A federation's identities: the server's, and two clients' by number."""
    kits.make(folder, "127.0.0.1", None, ("north", "south"))
    clients = [Identity.load(folder / "clients" / name) for name in ("north", "south")]
    return SimpleNamespace(server=Identity.load(folder / "server"), clients=clients)


SESSION, ATTEMPT = "0a" * 16, "0b" * 16


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 2, FRAME_BYTES - 1, FRAME_BYTES, 3 * FRAME_BYTES + 5])
def test_a_message_of_any_length_arrives_whole(size):
    message = np.random.default_rng(0).bytes(size)
    frames = list(steps.frames(message))
    assert max(map(len, frames)) <= FRAME_BYTES
    assert steps.joined(iter(frames), size) == message


def test_of_a_message_that_is_too_large_no_more_is_read():
    message = bytes(10 * FRAME_BYTES)
    frames = steps.frames(message)
    with pytest.raises(Malformed, match="at most"):
        steps.joined(frames, FRAME_BYTES)
    assert sum(1 for _ in frames) == sum(1 for _ in steps.frames(message)) - 2  # those that are too many


def test_a_step_arrives_bit_for_bit():
    sent = steps.unpack_step(steps.pack_step(4, 2, ARRAYS), FORMS)
    assert (sent.number, sent.examples) == (4, 2)
    for one, other in zip(sent.arrays, ARRAYS, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_halves_of_floats_arrive_as_they_are():
    half = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    form = steps.Form((None, 3), half.dtype)
    (sent,) = steps.unpack_step(steps.pack_step(1, 2, [half]), [form]).arrays
    assert sent.dtype == half.dtype
    np.testing.assert_array_equal(sent.view(np.uint16), half.view(np.uint16))
    number, gradient = steps.unpack_gradient(steps.pack_gradient(1, half), half)
    assert (number, gradient.dtype) == (1, half.dtype)


@pytest.mark.parametrize(
    ("number", "count", "arrays"),
    [
        (1, 2, ARRAYS[:2]),
        (1, 2, [*ARRAYS, ARRAYS[0]]),
        (1, 3, ARRAYS),
        (1, 0, [ARRAYS[0][:0], ARRAYS[1], ARRAYS[2][:0]]),
        (1, -1, ARRAYS),
        (1, 2, [ARRAYS[0].astype(np.float64), *ARRAYS[1:]]),
        (1, 2, [ARRAYS[0].T, *ARRAYS[1:]]),
        (1, 2, [ARRAYS[0][None], *ARRAYS[1:]]),
        (1, 2, [*ARRAYS[:2], ARRAYS[2].astype(np.int32)]),
        (True, 2, ARRAYS[:1]),
    ],
)
def test_a_step_of_another_form_is_refused(number, count, arrays):
    with pytest.raises(Malformed):
        steps.unpack_step(steps.pack_step(number, count, arrays), FORMS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_step_are_refused_in_words(content):
    for read in (
        lambda: steps.unpack_step(content, FORMS),
        lambda: steps.unpack_step(steps.pack_step(1, 2, ARRAYS)[: len(content)] + content, FORMS),
        lambda: steps.unpack_gradient(content, ARRAYS[0]),
    ):
        with pytest.raises(Malformed):
            read()


def test_bounds_follow_from_the_forms():
    assert FORMS[0].bytes_at(8) == 8 * 3 * 4
    assert FORMS[1].bytes_at(8) == 4
    assert steps.Form((None, None, 3), np.dtype(np.float32)).bytes_at(8) is None


@pytest.fixture(scope="module")
def party(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("kits") / "fed")


def met(party, client=0, signs=0, other=None, tamper=lambda invitation: invitation, says=ATTEMPT):
    """Begin at both ends; return (attempt, the server's channel, the client's), or what the server says instead."""
    client_end, server_end = pair()
    own = X25519PrivateKey.generate()
    server = None if party is None else party.server
    identity = None if party is None else (other or party).clients[signs]
    ends = []

    def begin():
        ends.append(greet(client_end, tamper(invitation_of(SESSION, own, server)), says, identity))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    attempt, channel = greeted(server_end, SESSION, own, client, server)
    return attempt, channel, ends[0]


@pytest.mark.parametrize("signed", [True, False])
def test_both_ends_understand_each_other(party, signed):
    attempt, server, client = met(party if signed else None)
    assert attempt == ATTEMPT
    for number in range(3):
        client.send(b"step %d" % number)
        server.send(b"answer %d" % number)
        assert server.receive(100) == b"step %d" % number
        assert client.receive(100) == b"answer %d" % number


def test_nobody_between_them_reads_changes_or_repeats_a_step(party):
    _, server, client = met(party)
    client.send(b"labels of the first batch")
    frame = server._channel._received.get()
    assert b"labels" not in frame
    for changed in (frame[:-1] + bytes([frame[-1] ^ 1]), frame[:1] + frame[2:]):
        _, again, _ = met(party)
        again._channel._received.put(changed)
        with pytest.raises(Malformed, match="changed on its way"):
            again.receive(100)
    server._channel._received.put(frame)
    assert server.receive(100) == b"labels of the first batch"
    server._channel._received.put(frame)  # once more
    with pytest.raises(Malformed, match="changed on its way"):
        server.receive(100)


def test_only_the_client_that_was_asked_is_heard(party, tmp_path):
    with pytest.raises(Malformed):
        met(party, client=0, signs=1)
    with pytest.raises(Malformed):
        met(party, other=federation(tmp_path / "fed"))
    with pytest.raises(Malformed):  # what was signed for another session
        met(party, tamper=lambda invitation: invitation._replace(session="0c" * 16))
    with pytest.raises(Malformed):
        met(party, says="short")


def test_a_word_without_a_signature_is_refused_where_others_sign(party):
    client_end, server_end = pair()
    own = X25519PrivateKey.generate()
    greet(client_end, invitation_of(SESSION, own, None), ATTEMPT, None)
    with pytest.raises(Malformed):
        greeted(server_end, SESSION, own, 0, party.server)
