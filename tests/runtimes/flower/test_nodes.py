"""Which node is which client, when SuperNodes come, go and come back."""

import time
from types import SimpleNamespace

import pytest
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from umbel import ConfigError, RunStopped
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.link.grid import LinkGrid
from umbel.runtimes.flower.mail import Envelope
from umbel.runtimes.flower.nodes import Nodes

NAMES = {0: "north", 1: "south", 2: "west"}


class Link(LinkGrid):
    """A SuperLink, as far as Nodes sees it: who is online since when, and what they answer when asked."""

    def __init__(self, clients):
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.online = dict.fromkeys(clients, "08:00")
        self.clients, self.errors, self.asked = dict(clients), {}, []

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, last_activated_at=since) for node, since in self.online.items()]

    def push(self, messages):
        self.asked += [message.metadata.dst_node_id for message in messages]
        self.sent = {str(id(message)): message for message in messages} | getattr(self, "sent", {})
        return [str(id(message)) for message in messages]

    def look(self, identifiers, seconds=0.0):
        found = [self.answer(identifier) for identifier in identifiers]
        return [envelope for envelope in found if envelope]

    def answer(self, identifier):
        message = self.sent[identifier]
        node = message.metadata.dst_node_id
        content = self.errors.get(node) or wire.pack_identity(self.clients[node])
        reply = Message(content, reply_to=message)
        return Envelope(identifier, None, lambda max_bytes, wait: reply)


def joined(clients, names=None):
    link = Link(clients)
    nodes = Nodes(link, link, 3, names=names)
    nodes.wait(len(clients), 1)
    return link, nodes


def test_each_node_is_asked_once():
    link, nodes = joined({11: 0, 12: 1, 13: 2})
    assert nodes.of == {0: 11, 1: 12, 2: 13}
    assert nodes.refresh() == nodes.refresh() == set()
    assert link.asked == [11, 12, 13]


def test_a_node_with_a_key_of_its_own_that_was_started_again_is_noticed():
    """It has the same number; also after it was offline for a while."""
    link, nodes = joined({11: 0, 12: 1})
    link.online[12] = "08:01"
    assert nodes.refresh() == {1}
    assert nodes.refresh() == set()
    del link.online[11]
    assert nodes.refresh() == set()
    link.online[11] = "08:02"
    assert nodes.refresh() == {0}
    assert nodes.of == {0: 11, 1: 12}


def test_a_node_without_one_is_another_when_it_is_started_again():
    link, nodes = joined({11: 0, 12: 1})
    link.online[15], link.clients[15] = "08:01", 1
    assert nodes.refresh() == {1}
    assert nodes.of == {0: 11, 1: 15}


def test_a_node_that_was_gone_when_it_was_asked_is_asked_again():
    link = Link({11: 0, 12: 1})
    link.errors[12] = Error(5, "Node Unavailable")
    nodes = Nodes(link, link, 3)
    nodes.wait(1, 1)
    del link.errors[12]
    nodes.refresh()
    assert nodes.of == {0: 11, 1: 12}


def test_a_node_is_the_client_that_its_key_is_of():
    """Whatever it says. Nor is there a second node of one client, while the first is connected."""
    link, refused, keys = Link({11: 0, 12: 0, 13: 2}), [], {11: 0, 12: 1, 13: 2}
    nodes = Nodes(link, link, 3, keys.get, refused.append)
    nodes.wait(2, 1)
    assert nodes.of == {0: 11, 2: 13}
    assert refused == ["node 12 is left out: it says that it is client 0, and its key is client 1's"]
    link.online[14], link.clients[14], keys[14] = "08:01", 2, 2
    assert nodes.refresh() == set()
    assert nodes.of == {0: 11, 2: 13}
    assert refused[1:] == ["node 14 is left out: client 2 is node 13 already, and that is connected"]
    del link.online[13]
    link.online[15], link.clients[15], keys[15] = "08:02", 2, 2
    assert nodes.refresh() == {2}
    assert nodes.of == {0: 11, 2: 15}


