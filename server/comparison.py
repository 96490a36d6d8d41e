"""Experiments side by side: the same seeds, the same runtime, and what each came to."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import ConfigError, RunStopped
from ..core.experiment import Experiment
from ..core.printable import printable
from ..core.protocols import Runtime, Watcher
from ..core.validation import require, require_count
from .history import History
from .loop import run

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from .store import Store


DEFAULT_METRICS = ("test_accuracy",)
EXAMPLES = {"test": "test examples", "validation": "validation examples"}  # what a metric's first word needs


class Row(NamedTuple):
    """One experiment over all seeds. Means and deviations are of the seeds whose run reached its end, and measured."""

    name: str
    seeds: int
    final: float  # mean of the metric after the last round; NaN where no seed measured it
    spread: float  # its standard deviation; NaN for one seed
    best: float  # mean of the best round's: the smallest for a name that ends in "loss", else the largest
    reached: int | None  # seeds that reached the target; None without one
    rounds_to_target: float | None  # median of those that did
    seconds_to_target: float | None
    virtual_seconds_to_target: float | None  # of the simulated devices, where the experiment has any
    stopped: tuple[str, ...]  # why runs ended that could not go on


class Grid(NamedTuple):
    """Names "group/variant", each group with each variant, in the order given."""

    groups: tuple[str, ...]
    variants: tuple[str, ...]

    def name(self, group: str, variant: str) -> str:
        """Of the experiment there."""
        return f"{group}/{variant}"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Histories by experiment, one per seed; and the reasons of the runs that could not go on.

    metrics: what experiments are compared by; where a method is not told a metric, it takes the first.
    """

    histories: Mapping[str, Sequence[History]]
    stopped: Mapping[str, Sequence[str]]
    metrics: Sequence[str] = DEFAULT_METRICS

    def __repr__(self) -> str:
        runs = sum(map(len, [*self.histories.values(), *self.stopped.values()]))
        names = ", ".join(self.histories)
        return f"Comparison({len(self.histories)} experiments, {runs} runs: {printable(names, 60)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: a table for each metric, where pandas is installed and all metrics were measured."""
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
        """How the experiments' names form a grid of at least 2 × 2; None if they do not."""
        return grid_of(self.histories)

    def rows(self, metric: str | None = None, target: float | None = None) -> list[Row]:
        """One row per experiment, in the order given. target: a value of metric to reach.

        Errors: ConfigError for a metric that no run measured, see `measuring`.
        """
        metric = metric or self.metrics[0]
        measuring = self.measuring(metric)
        return [self._row(name, histories, metric, target) for name, histories in measuring.items()]

    def to_frame(self, metric: str | None = None, target: float | None = None) -> pandas.DataFrame:
        """`rows` as a frame, indexed by name. Needs pandas."""
        return frames().DataFrame(self.rows(metric, target)).set_index("name")

    def to_grid(self, metric: str | None = None) -> pandas.DataFrame:
        """Means after the last round: a row per variant, a column per group, of experiments called "group/variant".

        Needs pandas. Errors: ConfigError for names that form no grid.
        """
        grid = self.grid
        if grid is None:
            raise ConfigError('expected experiments called "group/variant", two of each at least, in all combinations')
        final = {row.name: row.final for row in self.rows(metric)}
        columns = {group: [final[grid.name(group, one)] for one in grid.variants] for group in grid.groups}
        return frames().DataFrame(columns, index=list(grid.variants))

    def plot(self, path: str | None = None, metric: str | Sequence[str] | None = None, over: str = "round") -> Figure:
        """A metric's mean and range over seeds; several one below the other, by default all that are compared by.

        over: "round", "seconds", "virtual_seconds" or "bytes". Saved to path (.png, .svg, .pdf) when given.
        """
        from .plots import plot_comparison

        metrics = (metric,) if isinstance(metric, str) else metric
        return plot_comparison(self, path, tuple(metrics or self.metrics), over)

    def measuring(self, metric: str) -> dict[str, list[History]]:
        """Of each experiment the runs that measured metric.

        Errors: ConfigError where none did, unless an experiment has no run to ask: it might have, had it gone on.
        """
        found = {name: [one for one in runs if is_measured(one, metric)] for name, runs in self.histories.items()}
        if self.histories and all(self.histories.values()) and not any(found.values()):
            measured(next(iter(self.histories.values()))[0], metric)  # says what there is
        return found

    def _row(self, name: str, histories: Sequence[History], metric: str, target: float | None) -> Row:
        columns = [measured(history, metric) for history in histories]
        last = np.array([column[-1] for column in columns])
        best = np.array([column.min() if metric.endswith("loss") else column.max() for column in columns])
        reached = [(h, r) for h in histories if target is not None and (r := h.rounds_to(target, metric)) is not None]
        clocks: dict[str, list[float]] = {
            over: [float(axis(history, over)[position(history, number)]) for history, number in reached]
            for over in ("seconds", "virtual_seconds")
        }
        return Row(
            name,
            len(self.histories[name]) + len(self.stopped[name]),
            float(last.mean()) if len(last) else float("nan"),
            float(last.std(ddof=1)) if len(last) > 1 else float("nan"),
            float(best.mean()) if len(best) else float("nan"),
            None if target is None else len(reached),
            median([float(number) for _, number in reached]),
            median(clocks["seconds"]),
            median(clocks["virtual_seconds"]),
            tuple(self.stopped[name]),
        )


