"""`umbel compare`: experiments side by side, over several seeds."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Literal, cast

import typer

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.reading.directions import MODES, Mode
from ..core.reading.loading import Compared, load_compared
from ..core.runtime import Runtime
from ..core.system.quiet import without_native_logs
from ..core.types import Failure, RoundRecord
from ..core.validation import require
from ..server.history import History
from ..studies.comparison import DEFAULT_METRICS, Comparison, Grid, Row, check_measurable, compare
from ..studies.stored import Difference, compare_stored
from .console import (
    Bar,
    check_plot_path,
    exclusive_output,
    figures,
    print_grid,
    print_table,
    progress,
    to_json,
)
from .options import AddressOption, GpusOption, MemoryOption, PlayedOption, StoreOption, WorkersOption
from .run import DEFAULT_STORE, Request, runtime_of

RUN = re.compile(r"latest|\d{8}(-\w*)?")  # a run's id, or the beginning of one
NEEDS = {"final": 1, "best": 1, "spread": 2}  # seeds that must have measured a metric for a row to have these


SettingsOfAllOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all of them.")
]
MetricsOption = Annotated[
    list[str] | None,
    typer.Option(help="Metric to compare by; may be repeated. By default those that the file names, or test_accuracy."),
]
ModesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=min|max", help="Which way a metric is to go, where that is not known; may be repeated."
    ),
]
OverOption = Annotated[
    Literal["round", "seconds", "virtual_seconds", "bytes"], typer.Option(help="What the plot's axis counts.")
]


def compare_command(
    experiments: Annotated[
        list[str], typer.Argument(help="Names or .py files; one of a file: FILE:NAME. Or ids of stored runs.")
    ],
    settings: SettingsOfAllOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds from the experiment's own on.")] = 1,
    metric: MetricsOption = None,
    mode: ModesOption = None,
    target: Annotated[float | None, typer.Option(help="Also show how soon each metric reaches this.")] = None,
    runtime: PlayedOption = "simulation",
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus: GpusOption = None,
    memory: MemoryOption = None,
    store: StoreOption = DEFAULT_STORE,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the metrics: .png, .svg, .pdf.")] = None,
    over: OverOption = "round",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per experiment and metric.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run experiments side by side, each with the same seeds: mean, spread, and how soon a target is reached.

    Ids of runs compare what the store holds: nothing is run. Runs of other seeds and equal settings are seeds of one.

    A file may name its metrics: compared_by = ("test_accuracy", "test_loss"). GROUP/VARIANT names make a grid.

    A run that cannot go on (it diverged, its budget is spent) is noted; the others go on.
    """
    output = exclusive_output() if as_json else None
    if plot:
        check_plot_path(plot)
    if all(map(is_run, experiments)):
        comparison, differences = stored(experiments, metric, mode, seeds, settings, workers, store)
        finish(comparison, target, plot, over, output)
        if output is None and differences:
            print()
            names = list(comparison.histories)
            print_table(["setting", *names], [[row.path, *(row.values[name] for name in names)] for row in differences])
        return
    with without_native_logs():
        found, named = gathered(experiments, settings or [])
        metrics = tuple(dict.fromkeys(metric or named))
        modes = read_modes(mode or [], metrics)
        check_before(found, metrics, over if plot else "round")
    with watching(quiet, len(found) * seeds) as shown:
        place = Request(
            reference=None, store=store, runtime=runtime, workers=workers, address=address, gpus=gpus, memory=memory
        )
        comparison = played(found, metrics, modes, seeds, place, shown)
    finish(comparison, target, plot, over, output)


def finish(comparison: Comparison, target: float | None, plot: str | None, over: str, output: IO[str] | None) -> None:
    """Draw and print a comparison."""
    try:
        if plot:
            save(comparison, plot, over)
    finally:  # a plot that fails does not take the table with it, nor `| head` the plot
        if output:
            print_json(comparison, target, output)
        else:
            report(comparison, target)


def is_run(reference: str) -> bool:
    """Return whether a word names a run, and no experiment."""
    return RUN.fullmatch(reference) is not None and not Path(reference).exists()


def stored(
    runs: Sequence[str],
    metric: Sequence[str] | None,
    mode: Sequence[str] | None,
    seeds: int,
    settings: Sequence[str] | None,
    workers: int | None,
    url: str,
) -> tuple[Comparison, list[Difference]]:
    """Compare runs of a store. Errors: ConfigError for options of runs that are yet to be played."""
    for option, is_given in (("--seeds", seeds != 1), ("--set", bool(settings)), ("--workers", workers is not None)):
        require(not is_given, f"{option} is of experiments that are run; stored runs are as they were")
    from ..server.store import Store

    metrics = tuple(dict.fromkeys(metric or DEFAULT_METRICS))
    with Store.open(url, create=False) as opened:
        return compare_stored(opened, runs, metrics, read_modes(mode or [], metrics))


def played(
    experiments: Mapping[str, Experiment],
    metrics: Sequence[str],
    modes: Mapping[str, Mode],
    seeds: int,
    place: Request,
    watchers: Callable[[str, int], Sequence[Watcher]],
) -> Comparison:
    """Play all runs in simulation or on a cluster, and keep them in a store."""
    from ..server.store import Store

    with contextlib.closing(runtime_of(place, experiments.values())) as runtime, Store.open(place.store) as opened:
        return compare(experiments, runtime, seeds=seeds, metrics=metrics, modes=modes, store=opened, watchers=watchers)


