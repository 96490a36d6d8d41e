"""Simulations that tests share: those that build the same model take turns with one team of workers."""

from engines import SOONEST
from umbel import Experiment, History, Simulation, run
from umbel.runtimes.team import workers_of

_open: dict[tuple, Simulation] = {}


def simulation(experiment: Experiment, workers: int = 1) -> Simulation:
    """Return a simulation that has already traced this experiment's model, if any has."""
    key = workers, *workers_of(experiment.resolved)
    if key not in _open:
        _open[key] = Simulation(workers, compile=SOONEST)
    return _open[key]


def play(experiment: Experiment, workers: int = 1, **settings) -> History:
    """Play `run` on a shared simulation."""
    return run(experiment, simulation(experiment, workers), **settings)
