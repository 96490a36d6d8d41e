"""Output of the command: progress on standard error, JSON lines or a summary on standard output."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import IO, Any, NamedTuple, NoReturn

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.runtime import Runtime
from ..core.types import Failure, RoundRecord, json_float
from ..server.history import History
from ..server.progress import GROUPS, Progress, failure_lines, figures, present, size, traffic

ENDING = (signal.SIGTERM, signal.SIGHUP)  # schedulers, service managers, terminals that are closed
NARROWEST = 16  # least characters of a table's last column
PIPE = 100  # characters that fit a line of a log
COMPILED = {"xla": "with XLA", "graph": "as TensorFlow graphs, without XLA"}
HIDDEN = {
    "arithmetic": "updates summed as integers, without the protocol that hides them",
    "protocol": "updates hidden by the whole protocol",
}


class Ended(NamedTuple):
    """A finished run, and what can be done with it."""

    experiment: Experiment
    history: History
    compiled: str | None  # "xla", "graph", or None where the runtime does not say
    commands: Mapping[str, str]  # what to type next, by what it does
    figures: Mapping[str, int] = MappingProxyType({})  # counts of the cluster that it was played on, see `FIGURES`


class Interrupted(KeyboardInterrupt):
    """Ends a run as Ctrl-C does, between two commits, so that it can be resumed; exits with `status`."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """End as Ctrl-C does on a signal that asks to end, inside the block, so that what was begun is closed.

    Yields the signals that came.

    One that is ignored (nohup), or handled already, is left alone; and so are all where this is not the main thread.
    """
    received: list[int] = []

    def interrupt(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise Interrupted(128 + number, "asked to stop")

    is_main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in ENDING if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Bar:
    """A progress bar with the last round's figures, for a terminal. A context manager.

    title: what the next run is called; None: the experiment's name.
    """

    def __init__(self, console: Console):
        self.title: str | None = None
        self._progress = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=None),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[figures]}"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_notice(self, text: str) -> None:
        """Print what there is to know."""
        self._progress.console.print(text, markup=False, highlight=False)

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Turn from waiting to counting."""
        self._progress.reset(
            self._task,
            description=escape(self.title or experiment.name),
            total=experiment.rounds,
            completed=len(records),
            figures="",
        )

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Move the bar a round further, with its figures."""
        alone = "" if record.clients else f"  {present(record)}"
        for line in failure_lines(record, failures):
            self._progress.console.print(line, markup=False, highlight=False)
        shown = "  ".join([figures(record) + alone, *traffic(record)])
        self._progress.update(self._task, completed=record.round, figures=shown)

    def on_end(self, history: History) -> None:
        """Do nothing: the bar goes with its block, and the summary says the rest."""


class JsonLines:
    """Watcher that prints one JSON object per round, then {"final": …}."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Print nothing: rounds of a resumed run were printed by the process that played them."""

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Print the round's object."""
        self._print(record.to_json())

    def on_end(self, history: History) -> None:
        """Print the last object."""
        self._print({"final": history.final()})

    def _print(self, value: Mapping[str, Any]) -> None:
        try:
            print(to_json(value), file=self._stream, flush=True)
        except BrokenPipeError as error:
            raise Interrupted(141, "nobody reads its output") from error


def to_json(value: Mapping[str, Any]) -> str:
    """Write one line of JSON.

    NaN and infinities, which JSON does not have, are the strings "NaN", "Infinity", "-Infinity", which every language's
    float parser reads; null is what was not measured.
    """
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return json_float(value) if isinstance(value, float) else value


def accuracy(metrics: Mapping[str, float]) -> str:
    """Format the accuracy among a round's metrics, of the test examples if measured; empty without one."""
    found = (metrics[name] for name in (f"{group}_accuracy" for group in GROUPS) if name in metrics)
    return next((f"{value:.4f}" for value in found), "")


def summary(ended: Ended, plot: str | None) -> str:
    """Say in a few lines what a finished run came to."""
    history, population = ended.history, ended.experiment.population
    count = len(history.rounds)
    failed = sum(record.failures for record in history.rounds)
    clients = sum(record.clients for record in history.rounds) / count
    early = f"; ended early: {history.stopped_early}" if history.stopped_early else ""
    facts = {
        "reached": figures(history.rounds[-1]),
        "rounds": f"{count} in {history.seconds:.1f} s{early}",
        "clients": f"{clients:.4g} of {len(population)} per round" + (f", {failed} failed" if failed else ""),
        "compiled": COMPILED.get(ended.compiled or ""),
        "cluster": cluster_text(ended.figures),
        "privacy": privacy_text(history.privacy),
        "plot": plot,
        "run": f"{history.run}, model version {history.model_version}",
        **ended.commands,
    }
    width = max(map(len, facts))
    return "\n".join([history.experiment, *(f"  {name:<{width}}  {fact}" for name, fact in facts.items() if fact)])


