"""`umbel sweep`: a search for good settings, a run for each trial."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import IO, Annotated, Literal

import typer

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.reading.loading import load_experiment
from ..core.system.quiet import without_native_logs
from ..core.types import json_float
from ..studies.sweep import Sweep, SweepTrial, sweep
from .console import Bar, check_plot_path, exclusive_output, print_table, progress, to_json
from .options import (
    AddressOption,
    GpusOption,
    JsonOption,
    MemoryOption,
    PlayedOption,
    QuietOption,
    SettingsOption,
    StoreKeyOption,
    StoreOption,
    WorkersOption,
)
from .run import DEFAULT_STORE, Request, named_store_key, runtime_of


def sweep_command(
    experiment: Annotated[str, typer.Argument(help="Its name, or a .py file.", show_default=False)],
    param: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=RANGE",
            help="A setting to vary: local.learning_rate=0.01:0.5:log, local.epochs=1:5, local.batch_size=16,32.",
        ),
    ],
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, those of an earlier call among them.")] = 20,
    metric: Annotated[str, typer.Option(help="Metric that is to be as good as can be.")] = "test_accuracy",
    mode: Annotated[
        Literal["min", "max"] | None, typer.Option(help="Which way the metric is to go, where that is not known.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search; the experiment's is --set seed=….")] = 0,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Under a plan: what all trials together may cost. [dim]\\[default: the plan's ε][/dim]"),
    ] = None,
    prune: Annotated[bool, typer.Option(help="End trials early that are worse than the median of others.")] = True,
    settings: SettingsOption = None,
    runtime: PlayedOption = "simulation",
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus: GpusOption = None,
    memory: MemoryOption = None,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the trials: .png, .svg, .pdf.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search for good settings: each trial is a run of the store, chosen by what earlier ones came to (Optuna).

    Typed again, it goes on where it was; with more --trials it goes further. Under a privacy plan all trials, those
    that were ended early too, are charged to one budget, and the sweep ends before a trial that could exceed it.
    """
    output = exclusive_output() if as_json else None
    if plot:
        check_plot_path(plot)
    with without_native_logs():
        chosen = load_experiment(experiment, settings or [])
        chosen.population.sizes()
        chosen.resolved.test_examples()
    with named_store_key(store_key), progress(quiet or not sys.stderr.isatty()) as bars:

        def shown(number: int, swept: Mapping[str, str]) -> Sequence[Watcher]:
            for bar in (one for one in bars if isinstance(one, Bar)):
                bar.title = f"trial {number + 1} of {trials}"
            return bars

        def told(trial: SweepTrial) -> None:
            if output:
                print(to_json(_row(trial)), file=output, flush=True)
            elif not quiet and not bars:
                print(_line(trial, metric), file=sys.stderr, flush=True)

        search = partial(sweep, chosen, _ranges(param), watchers=shown, on_trial=told)
        options = {"trials": trials, "metric": metric, "mode": mode, "seed": seed, "epsilon": epsilon, "prune": prune}
        place = Request(
            reference=None, store=store, runtime=runtime, workers=workers, address=address, gpus=gpus, memory=memory
        )
        found = _played(partial(search, **options), chosen, place)
    if plot:
        try:
            found.plot(plot)
        except OSError as error:
            raise ConfigError(f"cannot write plot={plot!r}: {error.strerror}") from error
    _report(found, output, quiet, experiment, settings or [])


def _played(search: Callable[..., Sweep], experiment: Experiment, place: Request) -> Sweep:
    """Play all trials in simulation or on a cluster, and keep them in a store."""
    from ..server.store import Store

    with contextlib.closing(runtime_of(place, [experiment])) as runtime, Store.open(place.store) as store:
        return search(store=store, runtime=runtime)


def _ranges(parameters: Sequence[str]) -> dict[str, str]:
    """Read KEY=RANGE. Errors: ConfigError for one without "=", and for a key that is named twice."""
    found: dict[str, str] = {}
    for parameter in parameters:
        path, separator, text = parameter.partition("=")
        if not separator or not path or not text:
            raise ConfigError(
                f"expected --param {parameter!r} to be KEY=RANGE, such as local.learning_rate=0.01:0.5:log"
            )
        if path in found:
            raise ConfigError(f"--param {path} is named twice; name it once")
        found[path] = text
    return found


def _row(trial: SweepTrial) -> dict:
    """Return a trial as JSON shows it."""
    row = trial._asdict() | {"settings": dict(trial.settings)}
    return row | {"value": None if trial.value is None else json_float(trial.value)}


def _line(trial: SweepTrial, metric: str) -> str:
    said = trial.reason if trial.value is None else f"{metric.replace('_', ' ')} {trial.value:.4f}"
    settings = "  ".join(f"{path}={text}" for path, text in trial.settings.items())
    return f"trial {trial.number + 1}  {settings}  {trial.state} after {trial.rounds} rounds  {said}"


def _report(found: Sweep, output: IO[str] | None, quiet: bool, experiment: str, settings: Sequence[str]) -> None:
    """Print the best trials, what all cost, and the command that trains with the best settings."""
    best = found.best
    if output:
        final = {"best": None if best is None else best.number, "epsilon": found.epsilon, "delta": found.delta}
        print(to_json({"final": final | {"importance": dict(found.importance), "stopped": found.stopped}}), file=output)
        return
    if quiet:
        return
    paths = list(found.ranges)
    ranked = sorted(
        (trial for trial in found.trials if trial.state == "finished" and trial.value is not None),
        key=lambda trial: (trial.value or 0.0) * (1 if found.mode == "min" else -1),
    )
    rows = [
        [
            str(trial.number + 1),
            *(_short(trial.settings[path]) for path in paths),
            f"{trial.value:.4f}",
            trial.run or "",
        ]
        for trial in ranked[:5]
    ]
    print_table(["trial", *paths, found.metric.replace("_", " "), "run"], rows)
    states = {state: sum(trial.state == state for trial in found.trials) for state in ("finished", "pruned", "failed")}
    print(", ".join(f"{count} {state}" for state, count in states.items() if count) or "no trial was played")
    if found.importance:
        print("share of the variance: " + ", ".join(f"{path} {share:.0%}" for path, share in found.importance.items()))
    if found.epsilon is not None:
        print(f"ε={found.epsilon:.4g} at δ={found.delta:g}, of all trials together")
    if found.stopped:
        print(f"ended early: {found.stopped}")
    if best is not None:
        words = [word for one in [*settings, *found.assignments] for word in ("--set", one)]
        print(f"best: {shlex.join(['umbel', 'run', experiment, *words])}")


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
