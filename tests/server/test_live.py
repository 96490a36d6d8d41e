"""Asynchronous rounds among real devices: whoever arrives, in whatever order, nothing is lost or counted twice."""

import contextlib

import numpy as np
import pytest

from federations import dropped_and_normalised, federation
from interruptions import CRASH_POINTS, Killed, Live, kill_at
from umbel import IncompatibleError, PrivacyPlan, RunStopped, SecureSum, Simulation, run
from umbel.core.runtime import WAIT, Arrival
from umbel.core.types import Failure, ServerState
from umbel.server import live
from umbel.server.asynchronous import first_state
from umbel.server.store import Store
from umbel.strategies.fedadam import FedAdam
from umbel.strategies.fedasync import FedAsync
from umbel.strategies.fedbuff import FedBuff
from umbel.studies.replay import InOrder, replay, replay_run


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr(live, "REST_SECONDS", 0.01)


@pytest.fixture(scope="module")
def simulation():
    """One for all runs: its model is built once."""
    with contextlib.closing(Simulation(workers=1, compile="graph")) as own:
        yield own


class Unordered(Live):
    """Real devices, for all that the server knows: of those at work anybody is next. failing: how many of them fail."""

    def __init__(self, simulation, seed=0, failing=0.0):
        super().__init__(simulation)
        self.random, self.failing, self.asked = np.random.default_rng(seed), failing, []

    def train(self, work, summation):
        out = []
        for assignment in work:
            if assignment is not WAIT:
                out.append(assignment)
                self.asked.append((assignment.number, assignment.client))
                continue
            one = out.pop(self.random.integers(len(out)))
            if self.random.random() < self.failing:
                yield Arrival((one.client,), Failure(one.client, "timeout", "no reply"), {}, 0, 7)
            else:
                yield from self.simulation.train([one], summation)


def remembering(**changes):
    """Clients that remember and are random inside."""
    model = {"model": dropped_and_normalised, "personal": ("batch_normalization",)}
    return federation(**model | {"strategy": FedBuff(3, FedAdam(0.05)), "rounds": 5, "test": None} | changes)


def played(experiment, url, runtime, **settings):
    """Play a run over the runtime; return its history."""
    with Store.open(url) as store:
        return run(experiment, runtime, store=store, progress=False, **settings)


def numbers(history):
    return [landing.number for record in history.rounds for landing in record.landings]


@pytest.mark.parametrize("strategy", [FedBuff(3, FedAdam(0.05), max_staleness=2), FedAsync(), FedBuff(9)])
def test_a_simulation_comes_to_the_same_bits_in_the_same_order(tmp_path, simulation, strategy):
    """Weights, metrics, staleness; with clients that fail, and what clients keep at home between rounds."""
    url, experiment = f"sqlite:///{tmp_path}/runs.db", remembering(strategy=strategy)
    history = played(experiment, url, Unordered(simulation, 1, failing=0.2))
    assert history.column("staleness").max() > 0
    assert sum(record.failures for record in history.rounds) > 0
    assert all(len(record.landings) == record.clients == strategy.buffer for record in history.rounds)
    with Store.open(url) as store:
        again = replay_run(experiment, store, history.run, workers=1)
    assert again.history.params_sha256 == history.params_sha256
    assert again.landings == len(numbers(history)) == len(set(numbers(history)))
    # In another order it is another run.
    assert history.params_sha256 != played(experiment, url, Unordered(simulation, 2)).params_sha256


def test_one_client_s_work_is_played_again(tmp_path, simulation):
    url, experiment = f"sqlite:///{tmp_path}/runs.db", federation(strategy=FedBuff(3), rounds=3, test=None)
    record = played(experiment, url, Unordered(simulation, 1, failing=0.2)).rounds[-1]
    fresh = next(landing for landing in record.landings if landing.round == record.round)
    with Store.open(url) as store:
        sent = replay(experiment, store, "latest", round=record.round, client=fresh.client, workers=1)
    assert sent.is_checked
    assert sent.difference <= 1e-6


@pytest.mark.parametrize("round", [1, 4])
def test_a_killed_run_neither_loses_nor_repeats_what_landed(tmp_path, monkeypatch, simulation, round):
    """All that was given out has landed once, or is at work as the last commit has it: it is asked for again."""
    experiment = remembering()
    for point in CRASH_POINTS:
        url = f"sqlite:///{tmp_path}/{point}.db"
        kill_at(monkeypatch, point, round)
        with pytest.raises(Killed):
            played(experiment, url, Unordered(simulation, 1))
        at_work = last_state(url, experiment).flights[:, 1:3].astype(int)
        resumed = Unordered(simulation, 2)
        history = played(experiment, url, resumed, resume="latest")
        assert [(number - 1, client) for number, client in resumed.asked[: len(at_work)]] == [*map(tuple, at_work)]
        last = last_state(url, experiment)
        assert sorted([*numbers(history), *last.flights[:, 1].astype(int)]) == list(range(last.begun))
        again = InOrder(simulation, {record.round: record.landings for record in history.rounds})
        assert run(experiment, again, progress=False).params_sha256 == history.params_sha256


def last_state(url, experiment):
    """The strategy's part of what was committed last."""

    def like(spec):
        params = np.zeros(spec.size, np.float32)
        return ServerState(0, params, first_state(experiment.resolved, params), experiment.transforms.init(spec), {})

    with Store.open(url) as store:
        return store.load_run("latest", like=like).server_state.strategy


def test_where_nobody_answers_the_run_ends_and_says_why(simulation):
    with pytest.raises(RunStopped, match=r"round 1: \d+ clients were lost in a row; the last was .*timeout.*no reply"):
        run(federation(strategy=FedBuff(2)), Unordered(simulation, failing=1.0), progress=False)


PLAN = PrivacyPlan(epsilon=8.0, delta=1e-4, rounds=2, population=8, sampling_rate=0.5, clip_norm=1.0)


@pytest.mark.parametrize(
    "hides", [{"secure_aggregation": SecureSum(limit=1.0), "weighting": "uniform"}, {"plan": PLAN}]
)
def test_plans_and_hidden_sums_are_refused(hides):
    """The reason is theirs: both are about a round's cohort, and there is none."""
    with pytest.raises(IncompatibleError, match=r"needs rounds with a cohort, which strategy=FedBuff"):
        federation(strategy=FedBuff(2), **{"sampler": None} | hides)
