"""Experiments side by side: the same seeds, the same runtime, and what each came to."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import ConfigError, RunStopped
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.reading.directions import MODES, Measures, Mode, direction_of, mode_of
from ..core.runtime import Runtime
from ..core.system.printable import printable
from ..core.validation import fields_of, require, require_count, shown
from ..server.arguments import check_experiment
from ..server.history import History
from ..server.loop import run_checked
from ..server.watched import check_metric
from .curves import Grid, Metric, axis, best_of, curve_of, grid_of, is_measured, measured, position

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ..server.store import Store


DEFAULT_METRICS = ("test_accuracy",)
EXAMPLES = {"test": "test examples", "validation": "validation examples"}  # examples that a metric's first word needs


class Row(NamedTuple):
    """Results of one experiment over all seeds.

    Means and deviations are of the seeds whose run reached its end, and measured.
    """

    name: str
    seeds: int
    final: float  # mean of the metric where it was measured last; NaN where no seed measured it, or one ended in NaN
    spread: float  # standard deviation of the metric where it was measured last; NaN for one seed
    best: float  # mean of the metric in each run's best round; NaN where nobody knows whether it is to fall or to rise
    reached: int | None  # number of seeds that reached the target; None without one
    rounds_to_target: float | None  # median over the seeds that reached the target
    seconds_to_target: float | None
    virtual_seconds_to_target: float | None  # median time of the simulated devices, where the experiment has any
    stopped: tuple[str, ...]  # reasons why runs ended that could not go on
    measured: int  # number of seeds that measured the metric


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Histories by experiment, one per seed; and the reasons of the runs that could not go on.

    Parameters
    ----------
    metrics
        What experiments are compared by; where a method is not told a metric, it takes the first.
    modes
        "min" for metrics that are to fall, "max" for those that are to rise, where that is not known; see `compare`.
    """

    histories: Mapping[str, Sequence[History]]
    stopped: Mapping[str, Sequence[str]]
    metrics: Sequence[str] = DEFAULT_METRICS
    modes: Mapping[str, Mode] = field(default_factory=dict)

    def __repr__(self) -> str:
        runs = sum(map(len, [*self.histories.values(), *self.stopped.values()]))
        names = ", ".join(self.histories)
        return f"Comparison({len(self.histories)} experiments, {runs} runs: {printable(names, 60)})"

    def _repr_html_(self) -> str:
        """Write a table for each metric, for a notebook, where pandas is installed and all metrics were measured."""
        try:
            return "\n".join(self._table(metric) for metric in self.metrics)
        except ConfigError:
            return f"<pre>{html.escape(repr(self))}</pre>"

    def _table(self, metric: str) -> str:
        frame = self.to_frame(metric) if self.grid is None else self.to_grid(metric)
        table = frame.to_html(na_rep="–", float_format="{:.4f}".format)
        return f"<p><b>{html.escape(metric.replace('_', ' '))}</b></p>\n{table}"

    @property
    def grid(self) -> Grid | None:
        """The grid of at least 2 × 2 that the experiments' names form; None if they do not."""
        return grid_of(self.histories)

    def rows(self, metric: str | None = None, target: float | None = None) -> list[Row]:
        """Return one row per experiment, in the order given. target: a value of metric to reach.

        Errors: ConfigError for a metric that no run measured, see `measuring`.
        """
        metric = metric or self.metrics[0]
        measuring = self.measuring(metric)
        return [self._row(name, histories, metric, target) for name, histories in measuring.items()]

    def to_frame(self, metric: str | None = None, target: float | None = None) -> pandas.DataFrame:
        """Return `rows` as a frame, indexed by name. Needs pandas."""
        return frames().DataFrame(self.rows(metric, target)).set_index("name")

    def to_grid(self, metric: str | None = None) -> pandas.DataFrame:
        """Return means after the last round as a frame: a row per variant, a column per group.

        The experiments are called "group/variant". Needs pandas. Errors: ConfigError for names that form no grid.
        """
        grid = self.grid
        if grid is None:
            raise ConfigError('expected experiments called "group/variant", two of each at least, in all combinations')
        final = {row.name: row.final for row in self.rows(metric)}
        columns = {group: [final[grid.name(group, one)] for one in grid.variants] for group in grid.groups}
        return frames().DataFrame(columns, index=list(grid.variants))

    def plot(self, path: str | None = None, metric: str | Sequence[str] | None = None, over: str = "round") -> Figure:
        """Plot a metric's mean and range over seeds; several one below the other, by default all that are compared by.

        over: "round", "seconds", "virtual_seconds" or "bytes". Saved to path (.png, .svg, .pdf) when given.
        """
        from .plots import plot_metrics

        metrics = (metric,) if isinstance(metric, str) else metric
        return plot_metrics([self._curves(name, over) for name in metrics or self.metrics], over, path)

    def _curves(self, metric: str, over: str) -> Metric:
        """Return a metric with its curves, as it is drawn.

        Errors: ConfigError for a metric that no run has, and for another axis than there is.
        """
        measuring = self.measuring(metric)
        curves = {
            name: curve
            for name, histories in measuring.items()
            if histories and len((curve := curve_of(histories, metric, over)).far)
        }
        if not curves and any(measuring.values()):
            raise ConfigError(f"no run measured {over!r} where it measured {metric!r}; choose another axis")
        return Metric(metric, curves, self.grid, self.mode(metric))

    def measuring(self, metric: str) -> dict[str, list[History]]:
        """Return the runs of each experiment that measured metric.

        Errors: ConfigError where none did, unless an experiment has no run to ask: it might have, had it gone on.
        """
        found = {name: [one for one in runs if is_measured(one, metric)] for name, runs in self.histories.items()}
        if self.histories and all(self.histories.values()) and not any(found.values()):
            measured(next(iter(self.histories.values()))[0], metric)  # says what there is
        return found

    def mode(self, metric: str) -> Mode | None:
        """Return the direction of metric: it is to fall ("min") or to rise ("max"); None: nobody knows."""
        if metric in self.modes:
            return self.modes[metric]
        histories = next((runs for runs in self.measuring(metric).values() if runs), ())
        return direction_of(metric, histories[0].directions if histories else {})

    def _row(self, name: str, histories: Sequence[History], metric: str, target: float | None) -> Row:
        mode = self.mode(metric)
        columns = [measured(history, metric) for history in histories]
        last = np.array([column[-1] for column in columns])
        best = [] if mode is None else [best_of(column, mode) for column in columns]
        reached: list[tuple[History, int]] = []
        for history in histories if target is not None else ():
            assert target is not None
            if (number := history.rounds_to(target, metric, mode)) is not None:
                reached.append((history, number))
        clocks: dict[str, list[float]] = {
            over: [float(axis(history, over)[position(history, number)]) for history, number in reached]
            for over in ("seconds", "virtual_seconds")
        }
        return Row(
            name,
            len(self.histories[name]) + len(self.stopped[name]),
            float(last.mean()) if len(last) else float("nan"),
            float(last.std(ddof=1)) if len(last) > 1 else float("nan"),
            float(np.mean(best)) if best else float("nan"),
            None if target is None else len(reached),
            median([float(number) for _, number in reached]),
            median(clocks["seconds"]),
            median(clocks["virtual_seconds"]),
            tuple(self.stopped[name]),
            len(histories),
        )


