"""Plans over a grid inside this process: noise of real devices, what is paid for it, what a killed run still owes."""

import pytest

from grids import ProcessGrid
from interruptions import Killed, kill_at
from umbel import Simulation, run
from umbel.core.reading.loading import load_experiment
from umbel.privacy.secure_sum import SecureSum
from umbel.runtimes.flower import secure_tasks
from umbel.runtimes.flower.runtime import FlowerRuntime
from umbel.runtimes.flower.secure import LOCAL_KIT_VARIABLE
from umbel.server.store import Store

FILE = """
from federations import federation
from umbel.privacy import *
from umbel.privacy.budget import step_of

numbers = dict(epsilon=1e4, delta=1e-2, rounds=8, population=8)
limit, hidden = grid_limit(16.0), SecureSum(limit=1.0, metrics=())
central = dict(numbers, sampling_rate=1.0, clip_norm=1.0, noise_multiplier=1.0)
plans = {
    "central": (PrivacyPlan(**central), None),
    "central_hidden": (PrivacyPlan(**central, rounding=step_of(hidden), secret_cohort=False), hidden),
    "local": (LocalPlan(**numbers, clip_norm=1.0, noise_multiplier=1.0), None),
    "distributed": (
        DistributedPlan(
            **numbers, cohort=6, survivors_floor=5, clip_norm=1.0, limit=limit, noise_multiplier=1.0
        ),
        SecureSum(limit=limit, metrics=(), minimum_clients=5),
    ),
    "examples": (
        PerExamplePlan(
            **numbers, clip_norm=1.0, batch_size=5, smallest_client=2, steps=3, noise_multiplier=1.0
        ),
        None,
    ),
}
experiments = {
    name: federation(name=name, plan=plan, secure_aggregation=hidden, sampler=None, weighting=None, rounds=2)
    for name, (plan, hidden) in plans.items()
}
"""
PLANS = ("central", "central_hidden", "local", "distributed", "examples")


class KitGrid(ProcessGrid):
    """A ProcessGrid whose clients have the kits of a folder."""

    def __init__(self, reference, kits, monkeypatch):
        super().__init__(reference, 8)
        self.kits, self.monkeypatch = kits, monkeypatch

    def _answer(self, identifier, message, is_training, client):
        with self.monkeypatch.context() as patched:
            number = self.contexts[message.metadata.dst_node_id].node_config["partition-id"]
            patched.setenv(LOCAL_KIT_VARIABLE, str(self.kits / f"client-{number}"))
            super()._answer(identifier, message, is_training, client)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The experiments, and kits for those that hide their sums."""
    place = tmp_path_factory.mktemp("private")
    (place / "private.py").write_text(FILE)
    clients = {client: place / "kits" / f"client-{client}" for client in range(8)}
    SecureSum(1.0).provision(place / "kits" / "server", clients)
    return place


def reference_of(place, name):
    return f"{place / 'private.py'}:{name}"


@pytest.fixture
def play(place, tmp_path, monkeypatch):
    """Plays one of the experiments over a grid, or in a simulation."""
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "clients"))
    monkeypatch.setenv(LOCAL_KIT_VARIABLE, str(place / "kits" / "server"))

    def play(name, overrides=(), simulation=None, **settings):
        reference = reference_of(place, name)
        runtime = simulation or FlowerRuntime(KitGrid(reference, place / "kits", monkeypatch))
        return run(load_experiment(reference, overrides), runtime, **settings)

    yield play
    secure_tasks._parts.clear()


@pytest.mark.parametrize("name", PLANS)
def test_noise_is_fresh_paid_for_and_all_that_leaves(play, name):
    """What a simulation pays for as many rounds; noise that no seed leads to; nothing of a client's metrics."""
    histories = [play(name), play(name), play(name, simulation=Simulation(workers=1, compile="graph"))]
    assert len({history.params_sha256 for history in histories}) == 3
    spent = [[record.epsilon for record in history.rounds] for history in histories]
    assert spent[0] == spent[1] == spent[2]
    assert 0 < spent[0][0] < spent[0][1]
    for history in histories[:2]:
        assert {record.clients for record in history.rounds} == {6 if name == "distributed" else 8}
        assert not [one for record in history.rounds for one in record.metrics if one.startswith("train_")]
        assert history.final()["privacy"]["noise"] == "operating system"


@pytest.mark.parametrize(
    ("name", "point"),
    [
        *((name, "after-aggregation") for name in PLANS),
        ("central", "before-commit"),
        ("distributed", "before-commit"),
    ],
)
def test_a_killed_run_pays_for_both_attempts(play, place, tmp_path, monkeypatch, name, point):
    """The ledger is on record before anything is released, and the round that was cut off is another release: clients
    of a hidden sum take part in it, since the server that was started again has another name."""
    store = f"sqlite:///{tmp_path}/runs.db"
    kill_at(monkeypatch, point, 2)
    with pytest.raises(Killed):
        play(name, store=store)
    history = play(name, store=store, resume="latest")
    assert len(history.rounds) == 2
    with Store.open(store) as opened:
        (per_round,) = set(opened.load_run(history.run).ledger.values())
    assert per_round == 3 * (3 if name == "examples" else 1)
    plan = load_experiment(reference_of(place, name)).plan
    paid = [plan.spent({str(plan.round_event): rounds * per_round // 3}) for rounds in (2, 3)]
    assert paid[0] < history.rounds[1].epsilon == paid[1]