@pytest.mark.parametrize(
    ("server", "client", "is_taken"),
    [
        ("1.2.0", "1.3.1", True),
        ("1.2.0", "0.2.0", False),
        ("1.2.0", "2.0", False),
        ("1.2.0", "", False),
        ("0.2.0", "0.2.7", True),
        ("0.2.0", "0.1.0", False),
    ],
)
def test_a_client_of_another_version_is_warned_of_or_refused(monkeypatch, caplog, server, client, is_taken):
    """By its minor number it is warned of; by its major one, and below 1.0 by its minor one, it is refused."""
    link = Link({11: 0, 12: 1})
    ours = wire.pack_identity

    def packed(number):
        record = ours(number)
        record["identity"]["version"] = client if number == 1 else server
        return record

    monkeypatch.setattr(wire, "pack_identity", packed)
    monkeypatch.setattr("umbel.runtimes.flower.nodes.pack_identity", packed)
    nodes = Nodes(link, link, 2)
    nodes.wait(1 + is_taken, 1)
    assert sorted(nodes.of) == [0, 1][: 1 + is_taken]
    assert ("install the same version on both" in caplog.text) == (client not in ("", "0.2.7"))


def test_two_nodes_of_one_client_and_too_few_are_refused():
    link = Link({11: 0, 12: 0})
    with pytest.raises(ConfigError, match="nodes 11 and 12 both have partition-id=0"):
        Nodes(link, link, 3).wait(2, 1)
    link = Link({11: 0, 12: 7})
    with pytest.raises(RunStopped, match=r"1 of 2 clients appeared in 0\.1 seconds \(2 nodes\), and 2 are"):
        Nodes(link, link, 3).wait(2, 0.1)


def test_a_run_begins_with_whoever_is_there_and_enough(monkeypatch, caplog):
    monkeypatch.setattr("umbel.runtimes.flower.nodes.RETURN_SECONDS", 0.2)
    link = Link({11: 0, 13: 2})
    nodes = Nodes(link, link, 3, names=NAMES)
    began = time.monotonic()
    nodes.wait(3, 60, quorum=2)
    assert (sorted(nodes.of), time.monotonic() - began < 10) == ([0, 2], True)
    assert "goes on without 1, south (not connected), until they are back" in caplog.text
    with pytest.raises(RunStopped, match=r"2 of 3 .* and 3 are needed; start the missing: 1, south \(not connected\)"):
        Nodes(link, link, 3, names=NAMES).wait(3, 0.5, quorum=3)


def test_who_is_connected_and_at_work_is_waited_for_and_named(monkeypatch):
    monkeypatch.setattr("umbel.runtimes.flower.nodes.RETURN_SECONDS", 0.1)
    link = Link({11: 0, 12: 1})
    answer, began = link.answer, time.monotonic()
    silent = Nodes(link, link, 2, {11: 0, 12: 1}.get, names=dict(list(NAMES.items())[:2]))
    link.answer = lambda one: None if link.sent[one].metadata.dst_node_id == 12 else answer(one)
    with pytest.raises(RunStopped, match=r"start the missing: 1, south \(connected, at other work\)"):
        silent.wait(2, 0.5, quorum=2)
    link.answer = lambda one: None if time.monotonic() - began < 2 else answer(one)
    silent.wait(2, 60, quorum=1)
    assert sorted(silent.of) == [0, 1]


def test_who_left_is_waited_for_once_and_taken_up_again(monkeypatch, caplog):
    monkeypatch.setattr("umbel.runtimes.flower.nodes.RETURN_SECONDS", 0.3)
    link, nodes = joined({11: 0, 12: 1, 13: 2}, NAMES)
    del link.online[12]
    began = time.monotonic()
    nodes.gather([0, 2])  # it is in nobody's cohort
    assert time.monotonic() - began < 0.2
    nodes.gather([0, 1, 2])
    assert time.monotonic() - began > 0.25
    assert (sorted(nodes.of), nodes.away) == ([0, 2], {1: 12})
    began = time.monotonic()
    nodes.gather([0, 1, 2])
    assert time.monotonic() - began < 0.2
    assert caplog.text.count("client 1, south is away") == 1
    link.online[12] = "08:05"
    assert nodes.refresh() == {1}
    assert (sorted(nodes.of), nodes.away) == ([0, 1, 2], {})
    nodes.gather([0, 1, 2])
    assert caplog.text.count("client 1, south is back") == 1


def test_one_without_a_key_comes_back_as_another_node(monkeypatch):
    monkeypatch.setattr("umbel.runtimes.flower.nodes.RETURN_SECONDS", 0.1)
    link, nodes = joined({11: 0, 12: 1})
    del link.online[12]
    nodes.gather([0, 1])
    assert nodes.away == {1: 12}
    link.online[15], link.clients[15] = "08:01", 1
    nodes.refresh()
    nodes.gather([0, 1])
    assert (nodes.of, nodes.away) == ({0: 11, 1: 15}, {})
