"""Experiments side by side: the same seeds, the same runtime, and what each came to."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import ConfigError, RunStopped
from ..core.experiment import Experiment
from ..core.protocols import Runtime, Watcher
from ..core.validation import require, require_count
from .history import History
from .loop import run

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from .store import Store


class Row(NamedTuple):
    """One experiment over all seeds. Means and deviations are of the seeds whose run reached its end."""

    name: str
    seeds: int
    final: float  # mean of the metric after the last round
    spread: float  # its standard deviation; NaN for one seed
    best: float  # mean of the best round's
    reached: int | None  # seeds that reached the target; None without one
    rounds_to_target: float | None  # median of those that did
    seconds_to_target: float | None
    virtual_seconds_to_target: float | None  # of the simulated devices, where the experiment has any
    stopped: tuple[str, ...]  # why runs ended that could not go on


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Histories by experiment, one per seed; and the reasons of the runs that could not go on."""

    histories: Mapping[str, Sequence[History]]
    stopped: Mapping[str, Sequence[str]]

    def __repr__(self) -> str:
        runs = sum(map(len, [*self.histories.values(), *self.stopped.values()]))
        return f"Comparison({len(self.histories)} experiments, {runs} runs: {', '.join(self.histories)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the rows as a table, where pandas is installed and the metric was measured."""
        try:
            return str(self.to_frame().to_html())
        except ConfigError:
            return f"<pre>{html.escape(repr(self))}</pre>"

    def rows(self, metric: str = "test_accuracy", target: float | None = None) -> list[Row]:
        """One row per experiment, in the order given. target: a value of metric to reach."""
        return [self._row(name, metric, target) for name in self.histories]

    def to_frame(self, metric: str = "test_accuracy", target: float | None = None) -> pandas.DataFrame:
        """`rows` as a frame, indexed by name. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_frame() needs pandas: pip install 'umbel[notebooks]'") from error
        return pandas.DataFrame(self.rows(metric, target)).set_index("name")

    def plot(self, path: str | None = None, metric: str = "test_accuracy", over: str = "round") -> Figure:
        """The metric's mean and range over seeds. over: "round", "seconds", "virtual_seconds" or "bytes"."""
        from .plots import plot_comparison

        return plot_comparison(self, path, metric, over)

    def _row(self, name: str, metric: str, target: float | None) -> Row:
        histories = self.histories[name]
        columns = [measured(history, metric) for history in histories]
        last = np.array([column[-1] for column in columns])
        best = np.array([column.max() for column in columns])
        reached = [(h, r) for h in histories if target is not None and (r := h.rounds_to(target, metric)) is not None]
        clocks: dict[str, list[float]] = {
            over: [float(axis(history, over)[position(history, number)]) for history, number in reached]
            for over in ("seconds", "virtual_seconds")
        }
        return Row(
            name,
            len(histories) + len(self.stopped[name]),
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
    store: str | Store | None = None,
    watchers: Callable[[str, int], Sequence[Watcher]] = lambda name, seed: (),
) -> Comparison:
    """Run every experiment with every seed.

    experiments: by the name to show, or by their own. seeds: how many, from each experiment's own on; or which.
    watchers: of the run of an experiment with a seed. A run that could not go on (it diverged, its budget was spent) is
    noted, and the others go on. Errors: ConfigError for no experiment, or two of one name; what else `run` raises.
    """
    named = experiments if isinstance(experiments, Mapping) else {one.name: one for one in experiments}
    require(len(named) == len(experiments) > 0, "expected experiments of different names, at least one")
    histories: dict[str, list[History]] = {name: [] for name in named}
    stopped: dict[str, list[str]] = {name: [] for name in named}
    for name, experiment in named.items():
        for seed in seeds_of(experiment, seeds):
            seeded = dataclasses.replace(experiment, seed=seed)
            try:
                histories[name].append(run(seeded, runtime, store=store, watchers=watchers(name, seed)))
            except RunStopped as reason:
                stopped[name].append(f"seed {seed}: {reason}")
    return Comparison(histories, stopped)


def seeds_of(experiment: Experiment, seeds: int | Sequence[int]) -> Iterator[int]:
    """The seeds to run an experiment with."""
    if isinstance(seeds, int):
        require_count("seeds", seeds)
        return iter(range(experiment.seed, experiment.seed + seeds))
    return iter(seeds)


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
