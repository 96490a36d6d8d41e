"""`umbel compare`: experiments side by side, over several seeds."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import typer

from .console import check_plot_path, exclusive_output, figures, print_table, progress, to_json, without_native_logs
from .core.errors import ConfigError
from .core.experiment import Experiment
from .core.loading import load_experiments
from .core.protocols import Runtime, Watcher
from .core.types import Failure, RoundRecord
from .launch import DEFAULT_STORE
from .server.comparison import Comparison, Row, compare, measured
from .server.history import History


def compare_command(
    experiments: Annotated[list[str], typer.Argument(help="Names or .py files; one of a file: FILE:NAME.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all of them.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds from the experiment's own on.")] = 1,
    metric: Annotated[str, typer.Option(help="What to compare by.")] = "test_accuracy",
    target: Annotated[float | None, typer.Option(help="How soon does the metric reach this?")] = None,
    workers: Annotated[int | None, typer.Option(help="Clients side by side.")] = None,
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="UMBEL_STORE", help="Where runs are kept.")
    ] = DEFAULT_STORE,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the metric: .png, .svg, .pdf.")] = None,
    over: Annotated[
        Literal["round", "seconds", "virtual_seconds", "bytes"], typer.Option(help="What the plot's axis counts.")
    ] = "round",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per experiment.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run experiments side by side, each with the same seeds: mean, spread, and how soon a target is reached.

    A run that cannot go on (it diverged, its budget is spent) is noted; the others go on.
    """
    from .runtimes.simulation import Simulation, prepare
    from .server.store import Store

    output = exclusive_output() if as_json else None
    if plot:
        check_plot_path(plot)
    with without_native_logs():
        found = gathered(experiments, settings or [])
        for one in found.values():
            one.population.sizes(), one.test_examples()  # a missing data set should not be found after an hour
    with contextlib.closing(Simulation(workers)) as runtime, Store.open(store) as opened, watching(quiet) as shown:
        with without_native_logs():
            for one in found.values():
                prepare(one)
            from .clients import worker  # noqa: F401  imports TensorFlow

        def watchers(name: str, seed: int) -> Sequence[Watcher]:
            return [Measured(metric), *shown(name, seed)]

        comparison = compare(found, runtime, seeds=seeds, store=opened, watchers=watchers)
    rows = comparison.rows(metric, target)
    if plot:
        save(comparison, plot, metric, over)
    if output:
        for row in rows:
            print(to_json(row._asdict() | {"metric": metric, "target": target}), file=output, flush=True)
        return
    report(rows, metric, target)


def gathered(references: list[str], settings: list[str]) -> dict[str, Experiment]:
    """All experiments by name. Errors: ConfigError for two of one name."""
    found: dict[str, Experiment] = {}
    for reference in references:
        for name, experiment in load_experiments(reference, settings).items():
            if name in found:
                raise ConfigError(f"two experiments are called {name!r}; rename one")
            found[name] = experiment
    return found


@contextlib.contextmanager
def watching(quiet: bool) -> Iterator[Callable[[str, int], Sequence[Watcher]]]:
    """What shows the progress of many runs: a bar on a terminal, in a log a line per run."""
    with progress(quiet or not sys.stderr.isatty()) as bars:
        yield lambda name, seed: bars if bars or quiet else [RunLine(name, seed)]


class Measured:
    """Ends a comparison with its first run that did not measure the metric, and not after all of them."""

    def __init__(self, metric: str):
        self._metric = metric

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Nothing yet."""

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Nothing yet."""

    def on_end(self, history: History) -> None:
        """Errors: ConfigError with the metrics that there are."""
        measured(history, self._metric)


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


def report(rows: list[Row], metric: str, target: float | None) -> None:
    """The rows as a table, and below it why runs ended that could not go on."""
    titles = ["experiment", metric.replace("_", " "), "best", "seeds"]
    has_clock = any(row.virtual_seconds_to_target is not None for row in rows)
    if target is not None:
        titles += [f"reached {target:g}", "in rounds", "in seconds"] + ["in virtual seconds"] * has_clock
    table = []
    for row in rows:
        spread = "" if math.isnan(row.spread) else f" ± {row.spread:.4f}"
        cells = [row.name, f"{row.final:.4f}{spread}", f"{row.best:.4f}", str(row.seeds)]
        if target is not None:
            times = [row.rounds_to_target, row.seconds_to_target] + [row.virtual_seconds_to_target] * has_clock
            cells += [f"{row.reached} of {row.seeds}", *("–" if time is None else f"{time:.4g}" for time in times)]
        table.append(cells)
    print_table(titles, table)
    for row in rows:
        for reason in row.stopped:
            print(f"{row.name}, {reason}")


def save(comparison: Comparison, path: str, metric: str, over: str) -> None:
    """Draw the comparison. Errors: ConfigError where the file cannot be written."""
    try:
        comparison.plot(path, metric, over)
    except OSError as error:
        raise ConfigError(f"cannot write plot={path!r}: {error.strerror}") from error
