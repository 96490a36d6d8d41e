"""A server that lies about runs and rounds, to a client whose policy bounds what it releases."""

import itertools

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from umbel.clients.spending import SpendingFile, total
from umbel.clients.tensorflow.engine import TensorFlowEngine
from umbel.core.random import Key
from umbel.core.reading.loading import load_experiment
from umbel.core.types import NOTHING, Broadcast
from umbel.runtimes.flower import client, wire

FILE = """
from federations import federation
from umbel.privacy import LocalPlan

plan = LocalPlan(epsilon=1.0, delta=1e-4, rounds=2, population=8, clip_norm=0.5)
experiment = federation(name="mine", plan=plan, sampler=None, weighting=None, rounds=2, test=None)
"""
POLICIES = {
    "max_epsilon": "[privacy]\nmax_epsilon = 1.001\nmax_delta = 1e-3\n",
    "max_rounds": "[limits]\nmax_rounds = 2\n",
}


def restart():
    """As another process begins: what is in memory is gone."""
    client._policy.cache_clear()
    client._runs.clear()


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask the client to train, as its server does: (run, round, overrides) → its failure, None for an update."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "mine.py").write_text(FILE)
    monkeypatch.setenv("UMBEL_CLIENT_POLICY", str(tmp_path / "policy.toml"))
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "home"))
    experiment = load_experiment(str(folder / "mine.py"))
    worker = TensorFlowEngine(experiment.resolved)
    terms = worker.meter.terms.to_json()

    def asked(run, round, overrides="[]"):
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = run
        agreed = load_experiment(str(folder / "mine.py"), eval(overrides))
        state = agreed.resolved.transforms.init(worker.spec)
        broadcast = wire.pack_broadcast(Broadcast(round, worker.initial_params, NOTHING, state, 0.1))
        content = wire.pack_order(broadcast, wire.Order(agreed.digest, "graph", Key(bytes(16)), terms=terms))
        context = Context(run, 10, {"partition-id": 0}, RecordDict(), {"experiment": "mine.py", "overrides": overrides})
        return wire.unpack_failure(client.app(Message(content, 10, "train", ttl=60.0), context).content, 0)

    yield asked
    restart()


@pytest.mark.parametrize("bound", POLICIES)
@pytest.mark.parametrize("lie", ["the same round", "another run", "after a restart", "another seed", "round 0"])
def test_a_client_counts_its_replies_itself(bound, lie, ask, tmp_path):
    (tmp_path / "policy.toml").write_text(f'[experiments]\nallow = ["mine"]\n{POLICIES[bound]}')
    restart()
    answers = []
    for number in itertools.count():
        run, round, overrides = 7, 1, "[]"
        if lie == "another run":
            run = 7 + number
        elif lie == "after a restart":
            restart()
        elif lie == "another seed":
            overrides = f'["seed={number}"]'
        elif lie == "round 0":
            round = 0
        answers.append(ask(run, round, overrides))
        if answers[-1] is not None:
            break
        assert number < 3
    assert [failure is None for failure in answers] == [True, True, False]
    assert answers[-1].reason == "policy"
    account = SpendingFile.of(tmp_path / "home", 0)
    assert total(account.read()["mine"]).replies == 2
    account.reset("mine")
    assert ask(7, 1) is None