def compare(
    experiments: Mapping[str, Experiment] | Sequence[Experiment],
    runtime: Runtime,
    *,
    seeds: int | Sequence[int] = 1,
    metrics: str | Sequence[str] = (),
    store: str | Store | None = None,
    watchers: Callable[[str, int], Sequence[Watcher]] = lambda name, seed: (),
) -> Comparison:
    """Run every experiment with every seed.

    experiments: by the name to show, or by their own. seeds: how many, from each experiment's own on; or which.
    metrics: what to compare by, known before the first run; by default test accuracy, where it is measured. watchers:
    of the run of an experiment with a seed. A run that could not go on (it diverged, its budget was spent) is noted,
    and the others go on.

    Errors: ConfigError for no experiment, two of one name, or a metric that nothing measures: for misspelt ones after
    the first run; what else `run` raises.
    """
    named = experiments if isinstance(experiments, Mapping) else {one.name: one for one in experiments}
    require(len(named) == len(experiments) > 0, "expected experiments of different names, at least one")
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    check_measurable(named.values(), metrics)
    histories: dict[str, list[History]] = {name: [] for name in named}
    stopped: dict[str, list[str]] = {name: [] for name in named}
    unseen = list(metrics)
    # Seed by seed, and not experiment by experiment: for another seed, a runtime builds its models anew.
    for turn in zip(*(seeds_of(experiment, seeds) for experiment in named.values()), strict=True):
        for (name, experiment), seed in zip(named.items(), turn, strict=True):
            seeded = dataclasses.replace(experiment, seed=seed)
            try:
                history = run(seeded, runtime, store=store, watchers=watchers(name, seed))
            except RunStopped as reason:
                stopped[name].append(f"seed {seed}: {reason}")
                continue
            histories[name].append(history)
            unseen = [metric for metric in unseen if not is_measured(history, metric)]
            for metric in unseen:
                if can_measure(experiment, metric):
                    measured(history, metric)  # says what there is instead
    return Comparison(histories, stopped, metrics or DEFAULT_METRICS)


def check_measurable(experiments: Collection[Experiment], metrics: Sequence[str]) -> None:
    """Errors: ConfigError for a metric of examples that no experiment has."""
    for metric in metrics:
        if not any(can_measure(experiment, metric) for experiment in experiments):
            raise ConfigError(
                f"no experiment has {EXAMPLES[metric.split('_')[0]]}, on which {metric!r} is measured; choose another "
                "metric"
            )


def can_measure(experiment: Experiment, metric: str) -> bool:
    """Whether an experiment has the examples that the metric's first word names; True for what needs none."""
    group = metric.split("_")[0]
    return group not in EXAMPLES or getattr(experiment, group) is not None


def grid_of(names: Iterable[str]) -> Grid | None:
    """The grid of these names, divided at their first slash; None where they form none of at least 2 × 2."""
    pairs = [tuple(name.split("/", 1)) for name in names]
    if any(len(pair) != 2 for pair in pairs):
        return None
    groups, variants = (tuple(dict.fromkeys(part)) for part in zip(*pairs, strict=True)) if pairs else ((), ())
    is_full = len(groups) > 1 and len(variants) > 1 and len(pairs) == len(groups) * len(variants)
    return Grid(groups, variants) if is_full else None


def frames() -> Any:
    """pandas. Errors: ConfigError where it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("tables need pandas: pip install 'umbel[notebooks]'") from error
    return pandas


def seeds_of(experiment: Experiment, seeds: int | Sequence[int]) -> Iterator[int]:
    """The seeds to run an experiment with."""
    if isinstance(seeds, int):
        require_count("seeds", seeds)
        return iter(range(experiment.seed, experiment.seed + seeds))
    return iter(seeds)


def is_measured(history: History, metric: str) -> bool:
    """Whether a round has a number for metric."""
    values = (record.to_json().get(metric) for record in history.rounds)
    return any(value is not None and np.isfinite(value) for value in values)


def measured(history: History, metric: str) -> np.ndarray:
    """The metric in the rounds that measured it. Errors: ConfigError when none did."""
    column = history.column(metric)
    found = column[np.isfinite(column)]
    require(len(found) > 0, f"no round of {history.experiment} measured {metric!r}")
    return found


def axis(history: History, over: str) -> np.ndarray:
    """How far a run had come after each round: rounds, or seconds or bytes so far; NaN where that is not known."""
    known = ("round", "seconds", "virtual_seconds", "bytes")
    require(over in known, f"expected over={over!r} in {', '.join(known)}")
    if over == "round":
        return history.column("round")
    if over == "virtual_seconds":
        return np.array([record.metrics.get("virtual_seconds", np.nan) for record in history.rounds])
    columns = ("seconds",) if over == "seconds" else ("bytes_up", "bytes_down")
    return np.sum([np.cumsum(history.column(name)) for name in columns], axis=0)


def position(history: History, number: int) -> int:
    """Where a round is among the history's."""
    return next(place for place, record in enumerate(history.rounds) if record.round == number)


def median(values: Sequence[float]) -> float | None:
    """None of none, and of values that are not known."""
    found: Any = np.median(values) if len(values) else np.nan
    return None if np.isnan(found) else float(found)
