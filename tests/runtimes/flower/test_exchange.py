"""Which of a client's replies counts, when uploads stop half-way and messages are sent again."""

import itertools
import time
import types
from functools import partial

import pytest
from flwr.app import ConfigRecord, Error, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from umbel.core.types import Failure
from umbel.runtimes.flower import exchange as exchanges
from umbel.runtimes.flower.exchange import CRASHED, GONE, Exchange, Late
from umbel.runtimes.flower.mail import Envelope

SECONDS = 2.0  # of a round
STALLED_SECONDS = 0.2


class Link:
    """Nodes and their mail. plan: what becomes of each client's messages, one after the other: "whole", a reply;
    "half", one whose upload stops; "none"; "lost", the message; or an error."""

    def __init__(self, **plan):
        self.plan = {int(name[1:]): iter(fates) for name, fates in plan.items()}
        self.of = {client: client for client in self.plan}
        self.numbers, self.there, self.asked, self.refused = itertools.count(), {}, [], []
        self.is_cut, self.moved, self.dropped = False, set(), []

    def gather(self, cohort):
        return set()

    def refresh(self):
        moved, self.moved = self.moved, set()
        return moved

    def was_cut(self):
        was, self.is_cut = self.is_cut, False
        return was

    def push(self, messages):
        return [self._fate(message) for message in messages]

    def _fate(self, message):
        client, identifier = message.metadata.dst_node_id, str(next(self.numbers))
        self.asked.append(client)
        fate = next(self.plan[client])
        if isinstance(fate, int):
            error = Error(fate, "of Flower's")
            self.there[identifier] = Envelope(identifier, error, lambda max_bytes, wait: error)
        elif fate in ("whole", "half"):
            opened, drop = opener(f"{client}: {identifier}", fate == "whole"), partial(self.dropped.append, identifier)
            self.there[identifier] = Envelope(identifier, None, opened, drop)
        return "" if fate == "lost" else identifier

    def look(self, identifiers, seconds=0.0):
        found = [self.there.pop(one) for one in identifiers if one in self.there]
        time.sleep(0 if found else min(seconds, 0.05))
        return found

    def refuse(self, identifiers):
        self.refused += identifiers
        return identifiers


def opener(reply, is_whole):
    def open_it(max_bytes, wait):
        began = time.monotonic()
        while not is_whole:
            wait(time.monotonic() - began)
        return reply

    return open_it


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(exchanges, "STALLED_SECONDS", STALLED_SECONDS)
    monkeypatch.setattr(exchanges, "NODES_SECONDS", 0.1)
    monkeypatch.setattr(exchanges, "AWAY_SECONDS", 0.8)
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


@pytest.fixture
def collect():
    """Play an exchange with every client of a link; what its replies are. changes: of the link, by look."""

    def play(link, changes=types.MappingProxyType({}), in_order=True):
        looks, late = itertools.count(), Late(link)
        first = link.look

        def look(identifiers, seconds=0.0):
            vars(link).update(changes.get(next(looks), {}))
            return first(identifiers, seconds)

        link.look = look
        content = RecordDict({"order": ConfigRecord({"round": 1})})
        with Exchange(link, link, late, "train", SECONDS) as exchange:
            exchange.ask(dict.fromkeys(link.of, content), 100, "round 1")
            replies = {
                client: reply.reason if isinstance(reply, Failure) else reply
                for client, reply in exchange.replies(in_order)
            }
        late.refuse()
        return replies

    return play


def test_an_upload_that_stopped_with_the_superlink_is_asked_for_again(collect):
    """Also where its first objects had come; the reply that is whole counts, and who was done is not asked."""
    link = Link(c0=["whole"], c1=["half", "whole"], c2=["none", "whole"])
    assert collect(link, {2: {"is_cut": True}}) == {0: "0: 0", 1: "1: 4", 2: "2: 3"}
    assert link.asked == [0, 1, 2, 2, 1]
    assert link.refused == ["2"]  # should it still come


def test_what_is_never_read_is_let_go(collect):
    """Of a try whose reply was not whole when another's came, and of a round that needs no more replies."""
    link = Link(c0=["half", "whole"])
    assert collect(link, {2: {"is_cut": True}}) == {0: "0: 1"}
    assert link.dropped == ["0"]
    link, late = Link(c0=["whole"], c1=["whole"]), Late(Link())
    content = RecordDict({"order": ConfigRecord({"round": 1})})
    with Exchange(link, link, late, "train", SECONDS) as exchange:
        exchange.ask(dict.fromkeys(link.of, content), 100, "round 1")
        assert next(exchange.replies()) == (0, "0: 0")
    assert link.dropped == ["1"]