def compare(
    experiments: Mapping[str, Experiment] | Sequence[Experiment],
    runtime: Runtime,
    *,
    seeds: int | Sequence[int] = 1,
    metrics: str | Sequence[str] = (),
    modes: Mapping[str, Mode] | None = None,
    store: str | Store | None = None,
    watchers: Callable[[str, int], Sequence[Watcher]] = lambda name, seed: (),
) -> Comparison:
    """Run every experiment with every seed.

    A run that could not go on (it diverged, its budget was spent) is noted, and the others go on.

    Parameters
    ----------
    experiments
        By the name to show, or in a list, by their own.
    runtime
        Where clients are.
    seeds
        How many, from each experiment's own on; or which.
    metrics
        What to compare by, known before the first run; by default test accuracy, where it is measured.
    modes
        {metric: "min" or "max"} for metrics of which nobody knows whether they are to fall or to rise: all but Keras's
        own, and losses.
    store
        Database URL, or an open Store, that keeps the runs; None: in memory.
    watchers
        Called with an experiment's name and a seed: the watchers of that run.

    Raises
    ------
    ConfigError
        For no experiment, two of one name, a metric that nothing measures, or of which nobody knows the direction:
        before the first round, and for models with steps of their own after the first run.
    UmbelError
        Whatever else `run` raises.
    """
    named = _named(experiments)
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    check_measurable(named.values(), metrics)
    modes = dict(modes or {})
    for metric, mode in modes.items():
        require(mode in MODES, f"expected modes={{{metric!r}: {mode!r}}} to be 'min' or 'max'")
    histories: dict[str, list[History]] = {name: [] for name in named}
    stopped: dict[str, list[str]] = {name: [] for name in named}
    unseen = list(metrics)
    for name, experiment in _turns(named, seeds):
        check = partial(check_wanted, experiment, tuple(unseen), modes, runtime.is_live)
        try:
            seen = watchers(name, experiment.seed)
            history = run_checked(experiment, runtime, check, store=store, watchers=seen)
        except RunStopped as reason:
            stopped[name].append(f"seed {experiment.seed}: {reason}")
            continue
        histories[name].append(history)
        unseen = [metric for metric in unseen if not is_measured(history, metric)]
        for metric in unseen:
            if can_measure(experiment, metric):
                measured(history, metric)  # says what there is instead
    return Comparison(histories, stopped, metrics or DEFAULT_METRICS, modes)


