"""Asynchronous rounds: FedAvg where nobody is slower than another, and otherwise what the timeline says."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from federations import Nowhere, dropped_and_normalised, federation
from interruptions import Killed, Live, kill_at
from simulations import play
from umbel import (
    AllClients,
    Chain,
    Clip,
    ConfigError,
    FedAvg,
    FixedCohort,
    IncompatibleError,
    Local,
    RunStopped,
    Simulation,
    run,
    strategies,
)
from umbel.core import serial
from umbel.core.parts.devices import Around, Deadline, Devices, Diurnal
from umbel.core.types import NOTHING, ClientUpdate, Mean, ServerState
from umbel.data import Generated
from umbel.server.asynchronous import AsynchronousState, first_state, play_asynchronously
from umbel.server.rounds import RoundSetup
from umbel.server.store import Store
from umbel.strategies.fedadam import FedAdam
from umbel.strategies.fedasync import FedAsync
from umbel.strategies.fedbuff import FedBuff
from umbel.strategies.semisynchronous import SemiSynchronous
from umbel.strategies.staleness import Hinge, Polynomial

UNEVEN = Devices(Around(20.0, 1.0), Around(1e4, 0.5), Around(1e3, 0.5), dropout=0.1)


def uneven(**changes):
    """Clients that differ in everything, remember, and are random inside."""
    defaults = {
        "model": dropped_and_normalised,
        "personal": ("batch_normalization",),
        "strategy": FedBuff(buffer=3, server=FedAdam(0.05)),
        "devices": UNEVEN,
        "rounds": 6,
    }
    return federation(**defaults | changes)


class Recorded:
    """A strategy's `receive`, with the staleness it was told."""

    mixes_models = False
    max_staleness = None
    round_seconds = None

    def __init__(self, buffer):
        self.buffer, self.seen = buffer, []

    def init(self, params):
        return ()

    def broadcast(self, state):
        return NOTHING

    def receive(self, update, staleness, base, params):
        self.seen.append((update.weight, staleness))
        return update

    def update(self, state, params, mean):
        return state, params + mean.delta


def population(*sizes):
    """A client of each size; a client's number of examples tells who it is."""

    def make(client):
        generator = np.random.default_rng(client)
        x = generator.normal(size=(sizes[client], 6)).astype(np.float32)
        return x, generator.integers(0, 3, sizes[client]).astype(np.int32)

    return Generated(len(sizes), make, np.array(sizes))


@pytest.mark.parametrize("devices", [None, Devices(), Devices(dropout=0.0, availability=Diurnal(hours=24))])
@pytest.mark.parametrize("server", [FedAvg(), FedAdam(0.1)])
def test_a_buffer_of_the_cohort_without_delay_is_the_server_s_own_algorithm(devices, server):
    changes = {"model": dropped_and_normalised, "rounds": 4, "devices": devices}
    synchronous = play(federation(strategy=server, **changes), 2)
    buffered = play(federation(strategy=FedBuff(buffer=4, server=server), **changes), 2)
    assert buffered.params_sha256 == synchronous.params_sha256
    assert buffered.column("train_loss").tolist() == synchronous.column("train_loss").tolist()
    assert buffered.column("bytes_up").tolist() == synchronous.column("bytes_up").tolist()
    assert buffered.column("bytes_down").tolist() == synchronous.column("bytes_down").tolist()


def test_fedasync_of_one_fresh_model_takes_it_in_whole():
    """α = 1, nothing stale: each model replaces the server's, as with FedAvg and cohorts of one."""
    one = {"sampler": FixedCohort(1), "rounds": 3}
    mixed = play(federation(strategy=FedAsync(mixing=1.0), **one))
    alone = play(federation(strategy=FedAvg(), **one))
    np.testing.assert_allclose(mixed.params, alone.params, atol=1e-6)