def test_an_upload_that_stopped_with_its_node_is_asked_for_again(collect):
    link = Link(c0=["half", "whole"])
    assert collect(link, {2: {"moved": {0}}}) == {0: "0: 1"}


def test_an_upload_that_stops_for_no_reason_is_waited_for_until_the_deadline(collect):
    link, began = Link(c0=["half"], c1=["whole"]), time.monotonic()
    assert collect(link) == {0: "timeout", 1: "1: 1"}
    assert SECONDS <= time.monotonic() - began < SECONDS + 5
    assert link.asked == [0, 1]


def test_a_slow_upload_holds_up_nobody_whose_turn_it_need_not_be(collect):
    """In any order, whoever is whole comes first; the others are read on in turn until the time is up."""
    replies = collect(Link(c0=["half"], c1=["half"], c2=["whole"], c3=["whole"]), in_order=False)
    assert list(replies)[:2] == [2, 3]
    assert replies == {2: "2: 2", 3: "3: 3", 0: "timeout", 1: "timeout"}


def test_a_client_that_cannot_be_asked_again_may_still_answer(collect):
    """It is not connected yet when the SuperLink is back, and has the message of before."""
    link, reply = Link(c0=["none", "lost"], c1=["lost"]), Envelope("0", None, opener("0: 0", True))
    assert collect(link, {2: {"is_cut": True}, 9: {"there": {"0": reply}}}) == {0: "0: 0", 1: "unreachable"}


@pytest.mark.parametrize(("fates", "counts"), [([CRASHED, "whole"], "0: 1"), ([CRASHED, CRASHED, "whole"], None)])
def test_a_process_that_dies_is_asked_once_more_and_no_oftener(collect, fates, counts):
    link = Link(c0=fates)
    assert collect(link)[0] == (counts or Error(CRASHED, "of Flower's"))
    assert link.asked == [0, 0]


def test_a_node_that_has_left_is_given_a_moment_to_come_back(collect):
    """One that is started again is asked again; one that is not has failed, long before the deadline."""
    began = time.monotonic()
    replies = collect(Link(c0=[GONE, "whole"], c1=[GONE]), {2: {"moved": {0}}})
    assert replies == {0: "0: 2", 1: Error(GONE, "of Flower's")}
    assert time.monotonic() - began < SECONDS


CONTENT = RecordDict({"order": ConfigRecord({"round": 1})})


def test_more_is_sent_while_replies_are_out_and_each_has_its_own_time():
    """A client whose reply was read may be asked again; one that is silent holds up nobody, and is given up in time."""
    link = Link(c0=["none"], c1=["whole", "whole", "none"])
    late = Late(link)
    with Exchange(link, link, late, "train", 0.6) as exchange:
        exchange.ask({0: CONTENT, 1: CONTENT}, 100, "round 1")
        assert exchange.reply(in_order=False) == (1, "1: 1")
        exchange.ask({1: CONTENT}, 100, "round 2")
        assert exchange.reply(in_order=False) == (1, "1: 2")
        time.sleep(0.3)
        exchange.ask({1: CONTENT}, 100, "round 3")
        first, then = exchange.replies(in_order=False)
        assert [(client, failure.reason) for client, failure in (first, then)] == [(0, "timeout"), (1, "timeout")]
        assert not exchange.is_out
    late.refuse()
    assert sorted(link.refused) == ["0", "3"]


@pytest.mark.parametrize("told", [{"is_cut": True}, {"moved": {0}}])
def test_what_another_exchange_is_told_first_is_passed_on(told):
    """The SuperLink was gone, or a node was started again, while clients evaluate beside one that trains."""
    link, late = Link(c0=["none", "whole"], c1=["whole"]), Late(Link())
    with Exchange(link, link, late, "train", SECONDS) as training:
        training.ask({0: CONTENT}, 100, "round 1")
        vars(link).update(told)
        link.gather = lambda cohort: link.refresh()
        with Exchange(link, link, late, "evaluate", SECONDS, beside=training) as evaluation:
            evaluation.ask({1: CONTENT}, 100, "an evaluation")
            assert list(evaluation.replies()) == [(1, "1: 1")]
        assert (link.is_cut, link.moved) == (False, set())
        assert training.reply() == (0, "0: 2")
