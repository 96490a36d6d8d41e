"""A lying server's moves: every honest client stops with the reason, and no share leaves."""

import dataclasses

import numpy as np
import pytest

from umbel.privacy.secagg import (
    SERVER,
    BelowThreshold,
    FixedPoint,
    MalformedMessage,
    Misbehaviour,
    Roster,
    SecAggAbort,
    Server,
    Stage,
)
from umbel.privacy.secagg.messages import (
    Consent,
    Kind,
    Offer,
    Roll,
    Share,
    decode_list,
    decode_reveal,
    encode_list,
    encode_survivors,
    peek,
)
from umbel.privacy.secagg.session import commitment


def changed_list(kind, change):
    """A tamper that changes the items of a list."""

    def tamper(node, message):
        bound = peek(message)[1]
        return encode_list(kind, bound, change(node, decode_list(kind, message, bound)))

    return tamper


def only(stage, change):
    """A tamper that changes the messages of one stage."""
    return lambda at, node, message: change(node, message) if at is stage else message


def everyone_stops(cohort, reason, culprit, tamper):
    """Play with a tamper on what clients get: all stop for this reason, and nobody's shares leave."""
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(), to=tamper)
    assert cohort.stops == dict.fromkeys(cohort.nodes, (reason, culprit))
    assert not cohort.revealed
    for client in cohort.clients.values():
        assert client.stage is Stage.ABANDONED
        with pytest.raises(Misbehaviour, match="abandoned"):
            client.answer(cohort.sent[Stage.ADVERTISE, client.node])


def changed_roll(change):
    def tamper(node, message):
        bound = peek(message)[1]
        return change(Roll.decode(message, bound)).encode(bound)

    return only(Stage.SHARE, tamper)


def with_advert(place, **changes):
    def change(roll):
        adverts = list(roll.adverts)
        adverts[place] = adverts[place]._replace(**changes)
        return roll._replace(adverts=tuple(adverts))

    return changed_roll(change)


@pytest.mark.parametrize("field", ["mask_key", "share_key", "commitment", "signature"])
def test_an_advert_that_its_node_did_not_sign(parties, field):
    size = 64 if field == "signature" else 32
    everyone_stops(parties(), "wrong_signature", SERVER, with_advert(2, **{field: b"\7" * size}))


def test_an_invented_client(parties):
    everyone_stops(parties(), "not_in_roster", SERVER, with_advert(6, node=10_000))


def test_a_lowered_threshold(parties):
    everyone_stops(parties(), "lowered_threshold", SERVER, changed_roll(lambda roll: roll._replace(threshold=4)))


def test_a_thinned_graph(parties):
    everyone_stops(parties(), "lowered_threshold", SERVER, changed_roll(lambda roll: roll._replace(degree=4)))


def test_too_few_clients_for_the_clients_own_floor(parties):
    cohort = parties(5)
    cohort.enter(minimum_clients=6)
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server())
    assert cohort.stops == dict.fromkeys(cohort.nodes, ("below_threshold", None))
    assert {stage for stage, _ in cohort.replies} == {Stage.ADVERTISE}


def test_too_few_survivors_for_the_clients_own_floor(parties):
    cohort = parties()
    cohort.enter(minimum_clients=6)
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(), drop={Stage.MASK: cohort.nodes[:2]})
    assert cohort.stops == dict.fromkeys(cohort.nodes[2:], ("below_threshold", None))
    assert not cohort.revealed


def test_a_client_left_out_of_its_own_roll(parties):
    cohort = parties()
    server = cohort.server()
    for node, message in server.advance().items():
        server.receive(node, cohort.clients[node].answer(message))
    message = next(iter(server.advance().values()))
    bound = peek(message)[1]
    roll = Roll.decode(message, bound)
    with pytest.raises(Misbehaviour) as stopped:
        cohort.clients[cohort.nodes[0]].answer(Roll(5, 4, roll.adverts[1:]).encode(bound))
    assert (stopped.value.reason, stopped.value.culprit) == ("wrong_advert", SERVER)


@pytest.mark.parametrize(
    ("reason", "terms"),
    [
        ("other_model", {"model": b"\1" * 32}),
        ("other_parameters", {"length": 32}),
        ("other_parameters", {"encoding": FixedPoint(2.0, clients=4096)}),
    ],
)
def test_terms_that_are_not_the_clients(parties, reason, terms):
    cohort = parties()
    if "length" in terms:
        cohort.values = {node: values[:32] for node, values in cohort.values.items()}
    cohort.enter(**terms)
    everyone_stops(cohort, reason, SERVER, None)


def test_another_roster(parties):
    cohort = parties()
    *members, last = cohort.terms.roster.members
    cohort.enter(roster=Roster((*members, last._replace(owner="somebody else"))))
    everyone_stops(cohort, "other_roster", SERVER, None)