def read_modes(assignments: Sequence[str], metrics: Sequence[str]) -> dict[str, Mode]:
    """Read the directions that --mode gives.

    Errors: ConfigError for one that is not METRIC=min or METRIC=max, or is of a metric that nothing is compared by.
    """
    modes: dict[str, Mode] = {}
    for assignment in assignments:
        metric, _, word = assignment.partition("=")
        if word not in MODES:
            raise ConfigError(f"expected --mode {assignment} to be METRIC=min or METRIC=max")
        if metric not in metrics:
            raise ConfigError(f"--mode {assignment} is of a metric that nothing is compared by: add --metric {metric}")
        modes[metric] = cast("Mode", word)
    return modes


def check_before(experiments: Mapping[str, Experiment], metrics: Sequence[str], over: str) -> None:
    """Raise ConfigError for what should not be found after an hour: a missing data set, metric or clock."""
    check_measurable(experiments.values(), metrics)
    if over == "virtual_seconds" and all(one.devices is None for one in experiments.values()):
        raise ConfigError("no experiment has devices, whose clock over='virtual_seconds' is; choose another axis")
    for one in experiments.values():
        one.population.sizes(), one.resolved.test_examples()


def gathered(references: list[str], settings: list[str]) -> Compared:
    """Return all experiments by name, and the metrics that each of their files compares by.

    Errors: ConfigError for two of one name.
    """
    found: dict[str, Experiment] = {}
    metrics: list[tuple[str, ...]] = []
    for reference in references:
        experiments, by = load_compared(reference, settings)
        metrics.append(by or DEFAULT_METRICS)
        for name, experiment in experiments.items():
            if name in found:
                raise ConfigError(f"two experiments are called {name!r}; rename one")
            found[name] = experiment
    common = tuple(one for one in metrics[0] if all(one in others for others in metrics))
    return Compared(found, common or DEFAULT_METRICS)


@contextlib.contextmanager
def watching(quiet: bool, total: int) -> Iterator[Callable[[str, int], Sequence[Watcher]]]:
    """Yield what shows the progress of `total` runs: a bar on a terminal, in a log a line per run."""
    with progress(quiet or not sys.stderr.isatty()) as bars:
        places = itertools.count(1)

        def shown(name: str, seed: int) -> Sequence[Watcher]:
            for bar in (one for one in bars if isinstance(one, Bar)):
                bar.title = f"{next(places)} of {total}: {name}, seed {seed}"
            return bars if bars or quiet else [RunLine(name, seed)]

        yield shown


class RunLine:
    """Watcher that says in one line what a run came to."""

    def __init__(self, name: str, seed: int):
        self._name, self._seed = name, seed

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Print nothing yet."""

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Print nothing yet."""

    def on_end(self, history: History) -> None:
        """Print the last round's figures."""
        rounds = len(history.rounds)
        text = (
            f"{self._name}, seed {self._seed}: {figures(history.rounds[-1])} after {rounds} rounds, run {history.run}"
        )
        print(text, file=sys.stderr, flush=True)


def print_json(comparison: Comparison, target: float | None, output: IO[str]) -> None:
    """Print one object per experiment and metric."""
    for rows in zip(*(comparison.rows(metric, target) for metric in comparison.metrics), strict=True):
        for metric, row in zip(comparison.metrics, rows, strict=True):
            absent = {name: None for name, least in NEEDS.items() if row.measured < least}
            print(to_json(row._asdict() | {"metric": metric, "target": target} | absent), file=output, flush=True)


def report(comparison: Comparison, target: float | None) -> None:
    """Print a table for each metric, and below them why runs ended that could not go on."""
    for position, metric in enumerate(comparison.metrics):
        if position:
            print()
        rows = comparison.rows(metric, target)
        if comparison.grid is None or target is not None:
            print_rows(rows, metric, target)
        else:
            print_cells(comparison.grid, rows, metric)
    for name, reasons in comparison.stopped.items():
        for reason in reasons:
            print(f"{name}, {reason}")


def print_rows(rows: list[Row], metric: str, target: float | None) -> None:
    """Print a line per experiment."""
    titles = ["experiment", metric.replace("_", " "), "best", "seeds"]
    has_clock = any(row.virtual_seconds_to_target is not None for row in rows)
    if target is not None:
        titles += [f"reached {target:g}", "in rounds", "in seconds"] + ["in virtual seconds"] * has_clock
    table = []
    for row in rows:
        cells = [row.name, with_spread(row, digits=4), number(row.best, digits=4), str(row.seeds)]
        if target is not None:
            times = [row.rounds_to_target, row.seconds_to_target] + [row.virtual_seconds_to_target] * has_clock
            cells += [f"{row.reached} of {row.seeds}", *("–" if time is None else f"{time:.4g}" for time in times)]
        table.append(cells)
    print_table(titles, table)


def print_cells(grid: Grid, rows: list[Row], metric: str) -> None:
    """Print a row per variant and a column per group, or the other way round: see `print_grid`."""
    cells = {row.name: with_spread(row, digits=3) for row in rows}
    title = metric.replace("_", " ")
    body = [[one, *(cells[grid.name(group, one)] for group in grid.groups)] for one in grid.variants]
    print_grid([[title, *grid.groups], *body])


def with_spread(row: Row, digits: int) -> str:
    """Format the final mean, and where there are several seeds its standard deviation."""
    spread = f" ± {number(row.spread, digits)}" if row.measured > 1 else ""
    return number(row.final, digits) + spread


def number(value: float, digits: int) -> str:
    """Format a number: a dash for NaN; large ones, such as bytes, in short."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.4g}"


def save(comparison: Comparison, path: str, over: str) -> None:
    """Draw the comparison. Errors: ConfigError where the file cannot be written."""
    try:
        comparison.plot(path, over=over)
    except OSError as error:
        raise ConfigError(f"cannot write plot={path!r}: {error.strerror}") from error
