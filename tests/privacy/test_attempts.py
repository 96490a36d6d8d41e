"""A hidden sum that one client spoils is tried again without it: a few times, and never once it was revealed."""

import numpy as np
import pytest

from umbel.core.random import Key
from umbel.core.sums import Meeting
from umbel.core.types import NOTHING, ClientUpdate, Failure, Shape
from umbel.privacy import SecureSum
from umbel.privacy.remote import MOST_ATTEMPTS
from umbel.privacy.secagg import shamir

CLIENTS, SIZE = 9, 5
HIDDEN = SecureSum(limit=16.0, metrics=())


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kits")
    HIDDEN.provision(folder / "server", {number: folder / f"c{number}" for number in range(CLIENTS)})
    return folder


class Round:
    """A round's parties; `liars` seal shares for some others that do not open, in every attempt that they are in."""

    def __init__(self, kits, home, liars):
        meeting = Meeting("run", 1, CLIENTS, Shape(SIZE, 0), bytes(32), 2)
        self.session = HIDDEN.server(meeting, range(CLIENTS), kits / "server")
        self.clients = {c: HIDDEN.client(meeting, c, kits / f"c{c}", home / str(c)) for c in range(CLIENTS)}
        self.liars, self.failures, self.sent, self.asked = set(liars), {}, [], 0

    def play(self):
        """The total; every message to client 0 is kept."""
        while messages := self.session.advance():
            self.sent.append(messages.get(0))
            for client, message in messages.items():
                half = self.clients[client]
                if len(self.sent) == 1:
                    assert half.check(message) is None
                    half.provide(ClientUpdate(np.full(SIZE, client, np.float32), NOTHING, 1.0, {}), Key.fresh())
                reply = self.answer(client, half, message)
                if isinstance(reply, Failure):
                    self.failures[client] = reply
                elif (failure := self.session.receive(client, reply)) is not None:
                    self.failures[client] = failure
        return self.session.total()

    def answer(self, client, half, message):
        inner = half._client
        if client in self.liars and inner.stage.name == "SHARE":
            honest = inner._agree
            inner._agree = lambda peer: bytes(32) if peer < 3 else honest(peer)
            reply = half.answer(message)
            inner._agree = honest
            return reply
        return half.answer(message)


def test_who_spoils_a_sum_is_left_out_of_the_next_attempt_and_named(kits, tmp_path):
    played = Round(kits, tmp_path, liars=[4])
    total = played.play()
    assert set(played.session.left_out) == {4}
    assert played.session.left_out[4].reason == "bad_delivery"
    assert 4 not in played.session.counted
    np.testing.assert_allclose(total.delta, sum(played.session.counted), atol=CLIENTS * HIDDEN.step)
    assert total.clients == CLIENTS - 1


def test_a_client_has_no_part_in_one_attempt_too_many(kits, tmp_path):
    played = Round(kits, tmp_path, liars=[])
    session, client = played.session, played.clients[0]
    assert client.check(session.advance()[0]) is None
    client.provide(ClientUpdate(np.zeros(SIZE, np.float32), NOTHING, 1.0, {}), Key.fresh())
    answers = []
    for attempt in range(1, MOST_ATTEMPTS + 2):
        session._attempt = attempt
        answers.append(client.answer(session._begin().advance()[0]))
    assert [isinstance(answer, Failure) for answer in answers] == [False] * MOST_ATTEMPTS + [True]


def test_no_attempt_follows_a_sum_that_was_revealed(kits, tmp_path):
    """The server that asks for one more, without one client, would read that client's update in the difference."""
    played = Round(kits, tmp_path, liars=[])
    played.play()
    session = played.session
    session._cohort.remove(3)
    session._attempt = 2
    offer = session._begin().advance()[0]
    found = played.clients[0].answer(offer)
    assert isinstance(found, Failure)
    assert found.reason in ("replayed_session", "second_unmask")


def test_a_client_that_has_left_an_attempt_reveals_nothing_of_it(kits, tmp_path):
    played = Round(kits, tmp_path, liars=[4])
    played.play()
    first = next(index for index, message in enumerate(played.sent) if index and message[5] == played.sent[0][5])
    older = played.sent[first - 1]  # the last message of the first attempt
    assert isinstance(played.clients[0].answer(older), Failure)


def wrong_points(inner):
    """Have a client seal shares of no secret, for everybody."""
    seal = inner._seal
    inner._seal = lambda peer, shares: seal(peer, [shares[0], (shares[1] + 3 ** (peer + 1)) % shamir.PRIME, shares[2]])


def another_seed(inner):
    """Have a client deal shares of another seed than the one that it masks with."""
    inner._seed = type(inner._seed)(32)


class Dealing(Round):
    """A round whose `liars` deal wrongly, and leave once they have signed the list of survivors."""

    def __init__(self, kits, home, liars, how):
        super().__init__(kits, home, liars)
        self.how = how

    def answer(self, client, half, message):
        inner = half._client
        if client not in self.liars:
            return half.answer(message)
        if inner.stage.name == "UNMASK":
            return Failure(client, "gone", "")
        if inner.stage.name == "SHARE":
            own = inner._seed
            self.how(inner)
            reply = half.answer(message)
            inner._seed = own
            return reply
        return half.answer(message)


@pytest.mark.parametrize("liars", [[4], [0, 7]])
def test_a_dealer_of_no_secret_that_leaves_before_it_reveals_is_left_out_of_the_next_attempt(kits, tmp_path, liars):
    played = Dealing(kits, tmp_path, liars, wrong_points)
    total = played.play()
    reasons = {client: one.reason for client, one in played.session.left_out.items()}
    assert reasons == dict.fromkeys(liars, "bad_dealing")
    assert played.session.counted == tuple(client for client in range(CLIENTS) if client not in liars)
    np.testing.assert_allclose(total.delta, sum(played.session.counted), atol=CLIENTS * HIDDEN.step)


def test_a_dealer_of_another_seed_that_leaves_before_it_reveals_spoils_one_round_and_is_named(kits, tmp_path):
    """What it deals is a secret's, so that it shows only when shares have left: no other attempt can be made."""
    played = Dealing(kits, tmp_path, [4], another_seed)
    assert played.play().clients == 0
    assert played.session.is_spoiled
    assert set(played.session.left_out) == {4}


def test_a_sum_of_larger_numbers_than_updates_have_counts_nobody(kits, tmp_path):
    played = Round(kits, tmp_path, liars=[])
    played.session.advance()
    played = Round(kits, tmp_path / "again", liars=[])
    honest = played.answer

    def garbage(client, half, message):
        if client == 4 and half._client.stage.name == "MASK":
            half._client._values[:] = 2**31 - 1
        return honest(client, half, message)

    played.answer = garbage
    assert played.play().clients == 0
    assert played.session.left_out == {}  # whose numbers they are, masks hide