@pytest.mark.parametrize("change", [{"run": "other"}, {"round": 9}, {"attempt": 9}])
def test_an_offer_of_another_round_to_one_client(parties, change):
    cohort = parties()
    last = cohort.nodes[-1]

    def lie_to_one(node, message):
        return Offer.decode(message)._replace(**change).encode() if node == last else message

    with pytest.raises(MalformedMessage, match="another session") as stopped:
        cohort.play(cohort.server(), to=only(Stage.ADVERTISE, lie_to_one))
    assert stopped.value.culprit == last  # what it signed for that offer is of no use in this one


def test_swapped_ciphertexts(parties):
    def swap(node, message):
        bound = peek(message)[1]
        one, other, *rest = decode_list(Kind.DELIVERY, message, bound)
        swapped = [one._replace(node=other.node), other._replace(node=one.node)]
        return encode_list(Kind.DELIVERY, bound, [*sorted(swapped), *rest])

    everyone_stops(parties(), "wrong_signature", SERVER, only(Stage.MASK, swap))


def test_shares_of_another_receiver(parties):
    kept = {}

    def pass_on(node, message):
        bound = peek(message)[1]
        shares = decode_list(Kind.DELIVERY, message, bound)
        kept.setdefault("first", {sealed.node: sealed for sealed in shares})
        return encode_list(Kind.DELIVERY, bound, [kept["first"].get(s.node, s) for s in shares])

    cohort = parties()
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(), to=only(Stage.MASK, pass_on))
    assert cohort.stops == dict.fromkeys(cohort.nodes[1:], ("wrong_signature", SERVER))


def flags_without(cohort, *missing):
    return lambda node, message: encode_survivors(
        peek(message)[1], [one not in missing and one != (node if "me" in missing else None) for one in cohort.nodes]
    )


def test_survivors_without_the_client_itself(parties):
    cohort = parties()
    everyone_stops(cohort, "forged_survivors", SERVER, only(Stage.CONSISTENCY, flags_without(cohort, "me")))


def test_too_few_survivors(parties):
    cohort = parties()
    tamper = only(Stage.CONSISTENCY, flags_without(cohort, *cohort.nodes[:3]))
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(), to=tamper)
    stops = dict.fromkeys(cohort.nodes[:3], ("forged_survivors", SERVER))
    assert cohort.stops == stops | dict.fromkeys(cohort.nodes[3:], ("below_threshold", None))


def test_survivors_that_never_shared(parties):
    cohort = parties()
    with pytest.raises(BelowThreshold):
        cohort.play(
            cohort.server(), to=only(Stage.CONSISTENCY, flags_without(cohort)), drop={Stage.SHARE: cohort.nodes[:1]}
        )
    assert cohort.stops == dict.fromkeys(cohort.nodes[1:], ("forged_survivors", SERVER))
    assert not cohort.revealed


class SplitView(Server):
    """Tells each half of the clients another list of survivors, to get both secrets of the last client."""

    def _survivor_lists(self):
        lists = super()._survivor_lists()
        self.half = self._survivors[: len(self._survivors) // 2]
        flags = [node != self._survivors[-1] for node in self._session.nodes]
        return lists | dict.fromkeys(self.half, encode_survivors(self._session.digest, flags))

    def _take_consent(self, node, reply):
        self._consents[node] = Consent(node, reply[40:])


@pytest.mark.parametrize("withhold", [False, True])
def test_a_split_view_of_the_survivors(parties, withhold):
    class Withholding(SplitView):
        def _consent_lists(self):
            lists = super()._consent_lists()
            for node, message in lists.items():
                consents = decode_list(Kind.CONSENTS, message, self._session.digest)
                agreeing = [one for one in consents if (one.node in self.half) == (node in self.half)]
                agreeing = [one for one in agreeing if node not in self.half or one.node != self._survivors[-1]]
                lists[node] = encode_list(Kind.CONSENTS, self._session.digest, agreeing)
            return lists

    cohort = parties()
    lying = (Withholding if withhold else SplitView)(cohort.terms, cohort.nodes, "run", 1, 1, 1_700_000_000)
    with pytest.raises(BelowThreshold):
        cohort.play(lying)
    assert sorted(cohort.stops) == cohort.nodes
    assert set(cohort.stops.values()) <= (
        {("below_threshold", None)} if withhold else {("wrong_signature", SERVER), ("forged_survivors", SERVER)}
    )
    assert not cohort.revealed


def test_a_forged_consent(parties):
    def forge(node, message):
        bound = peek(message)[1]
        first, *rest = decode_list(Kind.CONSENTS, message, bound)
        return encode_list(Kind.CONSENTS, bound, [first._replace(signature=b"\1" * 64), *rest])

    everyone_stops(parties(), "wrong_signature", SERVER, only(Stage.UNMASK, forge))


def test_one_consent_too_few(parties):
    def withhold(node, message):
        bound = peek(message)[1]
        return encode_list(Kind.CONSENTS, bound, decode_list(Kind.CONSENTS, message, bound)[:4])

    everyone_stops(parties(), "below_threshold", None, only(Stage.UNMASK, withhold))


def test_a_session_offered_again(parties):
    cohort = parties()
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(), drop={Stage.MASK: cohort.nodes[:3]})
    cohort.enter()  # fresh clients of the same nodes
    everyone_stops(cohort, "replayed_session", SERVER, None)
    cohort.stops, cohort.replies = {}, {}
    cohort.enter()
    outcome = cohort.play(cohort.server(attempt=2))  # a true retry of the abandoned round is fine
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(cohort.nodes))


