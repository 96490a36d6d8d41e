"""A lying client's moves: it is named, and honest clients lose nothing by it."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel.core.errors import ConfigError
from umbel.privacy.secagg import (
    SERVER,
    BadShare,
    BelowThreshold,
    Misbehaviour,
    Stage,
)
from umbel.privacy.secagg.dealing import challenge
from umbel.privacy.secagg.messages import (
    Advert,
    Kind,
    Pair,
    Roll,
    Sealed,
    Share,
    dealing_of,
    decode_list,
    decode_reveal,
    encode_list,
    encode_reveal,
    peek,
)
from umbel.privacy.secagg.session import commitment, seal_key


def changed_list(kind, change):
    """A tamper that changes the items of a list."""

    def tamper(node, message):
        bound = peek(message)[1]
        return encode_list(kind, bound, change(node, decode_list(kind, message, bound)))

    return tamper


def signed_again(cohort, node, shares):
    """What a dealer sealed, changed, with its signatures on all of it."""
    session, whole = cohort.clients[node]._session, dealing_of({one.node: one.ciphertext for one in shares})
    texts = [session.sealed_text(node, one.node, whole, one.ciphertext) for one in shares]
    signatures = map(cohort.identities[node].sign, texts)
    return [one._replace(dealing=whole, signature=sig) for one, sig in zip(shares, signatures, strict=True)]


def ciphertexts(reply, session):
    return {one.node: one.ciphertext for one in decode_list(Kind.SHARES, reply, session.digest)}


def sealing_nonsense(cohort, pairs):
    """A tamper on replies: each dealer of {dealer: receivers} signs shares for them that do not open."""

    def corrupt(stage, node, reply):
        if stage is not Stage.SHARE or node not in pairs:
            return reply
        client, bad = cohort.clients[node], []
        session = client._session
        for sealed in decode_list(Kind.SHARES, reply, session.digest):
            if sealed.node in pairs[node]:
                text = bytes([sealed.ciphertext[0] ^ 1]) + sealed.ciphertext[1:]
                sealed = sealed._replace(ciphertext=text)
            bad.append(sealed)
        bad = signed_again(cohort, node, bad)
        (of_key, of_seed), c = (
            client._held[node],
            challenge(session.digest, node, dealing_of(ciphertexts(reply, session))),
        )
        blind = client._points[node] - c * (of_key + c * of_seed)
        client._hold(node, bad[0].dealing, (of_key, of_seed, blind))  # as who dealt so would tell of its own shares
        return encode_list(Kind.SHARES, session.digest, bad)

    return corrupt


def test_a_dealer_whose_shares_do_not_open_is_left_out_and_the_sum_is_the_others(parties):
    cohort = parties()
    liar = cohort.nodes[2]
    honest = [node for node in cohort.nodes if node != liar]
    outcome = cohort.play(cohort.server(), back=sealing_nonsense(cohort, {liar: honest}), drop={Stage.MASK: [liar]})
    assert (outcome.survivors, outcome.left_out) == (tuple(honest), (liar,))
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(honest))
    assert not cohort.stops


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_whoever_is_in_dispute_no_sum_is_wrong(parties, count, stays):
    """A dealer that spoils some shares, and masks or not: a right sum without it, or none, before anything leaves."""
    cohort = parties()
    liar = cohort.nodes[5]
    targets = [node for node in cohort.nodes if node != liar][:count]
    server, drop = cohort.server(), {} if stays else {Stage.MASK: [liar]}
    lie = sealing_nonsense(cohort, {liar: targets})
    if count == 2 or (stays and count > 1):  # with 2, too few hold the key that takes its masks out
        with pytest.raises(Misbehaviour, match="do not open") as stopped:
            cohort.play(server, back=lie, drop=drop)
        assert (stopped.value.reason, stopped.value.culprit) == ("bad_delivery", liar)
        assert not cohort.revealed
        return
    outcome = cohort.play(server, back=lie, drop=drop)
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(outcome.survivors))
    assert len(outcome.survivors) == 6
    assert not cohort.stops


@pytest.mark.parametrize("accused", [1, 2])
def test_a_client_that_disputes_good_shares_is_left_out_itself(parties, accused):
    cohort = parties()
    liar, others = cohort.nodes[3], [cohort.nodes[place] for place in (0, 1, 2)][:accused]

    def dispute(stage, node, message):
        if stage is Stage.MASK and node == liar:
            client = cohort.clients[liar]
            unseal = client._unseal

            def refuse(sealed):
                if sealed.node in others:
                    raise Misbehaviour("bad_ciphertext", "so it says", sealed.node)
                return unseal(sealed)

            client._unseal = refuse
        return message

    outcome = cohort.play(cohort.server(), to=dispute)
    assert outcome.left_out == (liar,)
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(outcome.survivors))
    assert liar not in outcome.survivors


def test_a_dealer_that_gives_its_seed_itself_ends_no_sum(parties):
    """Its shares are of another secret; it is still there, reveals what it committed to, and is named."""
    cohort = parties()
    liar, seeds = cohort.nodes[4], {}

    def deal_another(stage, node, message):
        client = cohort.clients[liar]
        if stage is Stage.SHARE and node == liar:
            seeds[liar], client._seed = client._seed, bytearray(b"\3" * 32)
        if stage is Stage.MASK and node == liar:
            client._seed = seeds[liar]
        return message

    outcome = cohort.play(cohort.server(), to=deal_another)
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(cohort.nodes))
    assert outcome.bad_shares == (BadShare(liar, liar),)


@pytest.mark.parametrize("size", [7, 70])  # a complete graph, and a sparse one
def test_a_dealer_of_another_mask_key_that_then_leaves_ends_no_sum(parties, size):
    """No shares give its key back, and it is not there to be asked: each survivor gives the mask that both had."""
    cohort = parties(size)
    liar, own = cohort.nodes[4], {}

    def deal_another(stage, node, message):
        client = cohort.clients[liar]
        if stage is Stage.SHARE and node == liar:
            own["key"], client._mask_key = client._mask_key, Dealt(client._mask_key)
        return message

    outcome = cohort.play(cohort.server(), to=deal_another, drop={Stage.MASK: [liar]})
    survivors = [node for node in cohort.nodes if node != liar]
    assert outcome.survivors == tuple(survivors)
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(survivors))
    assert BadShare(liar, liar) in outcome.bad_shares


class Dealt:
    """A mask key whose shares are of another one."""

    def __init__(self, key):
        self.key = key

    def private_bytes_raw(self):
        return b"\5" * 32

    def __getattr__(self, name):
        return getattr(self.key, name)


def test_masks_of_others_than_dropped_out_are_refused(parties):
    cohort = parties()
    liar, gone = cohort.nodes[3], cohort.nodes[0]

    def lie(stage, node, reply):
        if stage is not Stage.UNMASK or node != liar:
            return reply
        shares, pairs = decode_reveal(reply, peek(reply)[1])
        return encode_reveal(peek(reply)[1], shares, [Pair(pair.node + 1, pair.seed) for pair in pairs])

    with pytest.raises(Misbehaviour, match="masks of others than dropped out") as refused:
        cohort.play(cohort.server(), back=lie, drop={Stage.MASK: [gone]})
    assert (refused.value.reason, refused.value.culprit) == ("wrong_shares", liar)


def wrong_reveals(cohort, liars, dealer):
    def lie(stage, node, reply):
        if stage is not Stage.UNMASK or node not in liars:
            return reply
        shares, pairs = decode_reveal(reply, peek(reply)[1])
        wrong = [Share(one.node, one.value ^ 5) if one.node == dealer else one for one in shares]
        return encode_reveal(peek(reply)[1], wrong, pairs)

    return lie


@pytest.mark.parametrize("dropped", [True, False])
def test_a_wrong_share_revealed_is_found_and_its_sender_named(parties, dropped):
    cohort = parties()  # t = 5 of 7
    dealer, liar = cohort.nodes[0], cohort.nodes[3]
    drop = {Stage.MASK: [dealer]} if dropped else {}
    outcome = cohort.play(cohort.server(), back=wrong_reveals(cohort, [liar], dealer), drop=drop)
    assert outcome.bad_shares == (BadShare(dealer, liar),)
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(outcome.survivors))


def test_a_wrong_share_with_none_to_spare_stops_the_session(parties):
    cohort = parties()
    server = cohort.server()
    lie = wrong_reveals(cohort, cohort.nodes[3:4], cohort.nodes[0])
    with pytest.raises(Misbehaviour, match="do not give it back") as stopped:
        cohort.play(server, back=lie, drop={Stage.UNMASK: cohort.nodes[:2]})
    assert (stopped.value.reason, stopped.value.culprit) == ("bad_share", None)
    assert server.stage is Stage.ABANDONED


def test_a_dealer_whose_shares_are_of_another_secret(parties):
    cohort = parties()
    liar = cohort.nodes[4]

    def deal_another(stage, node, message):
        if stage is Stage.SHARE and node == liar:
            cohort.clients[liar]._seed = bytearray(b"\3" * 32)
        return message

    outcome = cohort.play(cohort.server(), to=deal_another)  # they count, since it masked with that secret
    assert outcome.bad_shares == (BadShare(liar, liar),)
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(cohort.nodes))


def advert_with(cohort, liar, **changes):
    """A tamper on replies: the liar signs another advert than its own."""

    def lie(stage, node, reply):
        if stage is not Stage.ADVERTISE or node != liar:
            return reply
        client = cohort.clients[liar]
        client._advert = client._advert._replace(**changes)
        text = client._advert.signed_bytes(client._offer.digest)
        client._advert = client._advert._replace(signature=cohort.identities[liar].sign(text))
        return client._advert.encode(client._offer.digest)

    return lie


@pytest.mark.parametrize(("reason", "key"), [("weak_key", bytes(32)), ("repeated_key", None)])
def test_keys_that_are_none(parties, reason, key):
    cohort = parties()
    liar = cohort.nodes[-1]

    def lie(stage, node, reply):
        first = cohort.clients[cohort.nodes[0]]
        return advert_with(cohort, liar, mask_key=key or first._advert.share_key)(stage, node, reply)

    with pytest.raises(Misbehaviour) as stopped:
        cohort.play(cohort.server(), back=lie)
    assert (stopped.value.reason, stopped.value.culprit) == (reason, liar)


def test_clients_find_a_weak_key_themselves(parties, monkeypatch):
    monkeypatch.setattr("umbel.privacy.secagg.server.check_key", lambda *ignored: None)
    cohort = parties()
    liar = cohort.nodes[-1]
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(), back=advert_with(cohort, liar, share_key=bytes(32)))
    honest = cohort.nodes[:-1]
    assert {node: cohort.stops[node] for node in honest} == dict.fromkeys(honest, ("weak_key", liar))


def test_an_identity_that_is_not_the_nodes(parties):
    cohort = parties()
    one, other = cohort.nodes[:2]
    cohort.identities[one] = cohort.identities[other]
    with pytest.raises(ConfigError, match=f"node {one}"):
        cohort.client(one)


def test_a_commitment_binds_offer_and_node():
    made = {
        commitment(offer, node, seed) for offer in (b"a" * 32, b"b" * 32) for node in (1, 2) for seed in (b"s", b"t")
    }
    assert len(made) == 8


def test_clients_find_a_repeated_key_themselves(parties):
    cohort = parties()
    liar = cohort.nodes[-1]
    server = cohort.server()
    adverts = {}
    for node, message in server.advance().items():
        adverts[node] = Advert.decode(cohort.clients[node].answer(message), server._offer.digest)
    adverts[liar] = adverts[liar]._replace(mask_key=adverts[cohort.nodes[0]].mask_key)
    signature = cohort.identities[liar].sign(adverts[liar].signed_bytes(server._offer.digest))
    adverts[liar] = adverts[liar]._replace(signature=signature)
    roll = Roll(6, 5, tuple(adverts.values())).encode(server._offer.digest)
    for node in cohort.nodes:
        with pytest.raises(Misbehaviour) as stopped:
            cohort.clients[node].answer(roll)
        assert (stopped.value.reason, stopped.value.culprit) == ("repeated_key", SERVER)


CHANGED_REPLIES = {
    "other_node": (Stage.ADVERTISE, None),
    "wrong_receivers": (Stage.SHARE, changed_list(Kind.SHARES, lambda node, items: items[1:])),
    "wrong_signature": (
        Stage.SHARE,
        changed_list(Kind.SHARES, lambda node, items: [items[0]._replace(signature=bytes(64)), *items[1:]]),
    ),
    "wrong_shares": (Stage.UNMASK, changed_list(Kind.REVEAL, lambda node, items: items[1:])),
}


@pytest.mark.parametrize("reason", CHANGED_REPLIES)
def test_replies_that_an_honest_server_refuses(parties, reason):
    cohort = parties()
    liar = cohort.nodes[2]
    at, tamper = CHANGED_REPLIES[reason]

    def lie(stage, node, reply):
        if stage is not at or node != liar:
            return reply
        return tamper(node, reply) if tamper else cohort.replies[at, cohort.nodes[0]]

    with pytest.raises(Misbehaviour) as stopped:
        cohort.play(cohort.server(), back=lie)
    assert (stopped.value.reason, stopped.value.culprit) == (reason, liar)


def test_a_consent_to_another_list(parties):
    cohort = parties()
    liar = cohort.nodes[2]

    def lie(stage, node, reply):
        return reply[:40] + bytes(64) if stage is Stage.CONSISTENCY and node == liar else reply

    with pytest.raises(Misbehaviour) as stopped:
        cohort.play(cohort.server(), back=lie)
    assert (stopped.value.reason, stopped.value.culprit) == ("wrong_signature", liar)


def test_shares_that_are_no_field_elements(parties):
    cohort = parties()
    liar = cohort.nodes[1]

    def deal_too_large(stage, node, message):
        if stage is Stage.MASK and node != liar:
            bound = peek(message)[1]
            session, peer = cohort.clients[liar]._session, node
            route = session.route(liar, peer)
            key = seal_key(session, cohort.clients[liar]._agree(peer), route)
            forged = AESGCM(key).encrypt(bytes(12), b"\xff" * 99, route)
            signature = cohort.identities[liar].sign(session.sealed_text(liar, peer, bytes(32), forged))
            bad = Sealed(liar, forged, bytes(32), signature)
            items = [bad if item.node == liar else item for item in decode_list(Kind.DELIVERY, message, bound)]
            return encode_list(Kind.DELIVERY, bound, items)
        return message

    # The liar answers no more, so its keys are still there.
    outcome = cohort.play(cohort.server(), to=deal_too_large, drop={Stage.MASK: [liar]})
    assert outcome.left_out == (liar,)
