"""Asynchronous rounds over Flower: nodes that answer in any order, and the simulation's bits in that order."""

import numpy as np
import pytest

from federations import federation
from grids import ProcessGrid
from interruptions import CRASH_POINTS, Killed, kill_at
from umbel import IncompatibleError, run
from umbel.core.reading.loading import load_experiment
from umbel.runtimes.flower.runtime import FlowerRuntime
from umbel.server import live
from umbel.server.store import Store
from umbel.strategies import FedBuff
from umbel.studies.replay import replay_run

EXPERIMENT = """
import federations
from umbel import *
from umbel.strategies import *

experiment = federations.federation(
    model=federations.dropped_and_normalised, personal=("batch_normalization",), rounds=5,
    strategy=FedBuff(3, FedAdam(0.05)),
)
"""


class Uneven(ProcessGrid):
    """A grid of which one reply can be had at a time, whosever it is."""

    def __init__(self, path, seed=0, **settings):
        super().__init__(path, 8, **settings)
        self.random = np.random.default_rng(seed)

    def pull_messages(self, message_ids):
        there = sorted(one for one in message_ids if one in self._replies)
        if len(there) < 2 or self._replies[there[0]].metadata.message_type != "train":
            return super().pull_messages(message_ids)
        return [self._replies.pop(there[self.random.integers(len(there))])]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "clients"))
    monkeypatch.setattr(live, "REST_SECONDS", 0.01)
    path = tmp_path / "asynchronous.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.mark.parametrize("points", [CRASH_POINTS[1:2], CRASH_POINTS])
def test_flower_equals_the_simulation_in_the_order_of_arrival(path, tmp_path, monkeypatch, points):
    """Also killed and resumed, again and again; what a client keeps at home is of its last update that counted."""
    experiment, url = load_experiment(str(path)), f"sqlite:///{tmp_path}/runs.db"
    resume = None
    with Store.open(url) as store:
        for seed, point in enumerate(points):
            kill_at(monkeypatch, point, min(seed + 1, 4))
            with pytest.raises(Killed):
                run(experiment, FlowerRuntime(Uneven(path, seed)), store=store, resume=resume, progress=False)
            resume = "latest"
        runtime = FlowerRuntime(Uneven(path, 9))
        history = run(experiment, runtime, store=store, resume=resume, progress=False)
        assert history.column("staleness").max() > 0
        landed = [landing.number for record in history.rounds for landing in record.landings]
        assert len(landed) == len(set(landed)) == 3 * 5
        again = replay_run(experiment, store, "latest", workers=1)
    assert again.history.params_sha256 == history.params_sha256
    clients = [landing.client for record in history.rounds for landing in record.landings]
    assert max(map(clients.count, clients)) > 1  # somebody has gone on from what it kept


def test_who_landed_twice_goes_on_from_what_was_committed(path, tmp_path, monkeypatch):
    """Its second work began from what its first had left, which is lost with the round; what it had before is not."""
    path.write_text(EXPERIMENT.replace("FedBuff(3,", "FedBuff(12,").replace("rounds=5", "rounds=2"))
    experiment, url = load_experiment(str(path)), f"sqlite:///{tmp_path}/runs.db"
    with Store.open(url) as store:
        kill_at(monkeypatch, "before-commit", 2)
        with pytest.raises(Killed):
            run(experiment, FlowerRuntime(Uneven(path, 3)), store=store, progress=False)
        history = run(experiment, FlowerRuntime(Uneven(path, 4)), store=store, resume="latest", progress=False)
        assert [record.failures for record in history.rounds] == [0, 0]
        assert replay_run(experiment, store, "latest", workers=1).history.params_sha256 == history.params_sha256


def test_who_does_not_answer_keeps_nobody_waiting(path):
    """A client is silent for good: its time is up long after the run has ended. Another answers nonsense."""
    grid = Uneven(path, 1, silent=[2], tamper={5: lambda content: type(content)()})
    history = run(load_experiment(str(path)), FlowerRuntime(grid, timeout_seconds=600), progress=False)
    assert [record.clients for record in history.rounds] == [3] * 5
    counted = {landing.client for record in history.rounds for landing in record.landings}
    assert not counted & {2, 5}


def test_over_selection_has_no_cohort_to_be_about(path):
    experiment = federation(strategy=FedBuff(2))
    with pytest.raises(IncompatibleError, match=r"over_selection=1\.5 counts the fastest of a cohort, and FedBuff"):
        run(experiment, FlowerRuntime(Uneven(path), over_selection=1.5), progress=False)