def test_a_second_unmask_of_a_round(parties):
    cohort = parties()
    cohort.play(cohort.server())
    for stage in (Stage.CONSISTENCY, Stage.UNMASK):  # within the session
        for node in cohort.nodes:
            with pytest.raises(Misbehaviour) as stopped:
                cohort.clients[node].answer(cohort.sent[stage, node])
            assert (stopped.value.reason, stopped.value.culprit) == ("second_unmask", SERVER)
    cohort.enter()
    cohort.replies = {}
    with pytest.raises(BelowThreshold):  # and by another attempt
        cohort.play(cohort.server(attempt=2))
    assert cohort.stops == dict.fromkeys(cohort.nodes, ("second_unmask", SERVER))
    assert not cohort.replies


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.CONSISTENCY, Stage.UNMASK])
def test_messages_of_an_older_session(parties, stage):
    old = parties()
    old.play(old.server())
    cohort = parties()
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(round=2), to=only(stage, lambda node, message: old.sent[stage, node]))
    assert cohort.stops == dict.fromkeys(cohort.nodes, ("replayed_session", SERVER))


def test_more_clients_than_the_ring_holds(parties):
    cohort = parties()
    server = cohort.server()
    for client in cohort.clients.values():  # the server alone believes in a larger ring
        client._terms = dataclasses.replace(client._terms, encoding=FixedPoint(1.0, clients=6))
        client._terms.__dict__["offer"] = cohort.terms.offer
    with pytest.raises(BelowThreshold):
        cohort.play(server)
    assert cohort.stops == dict.fromkeys(cohort.nodes, ("too_many_clients", SERVER))


def test_too_few_deliveries(parties):
    few = changed_list(Kind.DELIVERY, lambda node, items: items[:3])
    everyone_stops(parties(), "below_threshold", None, only(Stage.MASK, few))


def test_a_delivery_from_the_client_itself(parties):
    own = changed_list(Kind.DELIVERY, lambda node, items: sorted([items[0]._replace(node=node), *items[1:]]))
    everyone_stops(parties(), "wrong_delivery", SERVER, only(Stage.MASK, own))


def test_consents_of_clients_that_have_no_say(parties):
    cohort = parties()
    stranger = cohort.nodes[0]
    add = changed_list(Kind.CONSENTS, lambda node, items: [items[0]._replace(node=stranger), *items])
    with pytest.raises(BelowThreshold):
        cohort.play(cohort.server(), to=only(Stage.UNMASK, add), drop={Stage.MASK: [stranger]})
    assert cohort.stops == dict.fromkeys(cohort.nodes[1:], ("forged_survivors", SERVER))
    assert not cohort.revealed


def test_survivors_too_few_around_one_client_of_a_harary_graph(parties):
    cohort = parties(70, length=3)
    victim = cohort.nodes[0]

    def isolate(node, message):
        around = cohort.clients[node]._session.neighbours(victim)[:8]  # of 17 holders, 9 are left; t = 11
        return encode_survivors(peek(message)[1], [one not in around for one in cohort.nodes])

    with pytest.raises(SecAggAbort):
        cohort.play(cohort.server(), to=only(Stage.CONSISTENCY, isolate))
    assert cohort.stops[victim] == ("below_threshold", None)
    assert not cohort.revealed


def test_each_client_reveals_one_secret_of_each_and_the_right_one(parties):
    cohort = parties()
    dropped = cohort.nodes[3]
    dealt = {}

    def note(stage, node, message):
        if stage is Stage.CONSISTENCY:
            dealt[node] = dict(cohort.clients[node]._held)
        return message

    cohort.play(cohort.server(), to=note, drop={Stage.MASK: [dropped]})
    for node, held in dealt.items():
        reply = cohort.replies[Stage.UNMASK, node]
        revealed, pairs = decode_reveal(reply, peek(reply)[1])
        assert [pair.node for pair in pairs] == [dropped] * (dropped in held)  # and no mask of who survived
        expected = {peer: Share(peer, pair[0] if peer == dropped else pair[1]) for peer, pair in held.items()}
        own = revealed.pop([share.node for share in revealed].index(node))  # its own seed, whole
        advert = cohort.clients[node]._session.adverts[node]
        assert commitment(cohort.clients[node]._offer.digest, node, own.value.to_bytes(32, "big")) == advert.commitment
        assert revealed == [expected[peer] for peer in sorted(held) if peer != node]
