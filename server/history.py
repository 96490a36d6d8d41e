"""A run's History: its rounds, its final params, and ways to look at them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, IncompatibleError
from ..core.frozen import NO_BASE, Base
from ..core.reading.directions import Directions, Mode, mode_of
from ..core.serial import memory_of
from ..core.spec import ModelSpec
from ..core.types import ClientValues, RoundRecord, Vector, scalars
from ..core.validation import suggest

if TYPE_CHECKING:
    from pathlib import Path

    import pandas
    from matplotlib.figure import Figure

    from ..core.experiment import Experiment

GROUPS = ("train", "test", "validation")  # whose examples a metric was measured on
PERCENTILE = re.compile(r"_p\d+$")  # names of percentiles, which a federated evaluation also measures


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """A run's records, oldest first, and what it ended with."""

    experiment: str
    rounds: Sequence[RoundRecord]
    params: Vector
    spec: ModelSpec
    run: str | None = None  # id of the run in the store
    model_version: int | None = None  # number of the run's version in the store's registry
    stopped_early: str | None = None  # a callback's reason to end the run
    privacy: Mapping[str, Any] = field(default_factory=dict)  # epsilon, delta, noise, aggregation: see `final`
    models: Sequence[Vector] = ()  # each cluster's model after the last round, where the strategy has them
    last_clients: ClientValues | None = None  # what each client measured last; see `clients`
    base: Base = NO_BASE  # what the model's frozen variables hold, which are not in params
    elsewhere: Mapping[str, Any] | None = None  # `final`, of a run whose params are in a store that is not reached
    played: Experiment | None = None  # experiment that was run; left behind when a History is pickled

    def __repr__(self) -> str:
        last = self.rounds[-1].numbers if self.rounds else {}
        parts = [f"{len(self.rounds)} rounds", *(f"{name}={value:.4g}" for name, value in last.items())]
        return f"History({self.experiment!r}: {', '.join(parts)}; params {self.params_sha256[:8]}…)"

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the experiment, which may hold a data set, and functions that do not pickle."""
        return {**self.__dict__, "played": None}

    def _repr_html_(self) -> str:
        """Show the rounds in a notebook as a table, long ones with a gap, where pandas is installed."""
        try:
            return str(self.to_frame().to_html(max_rows=12))
        except ConfigError:
            return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def params_sha256(self) -> str:
        """SHA-256 of the final vector (little-endian float32), hex."""
        if self.elsewhere is not None:
            return str(self.elsewhere["params_sha256"])
        return sha256(memory_of(self.params.astype("<f4", copy=False))).hexdigest()

    @property
    def seconds(self) -> float:
        """Seconds of all rounds and evaluations, summed."""
        return sum(record.seconds + (record.eval_seconds or 0.0) for record in self.rounds)

    def column(self, name: str) -> np.ndarray:
        """Return one number per round, NaN where not measured: a metric ("test_accuracy") or a field ("seconds").

        For a metric that is a vector or a matrix, one per round: shape (rounds, …). Its numbers also have columns of
        their own, "test_f1_0" and so on. Errors: ConfigError for a name that no round has, with the nearest one.
        """
        rows = [record.to_json() for record in self.rounds]
        wide = {np.shape(record.metrics.get(name, 0.0)) for record in self.rounds} - {()}
        if wide:
            missing = np.full(wide.pop(), np.nan)
            return np.array([record.metrics.get(name, missing) for record in self.rounds], float)
        if not any(name in row for row in rows):
            known = {key for row in rows for key in row if not PERCENTILE.search(key)}
            raise ConfigError(f"no round has {name!r}; {suggest(name, known)}")
        return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)

    def curve(self, name: str) -> np.ndarray:
        """Same as `column`, for one number per round. Errors: ConfigError for a vector, with its numbers' names."""
        column = self.column(name)
        if column.ndim > 1:
            parts = ", ".join(scalars({name: column[0].tolist()}))
            raise ConfigError(f"{name!r} is {column[0].size} numbers a round; choose one of them: {parts}")
        return column

    @property
    def directions(self) -> Directions:
        """Direction of each of the model's metrics: to fall ("min") or to rise ("max"); None where nobody knows."""
        return self.rounds[-1].directions if self.rounds else {}

    @property
    def clients(self) -> ClientValues:
        """Measurements of each client in the last evaluation, on its own validation examples.

        One evaluation is kept, which it needs at once anyway: a million clients take 8 MB a metric. For all of a run
        hand `run` a watcher, EachClient(). Not in a store. Errors: IncompatibleError for a run whose plan or
        aggregation hides what single clients say; ConfigError where no clients were evaluated.
        """
        if self.privacy:
            raise IncompatibleError(
                "what single clients measured is not kept of a run with a plan or an aggregation, which are to hide "
                'it; its mean and percentiles over clients are in `rounds`, as "validation_…"'
            )
        if self.last_clients is None:
            raise ConfigError(
                "no clients were evaluated on examples of their own while this History was made; give the experiment a "
                "validation population, as from data.split_clients"
            )
        return self.last_clients

    def rounds_to(self, target: float, metric: str = "test_accuracy", mode: Mode | None = None) -> int | None:
        """Return the first round in which metric reached target; None if it never did.

        A metric that is to fall reaches target from above, another from below. mode: "min" or "max", which of the two;
        None: as is known for Keras's own metrics and for losses. Errors: ConfigError where it is not.
        """
        reached = self._reached(target, metric, mode)
        return int(self.rounds[reached[0]].round) if len(reached) else None

    def time_to(self, target: float, metric: str = "test_accuracy", mode: Mode | None = None) -> float | None:
        """Return the virtual seconds until metric reached target; None if it never did. mode: see `rounds_to`.

        Errors: ConfigError for a run without a virtual clock: its experiment had no devices.
        """
        seconds, reached = self.column("virtual_seconds"), self._reached(target, metric, mode)
        return float(seconds[reached[0]]) if len(reached) else None

    def _reached(self, target: float, metric: str, mode: Mode | None) -> np.ndarray:
        """Return the places of the rounds in which metric was at least target, or at most it where it falls."""
        column = self.curve(metric)
        falls = mode_of(metric, self.directions, mode, f"a target of {target:g}") == "min"
        return np.flatnonzero(column <= target if falls else column >= target)

    def final(self) -> dict[str, Any]:
        """Return the last object that `umbel run --json` prints.

        It has "privacy" for a run that had any: "epsilon" at "delta" under a plan; "noise" where there is some, planned
        or not ("seeded": whoever knows the seed can subtract it; or "operating system"); and "aggregation"
        ("arithmetic" or "protocol") where updates were hidden.
        """
        if self.elsewhere is not None:
            return dict(self.elsewhere)
        final = {
            "run": self.run,
            "params_sha256": self.params_sha256,
            "model_version": self.model_version,
            "rounds": self.rounds[-1].round if self.rounds else 0,
            "seconds": self.seconds,
        }
        return final | ({"privacy": dict(self.privacy)} if self.privacy else {})

    def load_into(self, model: Any) -> Any:
        """Assign the final params, and what is frozen, to a Keras model of the same variables; return it.

        Variables that stay with clients are left as they are. Errors: ConfigError when the model has other variables,
        and where the params are elsewhere.
        """
        if self.elsewhere is not None:
            raise ConfigError(
                f"the model of run {self.run} is in the store of the federation's server, which is not reached from "
                "here: load it there, or set store in operator.toml to a database that both reach"
            )
        return self.spec.load_into(model, self.params, self.base)

    def save(self, path: str | Path, format: str | None = None) -> None:
        """Save the trained model: the whole of it, or its arrays.

        format: "keras", "saved_model", "onnx" or "litert" (the whole model), "npz" or "safetensors" (arrays by their
        variables' paths); None: by what path ends in (.keras, nothing, .onnx, .tflite, .npz, .safetensors).
        Errors: ConfigError for another ending, a model of which a part stays with each client, a package that is
        missing, or a path that cannot be written.
        """
        from .saved import save_model

        save_model(self, path, format)

    def to_frame(self) -> pandas.DataFrame:
        """Return a row per round, indexed by round, and a column for whatever any of them measured. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_frame() needs pandas: pip install 'umbel[notebooks]'") from error
        rows = [record.to_json() for record in self.rounds]
        columns = dict.fromkeys(name for row in rows for name in row)
        return pandas.DataFrame(rows, columns=list(columns) or ["round"]).set_index("round")

    def plot(self, path: str | None = None) -> Figure:
        """Draw accuracy and loss per round; save the figure to path (.png, .svg, .pdf) when given."""
        from .plots import plot_rounds

        return plot_rounds(self.experiment, self.rounds, self.column, path)

    def report(self, path: str | Path) -> None:
        """Write one HTML file for reviewers and auditors, which needs nothing beside it and no network.

        It says what was run, who has what data, what the run promises of whom, what it cost, and how to repeat it.
        path: a file that ends in .html. Errors: ConfigError where it cannot be written.
        """
        from .reported import write_report

        write_report(self, path)

    def to_tensorboard(self, directory: str) -> None:
        """Write every round's numbers as TensorBoard scalars. Needs the package tensorboard."""
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ConfigError("to_tensorboard() needs TensorBoard: pip install 'umbel[tensorboard]'") from error
        writer = Writer(directory)
        for record in self.rounds:
            for name, value in numbers_of(record).items():
                writer.add_scalar(name, value, record.round)
        writer.close()


def numbers_of(record: RoundRecord) -> dict[str, float]:
    """Return every number that a round measured, as trackers name it: "test/accuracy", "run/epsilon"."""
    numbers = {}
    for name, value in record.to_json().items():
        if name == "round" or not isinstance(value, (int, float)):
            continue
        group, _, rest = name.partition("_")
        numbers[f"{group}/{rest}" if rest and group in GROUPS else f"run/{name}"] = float(value)
    return numbers