def test_fedasync_mixes_models_as_its_paper_says():
    generator = np.random.default_rng(0)
    base, params, delta = generator.normal(size=(3, 20)).astype(np.float32)
    strategy = FedAsync(mixing=0.6, staleness=Polynomial(0.5))
    received = strategy.receive(ClientUpdate(delta, NOTHING, 7.0, {}), 3, base, params)
    _, after = strategy.update((), params, received)
    alpha = 0.6 * 4**-0.5
    np.testing.assert_allclose(after, (1 - alpha) * params + alpha * (base + delta), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", strategies.ALL_ASYNCHRONOUS)
def test_the_contract_of_asynchronous_strategies(make):
    """Pure, rebuilt by its repr; float32 vectors of their shape; a fresh update is not shrunk."""
    strategy, generator = make(), np.random.default_rng(0)
    base, params, delta = generator.normal(size=(3, 20)).astype(np.float32)
    before = [one.copy() for one in (base, params, delta)]
    update = ClientUpdate(delta, NOTHING, 3.0, {})
    received = [strategy.receive(update, 2, base, params) for _ in range(2)]
    np.testing.assert_array_equal(received[0].delta, received[1].delta)
    assert (received[0].delta.dtype, received[0].delta.shape, received[0].weight) == (np.float32, (20,), 3.0)
    np.testing.assert_allclose(strategy.receive(update, 0, params, params).delta, delta)
    state, after = strategy.update(strategy.init(params), params, Mean(delta, NOTHING, {}))
    assert (after.dtype, after.shape) == (np.float32, (20,))
    assert serial.dumps(serial.loads(serial.dumps(state), like=state)) == serial.dumps(state)
    for one, kept in zip((base, params, delta), before, strict=True):
        np.testing.assert_array_equal(one, kept)
    assert eval(repr(strategy), vars(strategies) | {"Polynomial": Polynomial}) == strategy


def test_staleness_weights_are_those_of_the_papers():
    assert [Polynomial(0.5).worth(age) for age in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [Hinge(slope=10, grace=4).worth(age) for age in (0, 4, 5, 7)] == pytest.approx([1, 1, 1 / 11, 1 / 31])
    update = ClientUpdate(np.ones(2, np.float32), np.ones(1, np.float32), 5.0, {})
    stale = FedBuff().receive(update, 3, update.delta, update.delta)
    assert (stale.delta.tolist(), stale.extra.tolist(), stale.weight) == ([0.5, 0.5], [0.5], 5.0)
    assert FedBuff().receive(update, 0, update.delta, update.delta) is update


def test_staleness_is_what_the_timeline_says():
    """Three clients who need 2, 3 and 7 seconds, all always at work, two updates a round.

    2 s: A (began at 0 s, in round 1). 3 s: B (0 s), which closes round 1.
    4 s: A (2 s). 6 s: B (3 s, 2) and A (4 s, 2): B began first, so it closes round 2.
    6 s: A, left over. 7 s: C (0 s), which closes round 3.
    8 s: A (6 s, 3). 9 s: B (6 s, 3), which closes round 4.
    """
    strategy = Recorded(2)
    experiment = federation(
        population=population(2, 3, 7),
        strategy=strategy,
        sampler=AllClients(),
        local=Local(epochs=1, batch_size=None, learning_rate=0.1),
        devices=Devices(examples_per_second=1.0),
        rounds=4,
    )
    history = play(experiment)
    rounds = [[(2, 0), (3, 0)], [(2, 1), (3, 0)], [(7, 2), (2, 1)], [(3, 1), (2, 1)]]
    assert strategy.seen == [one for each in rounds for one in each]
    assert history.column("virtual_seconds").tolist() == [3, 6, 7, 9]
    assert history.column("staleness").tolist() == [0.0, 0.5, 1.5, 1.0]


def test_semi_synchronous_rounds_without_anybody_late_are_synchronous():
    """Folded in cohort order, though they arrive in another."""
    changes = {"model": dropped_and_normalised, "devices": Devices(Around(10.0, 1.0)), "rounds": 4}
    synchronous = play(federation(strategy=FedAdam(0.1), **changes), 2)
    patient = federation(strategy=SemiSynchronous(1e6, server=FedAdam(0.1)), **changes)
    assert play(patient, 2).params_sha256 == synchronous.params_sha256
    assert play(patient).time_to(0.0) == synchronous.time_to(0.0)


def test_semi_synchronous_rounds_count_the_late_when_they_arrive():
    """Four clients who need 2, 3, 7 and 11 seconds, in rounds of 4 seconds.

    0 to 4 s: A, B. 4 to 8 s: A, B, and C of round 1. 8 to 12 s: A, B, and D of round 1. 12 to 16 s: A, B, C of round 3.
    """
    strategy = Recorded(None)
    strategy.round_seconds = 4.0
    experiment = federation(
        population=population(2, 3, 7, 11),
        strategy=strategy,
        sampler=AllClients(),
        local=Local(epochs=1, batch_size=None, learning_rate=0.1),
        devices=Devices(examples_per_second=1.0),
        rounds=4,
    )
    history = play(experiment)
    rounds = [[(2, 0), (3, 0)], [(7, 1), (2, 0), (3, 0)], [(11, 2), (2, 0), (3, 0)], [(7, 1), (2, 0), (3, 0)]]
    assert strategy.seen == [one for each in rounds for one in each]
    assert history.column("virtual_seconds").tolist() == [4, 8, 12, 16]

    slow = dataclasses.replace(experiment, population=population(11, 11), rounds=2)
    assert play(slow).column("virtual_seconds").tolist() == [11, 22]
    slow = dataclasses.replace(experiment, population=population(10, 13), rounds=2)
    assert play(slow).column("virtual_seconds").tolist() == [12, 16]


def test_the_same_bits_whatever_the_number_of_workers():
    hashes = {play(uneven(), workers).params_sha256 for workers in (1, 2, 4)}
    assert len(hashes) == 1
    assert play(uneven(seed=2), 2).params_sha256 not in hashes


class Stop(Exception):
    pass


class StopAfter:
    def __init__(self, round):
        self.round = round

    def on_start(self, experiment, runtime, run, records):
        self.run = run

    def on_round(self, record, failures):
        if record.round == self.round:
            raise Stop

    def on_end(self, history):
        raise AssertionError("the run was to be stopped before its end")


@pytest.mark.parametrize(
    "strategy", [FedBuff(3, FedAdam(0.05)), FedBuff(3, max_staleness=1), FedAsync(), SemiSynchronous(0.5)]
)
def test_resumed_run_equals_uninterrupted_run(tmp_path, strategy):
    url, experiment = f"sqlite:///{tmp_path / 'runs.db'}", uneven(strategy=strategy)
    whole = play(experiment, 2)
    assert whole.column("staleness").max() > 0
    watcher = StopAfter(3)
    with pytest.raises(Stop):
        play(experiment, 2, store=url, watchers=[watcher])
    resumed = play(experiment, store=url, resume=watcher.run)
    assert resumed.params_sha256 == whole.params_sha256
    assert [one.metrics for one in resumed.rounds] == [one.metrics for one in whole.rounds]


KILLED = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
from simulations import play
from test_asynchronous import uneven

play(uneven(), 2, store={url!r})
"""


def test_killed_at_any_instruction_it_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """By SIGKILL first; then, resumed, at another instruction, with nothing tidied up."""
    url, here = f"sqlite:///{tmp_path / 'runs.db'}", Path(__file__).parent
    code = KILLED.format(tests=str(here.parent), here=str(here), url=url)
    environment = {**os.environ, "UMBEL_CRASH_AT": "mid-training:3"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    kill_at(monkeypatch, "before-commit", 4)
    with pytest.raises(Killed):
        play(uneven(), 2, store=url, resume="latest")
    with Store.open(url) as store:
        assert store.load_run("latest").records[-1].round == 3
    resumed = play(uneven(), 2, store=url, resume="latest")
    assert resumed.params_sha256 == play(uneven(), 2).params_sha256


def test_what_is_kept_is_bounded_by_who_is_at_work():
    experiment = uneven(rounds=12, strategy=FedBuff(1, max_staleness=2))
    simulation, history = Simulation(workers=1), []
    opened = simulation.open(experiment, Nowhere())
    table = RoundSetup(experiment.resolved, simulation, opened, Nowhere())
    params = simulation.initial_params()
    state = ServerState(0, params, first_state(table.experiment, params), experiment.transforms.init(opened.spec), {})
    failures = []
    for _ in range(experiment.rounds):
        state, record, failed = play_asynchronously(table, state, history)
        failures += failed
        history.append(record)
        kept = state.strategy
        assert isinstance(kept, AsynchronousState)
        assert len(kept.flights) == len(set(kept.flights[:, 2])) == 3  # and the one that is done makes room
        assert set(kept.broadcasts) <= set(kept.flights[:, 3].astype(int))
        assert min(kept.broadcasts, default=state.round) >= state.round + 1 - 2
        assert serial.dumps(serial.loads(serial.dumps(tuple(state)), like=state)) == serial.dumps(tuple(state))
    simulation.close()
    assert {one.reason for one in failures} <= {"stale", "dropped_out"}
    assert "stale" in {one.reason for one in failures}


def test_nobody_arrives():
    with pytest.raises(RunStopped, match=r"round 1: \d+ clients were lost in a row; .*gave up"):
        play(federation(strategy=FedBuff(2), devices=Devices(1.0, dropout=1.0)))


def test_a_semi_synchronous_cohort_that_is_lost():
    lost = federation(strategy=SemiSynchronous(60.0), devices=Devices(1.0, dropout=1.0))
    with pytest.raises(RunStopped, match=r"round 1: 0 valid updates, expected at least 1 \(4 failed: dropped_out; "):
        play(lost)


def test_a_stopped_round_leaves_nothing(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    experiment = uneven(strategy=FedBuff(2), min_clients=3)
    with pytest.raises(RunStopped, match="round 1: 2 valid updates, expected at least 3"):
        play(experiment, store=url)
    with Store.open(url) as store:
        stored = store.load_run("latest")
    assert (len(stored.records), stored.server_state.round) == (0, 0)


def test_at_night_the_server_waits():
    """Everybody is in reach from 6 to 7 in the morning, and needs half a minute."""
    devices = Devices(examples_per_second=1.0, availability=Diurnal(hours=1, start_hour=6, spread_hours=0))
    experiment = federation(strategy=FedBuff(4), devices=devices, rounds=1)
    (record,) = play(experiment).rounds
    assert 6 * 3600 < record.metrics["virtual_seconds"] < 6.2 * 3600


def test_what_has_no_cohorts_refuses_what_is_about_them():
    with pytest.raises(IncompatibleError, match="deadline"):
        federation(strategy=FedBuff(), devices=Devices(), deadline=Deadline(1.0))
    with pytest.raises(IncompatibleError, match="turns into mixed models"):
        federation(strategy=FedAsync(), transforms=Chain(Clip(1.0)))
    play(federation(strategy=FedBuff(4), transforms=Chain(Clip(1.0)), rounds=1))
    with pytest.raises(IncompatibleError, match="more than a server's half"):
        FedBuff(server=FedBuff())
    with pytest.raises(ConfigError, match="on the virtual clock, Simulation's"):
        run(federation(strategy=SemiSynchronous()), Live(Simulation(workers=1)))


@pytest.mark.parametrize("make", [lambda: FedBuff(0), lambda: FedAsync(0.0), lambda: FedAsync(1.5), lambda: Hinge(-1)])
def test_values_out_of_bounds(make):
    with pytest.raises(ConfigError, match="expected"):
        make()


def test_evaluation_does_not_change_training():
    assert play(uneven()).params_sha256 == play(dataclasses.replace(uneven(), test=None)).params_sha256
