"""Envelopes: sealed to one key, from one member, for one run, round and node, opened once."""

import base64
import hashlib
import time

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.privacy.keys import ED25519, HYBRID, X25519, KeyFile, envelopes, frames
from umbel.privacy.keys.envelopes import Binding, EnvelopeRefused, ReplayGuard, seal, unseal
from umbel.privacy.secagg import Member, Roster

NODE, OTHER = (KeyFile("node", ED25519, 0, 2**40, "", bytes([seed]) * 32) for seed in (1, 2))
RECIPIENTS = {
    X25519: KeyFile("recipient", X25519, 0, 2**40, "", b"\3" * 32),
    HYBRID: KeyFile("recipient", HYBRID, 0, 2**40, "", b"\3" * 96),
}
ROSTER = Roster((Member(7, NODE.public.raw, "a", 2**39), Member(8, OTHER.public.raw, "b", 2**39)))
BINDING = Binding("20261121-k3f9a2", 5, 7, "attempt 1")
BODY = np.random.default_rng(0).bytes(1000)
GOLDEN = """
dW1iZWwgZW52ZWxvcGUgMQAPMjAyNjExMjEtazNmOWEyBQAAAAAAAAAHAAAAAAAAAAlhdHRlbXB0IDFl1fAOHolQxLEMlwpIZ5mj
BX8BayAAAAA9dDWeOKiKQlpX2HFv48CN6v8LaDJXF178B+aNNStGLwYAAAAAAAAAN4HVHdaCXxDJBV3uGAMZGMAd5bS5RkPHiEc9
v8bljheZX1XyXxp7SLf6JUrhTL0kj7kFmyFFaK66xHBK39ssCezqtzoi4SP/nWt4wK4ddwZBSW8XtuDAnHWJ5mnuKjBkRgU+F9zN
GmvhER2W+KGafTYqh6z/I8I78bze6jOUJhh93HYZyg71wosI4uW88UDOy+5/G9qzx5D2xqGtdVlODeqh0A4avg==
"""


@pytest.fixture(params=RECIPIENTS)
def recipient(request):
    return RECIPIENTS[request.param]


def sealed(recipient, body=BODY, sender=NODE, binding=BINDING, **options):
    return bytes(seal(body, recipient.public, sender, binding, **options))


def opened(envelope, recipient, binding=BINDING, roster=ROSTER, guard=None, **options):
    return bytes(unseal(envelope, binding, recipient, roster, ReplayGuard() if guard is None else guard, **options))


def refusal(*arguments, **options):
    """The reason why it does not open."""
    with pytest.raises(EnvelopeRefused) as caught:
        opened(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("size", [0, 1, 1000, frames.FRAME_BYTES, 3 * frames.FRAME_BYTES + 5])
def test_an_update_comes_back(recipient, size):
    body = np.random.default_rng(size).bytes(size)
    envelope = sealed(recipient, body)
    assert opened(envelope, recipient) == body
    assert len(body) < 16 or body[:16] not in envelope


def test_a_vector_is_sealed_as_it_lies_in_memory(recipient):
    delta = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    envelope = seal(delta.data, recipient.public, NODE, BINDING)
    assert envelope.readonly
    assert np.frombuffer(unseal(envelope, BINDING, recipient, ROSTER, ReplayGuard()), np.float32).tolist() == list(
        delta
    )


def test_an_envelope_of_the_first_version_opens():
    assert opened(base64.b64decode(GOLDEN), RECIPIENTS[X25519]) == b"golden"


def test_the_overhead_is_small():
    header = len(sealed(RECIPIENTS[X25519], b"")) - 64 - 80 - 16
    assert header < 256
    assert len(sealed(RECIPIENTS[HYBRID], b"")) == header + 64 + 1168 + 16
    assert len(sealed(RECIPIENTS[X25519], bytes(5 << 20))) == header + 64 + 80 + 5 * 16 + (5 << 20)


def test_every_flipped_bit_is_refused(recipient, monkeypatch):
    monkeypatch.setattr(frames, "FRAME_BYTES", 32)
    monkeypatch.setattr(envelopes, "FRAME_BYTES", 32)
    envelope, guard = bytearray(sealed(recipient, BODY[:80])), ReplayGuard()
    for place in range(len(envelope)):
        envelope[place] ^= 1 << place % 8
        assert refusal(envelope, recipient, guard=guard)
        envelope[place] ^= 1 << place % 8
    assert opened(envelope, recipient, guard=guard) == BODY[:80]  # no forgery has used up its nonce


def test_every_cut_and_every_addition_is_refused(recipient):
    envelope = sealed(recipient, b"short")
    for end in range(len(envelope)):
        assert refusal(envelope[:end], recipient) == "malformed"
    assert refusal(envelope + b"\0", recipient) == "malformed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "another"}, "wrong_run"),
        ({"round": 4}, "wrong_round"),
        ({"round": 6}, "wrong_round"),
        ({"node": 8}, "wrong_node"),
        ({"challenge": "attempt 2"}, "wrong_challenge"),
    ],
)
def test_it_opens_for_nothing_else(recipient, change, reason):
    assert refusal(sealed(recipient), recipient, binding=BINDING._replace(**change)) == reason
    assert refusal(sealed(recipient, binding=BINDING._replace(**change)), recipient) == reason


