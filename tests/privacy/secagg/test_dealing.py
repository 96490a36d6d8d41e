"""What clients deal is checked while nothing is revealed: shares of no secret end no sum, and the check tells none."""

import numpy as np
import pytest

from umbel.privacy.secagg import SERVER, Misbehaviour, Stage, dealing, shamir
from umbel.privacy.secagg.messages import Kind, Share, decode_list, decode_masked, encode_list, encode_masked, peek

PLACES = {"key": 0, "seed": 1, "blind": 2}


def dealing_wrong(cohort, dealer, place, receivers):
    """Have a dealer seal, and sign, a share of no secret for each of the receivers."""
    client = cohort.clients[dealer]
    seal = client._seal

    def wrong(peer, shares):
        shares = list(shares)
        shares[place] = (
            (shares[place] + pow(3, peer, shamir.PRIME)) % shamir.PRIME if peer in receivers else shares[place]
        )
        return seal(peer, shares)

    client._seal = wrong


def telling_wrong(cohort, holder, dealers):
    """A tamper on replies: a holder tells other points than it has of what the dealers dealt."""

    def lie(stage, node, reply):
        if stage is not Stage.MASK or node != holder:
            return reply
        session, size = peek(reply)[1], cohort.values[node].nbytes
        body, told, _ = decode_masked(reply, session, size)
        return encode_masked(session, body, [Share(n, v ^ 1) if n in dealers else Share(n, v) for n, v in told])

    return lie


@pytest.mark.parametrize("size", [7, 70])  # a complete graph, and a sparse one
@pytest.mark.parametrize("place", PLACES)
def test_a_dealer_of_shares_that_are_of_no_secret_is_named_before_anything_is_revealed(parties, size, place):
    """It signs the list of survivors and leaves; its shares would not have given its seed back."""
    cohort = parties(size)
    liar = cohort.nodes[4]
    dealing_wrong(cohort, liar, PLACES[place], cohort.nodes)
    with pytest.raises(Misbehaviour) as stopped:
        cohort.play(cohort.server(), drop={Stage.UNMASK: [liar]})
    assert (stopped.value.reason, stopped.value.culprit, stopped.value.others) == ("bad_dealing", liar, ())
    assert not cohort.revealed


def test_all_dealers_of_no_secret_are_named_together(parties):
    cohort = parties(10)
    liars = cohort.nodes[2:4]
    for liar in liars:
        dealing_wrong(cohort, liar, 1, cohort.nodes)
    with pytest.raises(Misbehaviour) as stopped:
        cohort.play(cohort.server())
    assert {stopped.value.culprit, *stopped.value.others} == set(liars)


def test_a_few_wrong_shares_do_no_harm(parties):
    cohort = parties()  # t = 5 of 7: one may be wrong
    liar = cohort.nodes[4]
    dealing_wrong(cohort, liar, 1, cohort.nodes[:1])
    outcome = cohort.play(cohort.server(), drop={Stage.UNMASK: [liar]})
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(cohort.nodes))


def test_a_holder_that_lies_of_others_shares_is_named_itself(parties):
    cohort = parties(4)  # t = 3 of 4: no share may be wrong
    liar, *others = cohort.nodes
    with pytest.raises(Misbehaviour) as stopped:
        cohort.play(cohort.server(), back=telling_wrong(cohort, liar, others))
    assert (stopped.value.culprit, stopped.value.others) == (liar, ())


def test_a_holder_that_lies_of_one_dealer_after_another_is_found_out():
    assert dealing.culprits({(1, 2)}) == [2]  # who of the two lies cannot be told
    assert dealing.culprits({(1, 3)}, before={(1, 2)}) == [1]


@pytest.mark.parametrize("change", [lambda told: told[1:], lambda told: [Share(n + 1, v) for n, v in told]])
def test_points_of_others_than_the_client_holds_are_refused(parties, change):
    cohort = parties()

    def lie(stage, node, reply):
        if stage is not Stage.MASK:
            return reply
        body, told, _ = decode_masked(reply, peek(reply)[1], cohort.values[node].nbytes)
        return encode_masked(peek(reply)[1], body, change(told))

    with pytest.raises(Misbehaviour) as refused:
        cohort.play(cohort.server(), back=lie)
    assert refused.value.reason == "wrong_points"


def test_a_server_that_has_a_dealing_hashed_otherwise_is_found_by_all(parties):
    """With a challenge of its choice for each holder, it would have points that add up to a secret."""
    cohort = parties()

    def other(stage, node, message):
        if stage is not Stage.MASK:
            return message
        bound = peek(message)[1]
        items = [one._replace(dealing=bytes(32)) for one in decode_list(Kind.DELIVERY, message, bound)]
        return encode_list(Kind.DELIVERY, bound, items)

    with pytest.raises(Exception, match="sent their masked vectors"):
        cohort.play(cohort.server(), to=other)
    assert cohort.stops == dict.fromkeys(cohort.nodes, ("wrong_signature", SERVER))


def test_points_are_as_likely_whatever_the_secrets_are():
    """Of any other two secrets there is a blind, as likely as the first, that gives the very same points."""
    c, points = dealing.challenge(bytes(32), 3, b"d" * 32), range(1, 8)

    def deal(first):
        return shamir.split(bytes([first]) * 32, 5, points, lambda size: np.random.default_rng(first).bytes(size))

    key, seed, blind, another_key, another_seed = map(deal, range(1, 6))
    told = [dealing.point(c, *shares) for shares in zip(key, seed, blind, strict=True)]
    other = [
        (r + c * (k - k2) + c * c * (s - s2)) % shamir.PRIME
        for r, k, k2, s, s2 in zip(blind, key, another_key, seed, another_seed, strict=True)
    ]
    assert shamir.is_one_polynomial(dict(zip(points, other, strict=True)), 5)
    assert told == [dealing.point(c, *shares) for shares in zip(another_key, another_seed, other, strict=True)]


@pytest.mark.parametrize(("count", "threshold"), [(3, 2), (7, 5), (17, 12), (5, 5)])
def test_points_off_a_polynomial_are_told(count, threshold):
    points = dict(enumerate(shamir.split(b"s" * 32, threshold, range(1, count + 1), np.random.bytes), 1))
    assert shamir.is_one_polynomial(points, threshold)
    points[2] ^= 1
    assert shamir.is_one_polynomial(points, threshold) == (count == threshold)
    assert shamir.is_one_polynomial(points, threshold + 1) == (count <= threshold + 1)
