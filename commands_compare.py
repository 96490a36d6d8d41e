"""`umbel compare`: experiments side by side, over several seeds."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Annotated, Literal

import typer

from .console import (
    Bar,
    check_plot_path,
    exclusive_output,
    figures,
    print_grid,
    print_table,
    progress,
    to_json,
    without_native_logs,
)
from .core.errors import ConfigError
from .core.experiment import Experiment
from .core.loading import Compared, load_compared
from .core.protocols import Runtime, Watcher
from .core.types import Failure, RoundRecord
from .launch import DEFAULT_STORE
from .server.comparison import DEFAULT_METRICS, Comparison, Grid, Row, check_measurable, compare
from .server.history import History


def compare_command(
    experiments: Annotated[list[str], typer.Argument(help="Names or .py files; one of a file: FILE:NAME.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all of them.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds from the experiment's own on.")] = 1,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="What to compare by; may be repeated. By default what the file names, or test_accuracy."),
    ] = None,
    target: Annotated[float | None, typer.Option(help="How soon does each metric reach this?")] = None,
    workers: Annotated[int | None, typer.Option(help="Clients side by side.")] = None,
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="UMBEL_STORE", help="Where runs are kept.")
    ] = DEFAULT_STORE,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the metrics: .png, .svg, .pdf.")] = None,
    over: Annotated[
        Literal["round", "seconds", "virtual_seconds", "bytes"], typer.Option(help="What the plot's axis counts.")
    ] = "round",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per experiment and metric.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run experiments side by side, each with the same seeds: mean, spread, and how soon a target is reached.

    A file may name its metrics: compared_by = ("test_accuracy", "test_loss"). GROUP/VARIANT names make a grid.

    A run that cannot go on (it diverged, its budget is spent) is noted; the others go on.
    """
    output = exclusive_output() if as_json else None
    if plot:
        check_plot_path(plot)
    with without_native_logs():
        found, named = gathered(experiments, settings or [])
        metrics = tuple(dict.fromkeys(metric or named))
        check_before(found, metrics, over if plot else "round")
    with watching(quiet, len(found) * seeds) as shown:
        comparison = played(found, metrics, seeds, workers, store, shown)
    try:
        if plot:
            save(comparison, plot, over)
    finally:  # a plot that fails does not take the table with it, nor `| head` the plot
        if output:
            print_json(comparison, target, output)
        else:
            report(comparison, target)


def played(
    experiments: Mapping[str, Experiment],
    metrics: Sequence[str],
    seeds: int,
    workers: int | None,
    store: str,
    watchers: Callable[[str, int], Sequence[Watcher]],
) -> Comparison:
    """All runs, in simulation, kept in a store."""
    from .runtimes.simulation import Simulation, prepare
    from .server.store import Store

    with contextlib.closing(Simulation(workers)) as runtime, Store.open(store) as opened:
        with without_native_logs():
            for one in experiments.values():
                prepare(one)
            from .clients import worker  # noqa: F401  imports TensorFlow
        return compare(experiments, runtime, seeds=seeds, metrics=metrics, store=opened, watchers=watchers)


def check_before(experiments: Mapping[str, Experiment], metrics: Sequence[str], over: str) -> None:
    """Errors: ConfigError for what should not be found after an hour: a missing data set, metric or clock."""
    check_measurable(experiments.values(), metrics)
    if over == "virtual_seconds" and all(one.devices is None for one in experiments.values()):
        raise ConfigError("no experiment has devices, whose clock over='virtual_seconds' is; choose another axis")
    for one in experiments.values():
        one.population.sizes(), one.test_examples()


def gathered(references: list[str], settings: list[str]) -> Compared:
    """All experiments by name, and the metrics that each of their files compares by.

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
    """What shows the progress of `total` runs: a bar on a terminal, in a log a line per run."""
    with progress(quiet or not sys.stderr.isatty()) as bars:
        places = itertools.count(1)

        def shown(name: str, seed: int) -> Sequence[Watcher]:
            for bar in (one for one in bars if isinstance(one, Bar)):
                bar.title = f"{next(places)} of {total}: {name}, seed {seed}"
            return bars if bars or quiet else [RunLine(name, seed)]

        yield shown


class RunLine:
    """Watches a run, and says in one line what it came to."""

    def __init__(self, name: str, seed: int):
        self._name, self._seed = name, seed

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Nothing yet."""

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Nothing yet."""

    def on_end(self, history: History) -> None:
        """The last round's figures."""
        rounds = len(history.rounds)
        text = (
            f"{self._name}, seed {self._seed}: {figures(history.rounds[-1])} after {rounds} rounds, run {history.run}"
        )
        print(text, file=sys.stderr, flush=True)


def print_json(comparison: Comparison, target: float | None, output: IO[str]) -> None:
    """One object per experiment and metric."""
    for rows in zip(*(comparison.rows(metric, target) for metric in comparison.metrics), strict=True):
        for metric, row in zip(comparison.metrics, rows, strict=True):
            print(to_json(row._asdict() | {"metric": metric, "target": target}), file=output, flush=True)


def report(comparison: Comparison, target: float | None) -> None:
    """A table for each metric, and below them why runs ended that could not go on."""
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
    """A line per experiment."""
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
    """A row per variant and a column per group, or the other way round: see `print_grid`."""
    cells = {row.name: with_spread(row, digits=3) for row in rows}
    title = metric.replace("_", " ")
    body = [[one, *(cells[grid.name(group, one)] for group in grid.groups)] for one in grid.variants]
    print_grid([[title, *grid.groups], *body])


def with_spread(row: Row, digits: int) -> str:
    """The final mean, and where there are several seeds its standard deviation."""
    spread = "" if math.isnan(row.spread) else f" ± {number(row.spread, digits)}"
    return number(row.final, digits) + spread


def number(value: float, digits: int) -> str:
    """A dash for NaN; large ones, such as bytes, in short."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.4g}"


def save(comparison: Comparison, path: str, over: str) -> None:
    """Draw the comparison. Errors: ConfigError where the file cannot be written."""
    try:
        comparison.plot(path, over=over)
    except OSError as error:
        raise ConfigError(f"cannot write plot={path!r}: {error.strerror}") from error