def _named(experiments: Mapping[str, Experiment] | Sequence[Experiment]) -> Mapping[str, Experiment]:
    """Return experiments by name. Errors: ConfigError for none, for one alone, and for two of one name."""
    is_several = isinstance(experiments, (Mapping, list, tuple))
    require(is_several, f"expected experiments={shown(experiments)} to be several: [first, second], or by name")
    for one in experiments.values() if isinstance(experiments, Mapping) else experiments:
        check_experiment(one)
    named = experiments if isinstance(experiments, Mapping) else {one.name: one for one in experiments}
    require(len(named) == len(experiments) > 0, "expected experiments of different names, at least one")
    return named


def _turns(named: Mapping[str, Experiment], seeds: int | Sequence[int]) -> Iterator[tuple[str, Experiment]]:
    """Yield each experiment with each seed: all of them with their first, then with their second.

    For another seed, a runtime builds its models anew.
    """
    for turn in zip(*(seeds_of(experiment, seeds) for experiment in named.values()), strict=True):
        for (name, experiment), seed in zip(named.items(), turn, strict=True):
            yield name, dataclasses.replace(experiment, seed=seed)


def check_measurable(experiments: Collection[Experiment], metrics: Sequence[str]) -> None:
    """Raise ConfigError for a metric of examples that no experiment has."""
    for metric in metrics:
        if not any(can_measure(experiment, metric) for experiment in experiments):
            raise ConfigError(
                f"no experiment has {EXAMPLES[metric.split('_')[0]]}, on which {metric!r} is measured; choose another "
                "metric"
            )


def check_wanted(
    experiment: Experiment, metrics: Sequence[str], modes: Mapping[str, Mode], is_live: bool, measures: Measures
) -> None:
    """Refuse a metric that experiment has the examples for, and its model does not measure.

    Errors: ConfigError; also for one of which nobody knows whether it is to fall or to rise.
    """
    for metric in metrics:
        if can_measure(experiment, metric):
            check_metric(experiment.resolved, measures, is_live, metric)
            mode_of(metric, measures.directions, modes.get(metric), "a comparison")


def can_measure(experiment: Experiment, metric: str) -> bool:
    """Return whether an experiment has the examples that the metric's first word names; True for what needs none."""
    group = metric.split("_")[0]
    return group not in EXAMPLES or fields_of(experiment, group)[group] is not None


def frames() -> Any:
    """Import pandas. Errors: ConfigError where it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("tables need pandas: pip install 'umbel[notebooks]'") from error
    return pandas


def seeds_of(experiment: Experiment, seeds: int | Sequence[int]) -> Iterator[int]:
    """Return the seeds to run an experiment with."""
    if isinstance(seeds, int):
        require_count("seeds", seeds)
        return iter(range(experiment.seed, experiment.seed + seeds))
    return iter(seeds)


def median(values: Sequence[float]) -> float | None:
    """Compute the median; None for no values, and for values that are not known."""
    found: Any = np.median(values) if len(values) else np.nan
    return None if np.isnan(found) else float(found)
