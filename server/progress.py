"""A run's progress in lines: for notebooks, scripts and logs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

from ..core.experiment import Experiment
from ..core.printable import printable
from ..core.protocols import Runtime
from ..core.types import Failure, RoundRecord
from ..core.validation import require_count
from .history import History

SHOWN_FAILURES = 3  # per round; a round of a thousand failures says no more with a thousand lines
GROUPS = ("test", "validation", "train")  # of metrics, the most telling first


class Progress:
    """A watcher that prints a line per round: `run(experiment, Simulation(), watchers=[Progress()])`.

    stream: where to; None: standard output, as it is when a line is printed. every: rounds between two lines; the last
    round, and rounds with failures, have one always.
    """

    def __init__(self, stream: IO[str] | None = None, every: int = 1):
        require_count("every", every)
        self._stream, self._every, self._planned = stream, every, 0

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """What starts, or goes on after which round."""
        self._planned = experiment.rounds
        named = f" as run {run}" if run else ""
        self._print(f"{experiment.name}{named}, round {len(records)} of {experiment.rounds} done")

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """The round and its figures."""
        if record.round % self._every and record.round != self._planned and not failures:
            return
        seconds = record.seconds + (record.eval_seconds or 0.0)
        for line in failure_lines(record, failures):
            self._print(line)
        clients = counted(record.clients, "client")
        self._print(f"round {record.round}/{self._planned}  {figures(record)}  {clients}  {seconds:.2f} s")

    def on_end(self, history: History) -> None:
        """Why, where it ended early."""
        if history.stopped_early:
            self._print(f"ended early: {history.stopped_early}")

    def _print(self, line: str) -> None:
        print(line, file=self._stream or sys.stdout, flush=True)


def figures(record: RoundRecord) -> str:
    """A round's accuracy and loss, each of the most telling examples it was measured on."""
    found = []
    for name in ("accuracy", "loss"):
        group = next((group for group in GROUPS if f"{group}_{name}" in record.metrics), None)
        if group:
            found.append(f"{group} {name} {record.metrics[f'{group}_{name}']:.4f}")
    return "  ".join(found)


def failure_lines(record: RoundRecord, failures: Sequence[Failure]) -> list[str]:
    """Who was left out of a round, and why; the first few."""
    lines = [f"round {record.round}: client {f.client} left out ({f.reason}): {printable(f.detail)}" for f in failures]
    return lines[:SHOWN_FAILURES] + [f"… and {len(lines) - SHOWN_FAILURES} more"] * (len(lines) > SHOWN_FAILURES)


def counted(number: int, noun: str) -> str:
    """A number of things: "1 client", "2 clients"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
