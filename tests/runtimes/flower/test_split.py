"""Split learning over a grid inside this process: parity with the simulation, what breaks, what is refused."""

import dataclasses

import numpy as np
import pytest
from crossings import CrossingGrid, QueueChannel
from flwr.app import Error

from grids import ProcessGrid
from umbel import ConfigError, RunStopped, Simulation, run
from umbel.core import serial
from umbel.core.errors import StoreError
from umbel.core.reading.loading import load_experiment
from umbel.runtimes.flower import client
from umbel.runtimes.flower.runtime import FlowerRuntime


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where clients keep their memory, and who opens their channels: nobody, until a grid says so."""
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "clients"))
    yield
    client.cross_by(None)


@pytest.fixture
def written(tmp_path):
    def write(arguments):
        path = tmp_path / "small.py"
        path.write_text(
            "import federations\nfrom federations import federation\nfrom umbel import *\n"
            f"from umbel import data\nfrom umbel.strategies import *\nexperiment = federation({arguments})\n"
        )
        return path

    return write


EVERYTHING = "strategy=SplitFed('dense'), model=federations.dropped_and_normalised, personal=('dense/bias',)"
IN_TURN = "strategy=SplitFed('dropout', 2), model=federations.dropped_and_normalised"


def simulated(path):
    return run(load_experiment(str(path)), Simulation(workers=2, compile="graph"))


def federated(path, **settings):
    return run(load_experiment(str(path)), FlowerRuntime(CrossingGrid(path, 8, **settings)))


def check_equal(history, expected):
    assert history.params_sha256 == expected.params_sha256
    assert [record.metrics for record in history.rounds] == [record.metrics for record in expected.rounds]
    assert [(record.clients, record.failures) for record in history.rounds] == [(4, 0)] * 3


@pytest.mark.parametrize("arguments", [EVERYTHING, IN_TURN])
def test_flower_equals_simulation_whatever_breaks(written, arguments):
    """Bit for bit: weights of both halves, what stays at home, metrics, which the server measures.

    Connections break before a step is sent, and before its answer is; a client's process dies once its steps are done,
    and it begins anew. No step counts twice.
    """
    path = written(arguments)
    faults = {"breaks": [3, 1, None, 2], "answers_lost": [None, 2, 1, 1], "once": {3: Error(8, "killed")}}
    check_equal(federated(path, **faults), simulated(path))


def test_what_cannot_be_trained_in_two_places_is_refused(written):
    path = written(EVERYTHING)
    experiment, grid = load_experiment(str(path)), CrossingGrid(path, 8)
    with pytest.raises(ConfigError, match=r"which this SuperLink does not have; start the server by umbel server"):
        run(experiment, FlowerRuntime(ProcessGrid(path, 8)))
    with pytest.raises(ConfigError, match=r"over_selection=1\.5 leaves out slow clients"):
        run(experiment, FlowerRuntime(grid, over_selection=1.5))
    with pytest.raises(ConfigError, match=r"compile across the cut"):
        run(experiment, FlowerRuntime(grid, compile="xla"))
    with pytest.raises(ConfigError, match=r"the second half stays on the server; drop validation"):
        run(dataclasses.replace(experiment, validation=experiment.population), FlowerRuntime(grid))


def test_a_client_of_flowers_own_says_what_it_lacks(written):
    path = written(EVERYTHING)
    grid = CrossingGrid(path, 8)
    client.cross_by(None)
    with pytest.raises(RunStopped, match=r"which Flower's SuperNode does not have; start the client by umbel client"):
        run(load_experiment(str(path)), FlowerRuntime(grid))


class Lying(QueueChannel):
    """A client that sends other steps than those it took."""

    def __init__(self, channel, lie):
        self.__dict__.update(channel.__dict__)
        self._lie = lie

    def send(self, message):
        try:
            number, count, arrays = serial.loads(message)
        except (ValueError, StoreError):  # its first word
            return super().send(message)
        super().send(serial.dumps(self._lie(number, count, arrays)))


LIES = {
    "a step too many": lambda number, count, arrays: (number + 1, count, arrays),
    "a step again and again": lambda number, count, arrays: (1 if number == 3 else number, count, arrays),
    "fewer examples": lambda number, count, arrays: (number, count - 1, [arrays[0][1:], arrays[1], arrays[2][1:]]),
    "another shape": lambda number, count, arrays: (number, count, [arrays[0].T, *arrays[1:]]),
    "another type": lambda number, count, arrays: (number, count, [arrays[0].astype(np.float64), *arrays[1:]]),
    "too much": lambda number, count, arrays: (number, count, [np.zeros(1 << 20, np.float32), *arrays[1:]]),
    "no number": lambda number, count, arrays: (number, count, [arrays[0] * np.nan, *arrays[1:]]),
    "no class": lambda number, count, arrays: (number, count, [*arrays[:2], arrays[2] + 7]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
def test_a_client_that_lies_is_left_out_and_moves_nothing(written, lie):
    """The first that trains lies; the others add up to what they add up to without it."""
    path = written("strategy=SplitFed('dense', 2), rounds=1, test=None, sampler=AllClients()")
    grid = CrossingGrid(path, 8)
    honest, said = grid._open, []

    def opened(number, session):
        channel = honest(number, session)
        said.append(session)
        return Lying(channel, lie) if session == said[0] else channel

    client.cross_by(opened)
    (record,) = run(load_experiment(str(path)), FlowerRuntime(grid)).rounds
    assert (record.clients, record.failures) == (7, 1)
    assert np.isfinite(record.metrics["train_loss"])