def test_a_members_key_does_not_speak_for_another_node(recipient):
    assert refusal(sealed(recipient, sender=OTHER), recipient) == "bad_signature"
    assert opened(sealed(recipient, sender=NODE), recipient) == BODY


def test_strangers_and_expired_members_are_refused(recipient):
    stranger = BINDING._replace(node=9)
    assert refusal(sealed(recipient, binding=stranger), recipient, binding=stranger) == "not_in_roster"
    expired = Roster((Member(7, NODE.public.raw, "a", int(time.time())),))
    assert refusal(sealed(recipient), recipient, roster=expired) == "expired"


def test_a_stolen_body_signed_by_its_thief_does_not_open(recipient):
    """The thief is a member, and makes the victim's sealed update its own."""
    envelope = sealed(recipient)
    mine = BINDING._replace(node=8)
    own = sealed(recipient, sender=OTHER, binding=mine)
    start = len(own) - len(BODY) - 16 - envelopes._SEALED_KEY_BYTES[recipient.algorithm] - 64
    header, stolen = own[:start], envelope[start + 64 :]
    key, body = stolen[: -len(BODY) - 16], memoryview(stolen)[-len(BODY) - 16 :]
    forged = header + OTHER.signing.sign(envelopes._signed(header, key, body)) + stolen
    assert refusal(forged, recipient, binding=mine) == "does_not_open"


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xff" * 32])
def test_a_member_that_sends_nonsense_is_refused_like_any_other(recipient, point):
    """Signed as it should be, with a point of low order: the shared secret would be zero."""
    envelope = sealed(recipient)
    size = envelopes._SEALED_KEY_BYTES[recipient.algorithm]
    start = len(envelope) - len(BODY) - 16 - size - 64
    key, body = (point * 40)[: size - 48] + bytes(48), memoryview(envelope)[-len(BODY) - 16 :]
    signature = NODE.signing.sign(envelopes._signed(envelope[:start], key, body))
    forged = envelope[:start] + signature + key + bytes(body)
    assert refusal(forged, recipient) == "does_not_open"


def test_an_empty_vector_is_a_body_too(recipient):
    assert opened(bytes(seal(np.zeros(0, np.float32).data, recipient.public, NODE, BINDING)), recipient) == b""


def test_another_recipient_cannot_open_it():
    other = KeyFile("recipient", X25519, 0, 2**40, "", b"\4" * 32)
    assert refusal(sealed(RECIPIENTS[X25519]), other) == "wrong_recipient"
    assert refusal(sealed(RECIPIENTS[X25519]), RECIPIENTS[HYBRID]) == "wrong_recipient"
    assert refusal(sealed(RECIPIENTS[HYBRID]), RECIPIENTS[X25519]) == "wrong_recipient"


