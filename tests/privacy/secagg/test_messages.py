import itertools

import pytest

from umbel.privacy.secagg import MalformedMessage
from umbel.privacy.secagg.messages import (
    SEALED_BYTES,
    Advert,
    Consent,
    Kind,
    Offer,
    Roll,
    Sealed,
    Share,
    decode_bytes,
    decode_list,
    decode_masked,
    decode_survivors,
    encode_bytes,
    encode_list,
    encode_masked,
    encode_survivors,
    peek,
)

BOUND = bytes(range(32))
ADVERTS = tuple(Advert(node, b"m" * 32, b"s" * 32, b"c" * 32, b"g" * 64) for node in (3, 2**64 - 1))
OFFER = Offer("run ä", 7, 2, 1_660_001, 32, b"e" * 32, b"r" * 32, b"m" * 32)
FLAGS = [True, False, True, True, False, True, True, True, True, False, True]
LISTS = {
    Kind.SHARES: [Sealed(node, bytes(SEALED_BYTES), b"d" * 32, b"g" * 64) for node in (1, 9)],
    Kind.DELIVERY: [],
    Kind.CONSENTS: [Consent(4, b"g" * 64)],
    Kind.REVEAL: [Share(4, 2**256 + 5), Share(5, 0)],
}
MASKED = (b"y" * 12, [Share(4, 2**256 + 5), Share(5, 0)], [1, 3])
CASES = [
    (OFFER, OFFER.encode(), Offer.decode),
    (ADVERTS[0], ADVERTS[0].encode(BOUND), lambda data: Advert.decode(data, BOUND)),
    (Roll(4, 3, ADVERTS), Roll(4, 3, ADVERTS).encode(BOUND), lambda data: Roll.decode(data, BOUND)),
    *(
        (items, encode_list(kind, BOUND, items), lambda data, kind=kind: decode_list(kind, data, BOUND))
        for kind, items in LISTS.items()
    ),
    (b"y" * 12, encode_bytes(Kind.CONSENT, BOUND, b"y" * 12), lambda data: decode_bytes(Kind.CONSENT, data, BOUND, 12)),
    (MASKED, encode_masked(BOUND, *MASKED), lambda data: decode_masked(data, BOUND, 12)),
    (FLAGS, encode_survivors(BOUND, FLAGS), lambda data: decode_survivors(data, BOUND, len(FLAGS))),
]


@pytest.mark.parametrize(("value", "data", "decode"), CASES)
def test_round_trip(value, data, decode):
    assert decode(data) == value


def test_a_masked_vector_without_disputes_is_of_another_kind():
    data = encode_masked(BOUND, b"y" * 12, MASKED[1])
    assert decode_masked(data, BOUND, 12) == (b"y" * 12, MASKED[1], [])
    assert peek(data)[0] is Kind.MASKED


@pytest.mark.parametrize(("value", "data", "decode"), CASES)
def test_another_length_is_refused(value, data, decode):
    for size in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode(data[:size])
    with pytest.raises(MalformedMessage):
        decode(data + b"\0")


@pytest.mark.parametrize(("value", "data", "decode"), CASES)
def test_every_bit_counts(value, data, decode):
    for bit in range(0, 8 * len(data), 3):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert decode(bytes(changed)) != value
        except MalformedMessage:
            continue


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(range(len(CASES)), 2)))
def test_one_kind_is_never_read_as_another(one, other):
    with pytest.raises(MalformedMessage):
        CASES[one][2](CASES[other][1])


@pytest.mark.parametrize("nodes", [(5, 4), (4, 4)])
def test_lists_have_one_order(nodes):
    with pytest.raises(MalformedMessage, match="ascending"):
        decode_list(Kind.CONSENTS, encode_list(Kind.CONSENTS, BOUND, [Consent(n, bytes(64)) for n in nodes]), BOUND)


def test_a_count_that_promises_too_much_is_refused_without_reading_on():
    data = encode_list(Kind.REVEAL, BOUND, [])[:-4] + b"\xff" * 4
    with pytest.raises(MalformedMessage, match="cut short"):
        decode_list(Kind.REVEAL, data, BOUND)


def test_messages_of_another_version_or_session():
    data = encode_list(Kind.REVEAL, BOUND, [])
    with pytest.raises(MalformedMessage, match="version 1; this side speaks 3"):
        peek(data[:4] + b"\1" + data[5:])
    with pytest.raises(MalformedMessage, match="another session"):
        decode_list(Kind.REVEAL, data, bytes(32))


def test_every_term_is_in_the_offers_digest():
    changed = [OFFER._replace(**{name: value * 2}) for name, value in OFFER._asdict().items() if type(value) is int]
    changed += [OFFER._replace(**{name: b"x" * 32}) for name in ("encoding", "roster", "model")]
    changed += [OFFER._replace(run="other")]
    assert len({offer.digest for offer in [OFFER, *changed]}) == 9
