"""Runs that end at a named instruction, and a runtime that passes for real devices."""

from __future__ import annotations

from typing import Any

from umbel.core.experiment import Experiment
from umbel.core.protocols import Memory
from umbel.core.runtime import Opened
from umbel.runtimes.simulation import Simulation

CRASH_POINTS = ("before-training", "mid-training", "after-aggregation", "before-commit", "after-commit")


class Killed(BaseException):
    """Error that passes every `except Exception`: nothing is tidied up, as when the run's process is killed."""


def kill_at(monkeypatch: Any, point: str, round: int) -> None:
    """Let the next run end there, once."""
    left = [None]

    def crash_point(name: str, number: int) -> None:
        if left and (name, number) == (point, round):
            left.clear()
            raise Killed

    for module in ("server.rounds", "server.journal", "server.asynchronous", "server.live", "server.collect"):
        monkeypatch.setattr(f"umbel.{module}.crash_point", crash_point)


class Live:
    """A simulation that says that its clients are real devices, and whose workers draw their noise as those do."""

    is_live = True

    def __init__(self, simulation: Simulation):
        self.simulation = simulation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.simulation, name)

    def open(self, experiment: Experiment, memory: Memory, choices: Any = None) -> Opened:
        """Open the simulation, each worker live."""
        opened = self.simulation.open(experiment, memory, choices)
        for worker in self.simulation._team:
            worker.is_live = True
        return opened