def test_an_envelope_opens_once(recipient):
    envelope, guard = sealed(recipient), ReplayGuard()
    assert opened(envelope, recipient, guard=guard) == BODY
    assert refusal(envelope, recipient, guard=guard) == "replayed"
    assert opened(sealed(recipient), recipient, guard=guard) == BODY  # the same update, sealed anew, is another


def test_an_old_envelope_is_refused_and_then_forgotten(recipient):
    envelope, guard = sealed(recipient, lifetime_seconds=60), ReplayGuard()
    later = time.time() + 61
    assert opened(envelope, recipient, guard=guard) == BODY
    assert refusal(envelope, recipient, guard=guard, now=later) == "expired"
    guard.check(7, b"another", later)
    assert guard._seen == {7: {}}


def test_one_node_cannot_fill_the_memory_and_does_not_lock_out_others(recipient):
    guard, eighth = ReplayGuard(most=3), BINDING._replace(node=8)
    for _ in range(3):
        opened(sealed(recipient), recipient, guard=guard)
    assert refusal(sealed(recipient), recipient, guard=guard) == "too_many"
    assert opened(sealed(recipient, sender=OTHER, binding=eighth), recipient, eighth, guard=guard) == BODY


def test_a_forgery_uses_up_nothing(recipient):
    guard = ReplayGuard(most=1)
    for _ in range(3):
        assert refusal(sealed(recipient, sender=OTHER), recipient, guard=guard) == "bad_signature"
    assert opened(sealed(recipient), recipient, guard=guard) == BODY


def test_a_body_that_is_too_large_is_refused_before_any_work(recipient):
    envelope = sealed(recipient)
    assert refusal(envelope, recipient, max_body_bytes=999) == "too_large"
    assert opened(envelope, recipient, max_body_bytes=1000) == BODY


def test_a_wrong_or_expired_key_of_ones_own_is_an_error_of_ones_own():
    expired = KeyFile("node", ED25519, 0, 1, "", bytes(32))
    recipient = RECIPIENTS[X25519]
    for refused, part in [
        (lambda: sealed(recipient, sender=expired), "expired on 1970-01-01"),
        (lambda: sealed(recipient, sender=recipient), "a key of kind node is needed"),
        (lambda: seal(b"", NODE.public, NODE, BINDING), "an Ed25519 key signs"),
        (lambda: opened(sealed(recipient), NODE), "a key of kind recipient is needed"),
        (lambda: opened(sealed(recipient), KeyFile("recipient", X25519, 0, 1, "", bytes(32))), "expired on 1970"),
        (lambda: sealed(recipient, binding=BINDING._replace(round=-1)), "round=-1"),
        (lambda: sealed(recipient, binding=BINDING._replace(node=2**64)), "node=18446744073709551616"),
        (lambda: sealed(recipient, binding=BINDING._replace(run="ü" * 128)), "run of at most 255 bytes, got 256"),
        (lambda: sealed(recipient, lifetime_seconds=0), "lifetime_seconds=0"),
    ]:
        with pytest.raises(ConfigError, match=part):
            refused()


def test_random_bytes_are_refused(recipient):
    generator = np.random.default_rng(0)
    for size in generator.integers(0, 400, 300):
        assert refusal(generator.bytes(size), recipient) == "malformed"
        assert refusal(envelopes.LABEL + generator.bytes(size), recipient)


def test_nothing_secret_is_said(recipient):
    secrets = [key.secret for key in (NODE, recipient)] + [hashlib.sha256(NODE.secret).digest()]
    with pytest.raises(EnvelopeRefused) as caught:
        opened(sealed(recipient, sender=OTHER), recipient)
    for shown in (str(caught.value), repr(caught.value), repr(recipient), repr(ReplayGuard())):
        assert not [secret for secret in secrets if secret.hex() in shown or repr(secret) in shown]
