"""Clients join and leave a folder of kits; the others' kits stay as they are."""

import numpy as np
import pytest

from umbel import ConfigError
from umbel.core.reading.loading import load_experiment
from umbel.core.reading.overrides import fit_to
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import RoundRecord, ServerState
from umbel.deploy import federation, membership
from umbel.deploy.kits import ClientKit, OperatorKit, ServerKit
from umbel.deploy.record import Record
from umbel.privacy.keys.identities import Identity
from umbel.runtimes.flower.identity import name_of
from umbel.server.store import Store

SPEC = ModelSpec((VariableSpec("dense/kernel", (2,), "float32", True, 0),))
RECORD = RoundRecord(1, 2, 0, {}, 0.1, None, 0, None, None)


def state(round):
    return ServerState(round, np.zeros(2, np.float32), (), (), {})


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "roster.bin"}


def test_numbers_stay_and_the_others_kits_are_not_touched(fed):
    before, name = files(fed / "clients/south"), name_of(Identity.load(fed / "server"))
    changed = membership.remove(fed, "north")
    assert [str(path.relative_to(fed)) for path in changed] == [
        "server/clients/north.pub",
        "operator/roster.bin",
        "server/roster.bin",
        "operator/operator.toml",
    ]
    added = membership.add(fed, "east")
    assert added[0] == fed / "clients/east"
    kit = OperatorKit.load(fed / "operator")
    assert (kit.clients, kit.removed, kit.members) == (("north", "south", "east"), ("north",), ("south", "east"))
    assert (ClientKit.load(added[0]).number, ClientKit.load(fed / "clients/south").number) == (2, 1)
    assert set(ServerKit.load(fed / "server").node_keys) == {"south", "east"}
    assert Identity.load(fed / "server").members == {1: "south", 2: "east"}
    assert [party.name for party in federation.parties(fed)] == ["server", "south", "east"]
    assert files(fed / "clients/south") == before
    # Who has the roster from before, on a host that nobody touched, and who has the new one, are of one federation.
    assert name_of(Identity.load(fed / "server")) == name == name_of(Identity.load(added[0]))
    # Settings that are an operator's own stay.
    assert "timeout_seconds = 600" in (fed / "operator/operator.toml").read_text()


def test_repeated_it_changes_nothing_more(fed):
    membership.remove(fed, "north")
    membership.remove(fed, "north")
    path = fed / "operator/operator.toml"
    path.write_text(path.read_text().replace('["north", "south"]', '[\n"north", "south"\n]'))
    membership.add(fed, "east")
    names = (fed / "operator/operator.toml").read_text()
    # Interrupted before its last step, it is repeated.
    (fed / "operator/operator.toml").write_text(names.replace(', "east"', ""))
    membership.add(fed, "east")
    kit = OperatorKit.load(fed / "operator")
    assert (kit.clients, kit.removed) == (("north", "south", "east"), ("north",))
    assert Identity.load(fed / "server").members == {1: "south", 2: "east"}
    assert ClientKit.load(fed / "clients/east").number == 2


def test_what_cannot_be_is_refused(fed):
    membership.remove(fed, "north")
    for action, name, words in [
        (membership.remove, "nroth", "no client 'nroth'"),
        (membership.remove, "south", "without south 0 clients are left"),
        (membership.add, "north", "north was client 0, and left; give it another name, as north-2"),
        (membership.add, "South", "have the same name"),
        (membership.add, "a b", "expected client 'a b'"),
    ]:
        before = files(fed)
        with pytest.raises(ConfigError, match=words):
            action(fed, name)
        assert files(fed) == before
    path = fed / "operator/operator.toml"
    path.write_text(path.read_text() + "quorum = 2\n")
    with pytest.raises(ConfigError, match=r"expected quorum=2 ≤ 1 clients"):
        OperatorKit.load(fed / "operator")


def test_what_the_server_keeps_of_who_left_is_erased_and_on_record(fed):
    """In runs of this federation alone: another's clients, and a simulation's, may have the same numbers."""
    kit = ServerKit.load(fed / "server")
    federation = name_of(Identity.load(kit.folder))
    with Store.open(kit.store) as store:
        played = {}
        for name, choices in (("ours", {"federation": federation}), ("theirs", {"federation": "x"}), ("simulated", {})):
            run = played[name] = store.create_run("mine", {}, 2, 0, choices, SPEC, state(0))
            store.commit_round(run, state(1), RECORD, {client: [np.array([1])] for client in (0, 1)})
    membership.remove(fed, "north")
    said = membership.let_go(fed, "north")
    assert "does not answer: north may connect no longer once it is started" in said[0]
    assert said[1:] == ["client 0 has left: its memory of 1 runs is erased"]
    assert Record(kit).erase() == []
    with Store.open(kit.store) as store:
        left = {name: [client for client in (0, 1) if client in store.memory(run)] for name, run in played.items()}
        assert left == {"ours": [1], "theirs": [0, 1], "simulated": [0, 1]}
        entry = store.audit.entries()[-1]
        assert (entry.action, entry.subject) == ("client.erased", "client 0: its memory of 1 runs")
        assert store.check() == []


def test_a_cohort_is_no_larger_than_who_is_there():
    experiment = load_experiment("digits_fedavg")
    assert fit_to(experiment, 3, 2)[-1] == "sampler.size=2"
    assert fit_to(experiment, 3)[-1] == "sampler.size=3"