def cluster_text(figures: Mapping[str, int]) -> str:
    """Say in a line what a runtime counts of a cluster; empty for one that has none."""
    if not figures:
        return ""
    parts = [f"{figures['processes']} processes on {figures['nodes']} {'node' if figures['nodes'] == 1 else 'nodes'}"]
    if figures["lost"]:
        parts.append(f"{figures['lost']} lost, {figures['again']} calls made again")
    if figures["twice"]:
        parts.append(f"{figures['twice']} calls made twice, for slow ones")
    return ", ".join([*parts, f"{size(figures['bytes'])} sent here"])


def privacy_text(privacy: Mapping[str, Any]) -> str:
    """Say in a line what History.privacy holds; empty for nothing."""
    facts = []
    if "epsilon" in privacy:
        seeded = ", noise from the run's seed" if privacy["noise"] == "seeded" else ""
        facts.append(f"ε = {privacy['epsilon']:.4g} at δ = {privacy['delta']:g}{seeded}")
    elif "noise" in privacy:
        source = "the run's seed" if privacy["noise"] == "seeded" else "the operating system"
        facts.append(f"noise from {source}, of no plan: no ε is claimed")
    if "aggregation" in privacy:
        facts.append(HIDDEN[privacy["aggregation"]])
    return "; ".join(facts)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the last column wrapped; in a pipe, or in a narrow terminal, whole lines."""
    console = Console(highlight=False)
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    # Half of a run's id would be of no use: what does not fit is left to the terminal to wrap.
    fits = sum(widths[:-1]) + 2 * len(widths) + min(widths[-1], NARROWEST) <= console.width
    if not console.is_terminal or not fits:
        for row in [titles, *rows]:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, title in enumerate(titles):
        table.add_column(title, no_wrap=position < len(titles) - 1)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def print_grid(table: Sequence[Sequence[str]]) -> None:
    """Print a table with titles in its first row and first column.

    Turned round where that fits and this does not; in a terminal too narrow for either, in blocks of columns. A pipe is
    taken for 100 characters wide, and gets whole lines.
    """
    console = Console(highlight=False)
    width = console.width if console.is_terminal else PIPE
    if total_width(table) > width and total_width(turned := [*zip(*table, strict=True)]) <= width:
        table = turned
    first, *columns = zip(*table, strict=True)
    while columns:
        count = len(columns)
        while console.is_terminal and count > 1 and total_width([*zip(first, *columns[:count], strict=True)]) > width:
            count -= 1
        titles, *rows = zip(first, *columns[:count], strict=True)
        print_table(titles, rows)
        columns = columns[count:]
        if columns:
            print()


def total_width(table: Sequence[Sequence[str]]) -> int:
    """Return the width of a printed table, in characters."""
    return sum(max(map(len, column)) + 2 for column in zip(*table, strict=True))


@contextmanager
def progress(quiet: bool) -> Iterator[list[Watcher]]:
    """Yield watchers that show progress on standard error: a bar on a terminal, lines in a log, none if quiet."""
    if quiet:
        yield []
    elif not sys.stderr.isatty():
        yield [Progress(sys.stderr)]
    else:
        # A descriptor of its own: descriptor 2 is elsewhere while TensorFlow is imported.
        with open(os.dup(2), "w", buffering=1) as stream, Bar(Console(file=stream)) as bar:
            yield [bar]


def exclusive_output() -> IO[str]:
    """Keep standard output for the caller: what anything else prints, an experiment's file too, goes to stderr."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def check_plot_path(path: str) -> None:
    """Make the plot's folder. Errors: ConfigError for a kind of picture that cannot be drawn, or an unwritable place.

    Called before a run: an hour of training should not end in a misspelt file name.
    """
    folder, suffix = os.path.dirname(path) or ".", os.path.splitext(path)[1]
    if suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"expected plot={path!r} to end in .png, .svg or .pdf")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder of plot={path!r}: {error.strerror}") from error
    try:  # not by asking for rights, which say nothing of what kind of folder it is
        tempfile.TemporaryFile(dir=folder).close()
        is_writable = not os.path.exists(path) or (os.path.isfile(path) and os.access(path, os.W_OK))
    except OSError:
        is_writable = False
    if not is_writable:
        raise ConfigError(f"cannot write plot={path!r}; choose another place")


def save_plot(history: History, path: str) -> None:
    """Draw a run. Errors: ConfigError where the file cannot be written."""
    try:
        history.plot(path)
    except OSError as error:
        raise ConfigError(f"cannot write plot={path!r}: {error.strerror}") from error
