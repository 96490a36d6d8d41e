"""A run's progress in lines: for notebooks, scripts and logs."""

from __future__ import annotations

import builtins
import math
import sys
import time
from collections.abc import Sequence
from typing import IO

from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.runtime import Runtime
from ..core.system.printable import printable
from ..core.types import Failure, RoundRecord
from ..core.validation import require_count, require_real
from .history import History

SHOWN_FAILURES = 3  # failures shown per round; a thousand lines would say no more
GROUPS = ("test", "validation", "train")  # groups of metrics, the most telling first


class Progress:
    """A watcher that prints a line per round: `run(experiment, Simulation(), watchers=[Progress()])`.

    Parameters
    ----------
    stream
        Where lines go; None: standard output, as it is when a line is printed.
    every
        Rounds between two lines.
    seconds
        Least time between two lines. The last round, and rounds with failures, have one always.
    """

    def __init__(self, stream: IO[str] | None = None, every: int = 1, seconds: float = 0.0):
        require_count("every", every)
        require_real("seconds", seconds, at_least=0)
        self._stream = stream
        self._every = every
        self._seconds = seconds
        self._planned = 0
        self._round = 0  # last round that had a line
        self._moment = -math.inf  # time of that line, on the monotonic clock

    def on_notice(self, text: str) -> None:
        """Print what there is to know."""
        self._print(text)

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Print what starts, or after which round it goes on."""
        self._planned = experiment.rounds
        self._round = len(records)
        self._moment = -math.inf
        named = f" as run {run}" if run else ""
        self._print(f"{experiment.name}{named}, round {len(records)} of {experiment.rounds} done")
        if assumed := experiment.assumed:
            where = "" if runtime is None else f", in a {type(runtime).__name__}"
            self._print(f"by default {', '.join(f'{name} {value!r}' for name, value in assumed.items())}{where}")

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Print the round and its figures, when a line is due."""
        is_due = record.round % self._every == 0 and time.monotonic() - self._moment >= self._seconds
        if not is_due and record.round != self._planned and not failures:
            return
        for line in failure_lines(record, failures):
            self._print(line)
        self._print_round(record)

    def on_end(self, history: History) -> None:
        """Print the last round, and why the run ended, where it ended early."""
        if not history.stopped_early:
            return
        if history.rounds and history.rounds[-1].round != self._round:
            self._print_round(history.rounds[-1])
        self._print(f"ended early: {history.stopped_early}")

    def _print_round(self, record: RoundRecord) -> None:
        self._moment = time.monotonic()
        self._round = record.round
        seconds = record.seconds + (record.eval_seconds or 0.0)
        timed = [f"{seconds:.2f} s"] if record.seconds else []  # of a secret cohort nobody is told how long it took
        parts = [figures(record), present(record), *traffic(record), *timed]
        self._print("  ".join([f"round {record.round}/{self._planned}", *parts]))

    def _print(self, line: str) -> None:
        print(line, file=self._stream or sys.stdout, flush=True)


def default_watchers() -> list[Watcher]:
    """Return what `run` shows unasked: progress on standard error, or in a notebook among the cell's output."""
    is_notebook = hasattr(builtins, "__IPYTHON__")
    return [Progress(sys.stdout if is_notebook else sys.stderr, seconds=1.0)]


def figures(record: RoundRecord) -> str:
    """Format a round's accuracy and loss, each of the most telling examples it was measured on."""
    found = []
    for name in ("accuracy", "loss"):
        group = next((group for group in GROUPS if f"{group}_{name}" in record.numbers), None)
        if group:
            found.append(f"{group} {name} {record.numbers[f'{group}_{name}']:.4f}")
    return "  ".join(found)


def failure_lines(record: RoundRecord, failures: Sequence[Failure]) -> list[str]:
    """Say who was left out of a round, and why, for the first few."""
    lines = [f"round {record.round}: client {f.client} left out ({f.reason}): {printable(f.detail)}" for f in failures]
    return lines[:SHOWN_FAILURES] + [f"… and {len(lines) - SHOWN_FAILURES} more"] * (len(lines) > SHOWN_FAILURES)


def traffic(record: RoundRecord) -> list[str]:
    """Format the size of a partly frozen model's trainable part and the bytes sent; nothing for another model."""
    if record.trainable_bytes is None:
        return []
    sent = [size(count) for count in (record.bytes_up, record.bytes_down) if count is not None]
    ways = [f"{count} {way}" for count, way in zip(sent, ("up", "down"), strict=False)]
    return [f"trainable {size(record.trainable_bytes)}" + (f": {', '.join(ways)}" if ways else "")]


def size(count: int) -> str:
    """Format a number of bytes: "999 B", "25.6 kB", "9.2 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def present(record: RoundRecord) -> str:
    """Say how many clients a round's model is from."""
    return counted(record.clients, "client") if record.clients else "nobody took part"


def counted(number: int, noun: str) -> str:
    """Format a number of things: "1 client", "2 clients"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
