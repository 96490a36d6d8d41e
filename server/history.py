"""What a run leaves in memory: its rounds, its final params, and ways to look at them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.serial import memory_of
from ..core.spec import ModelSpec
from ..core.types import RoundRecord, Vector
from ..core.validation import suggest

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

PERCENTILE = re.compile(r"_p\d+$")  # what a federated evaluation also measures


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """A run's records, oldest first, and what it ended with."""

    experiment: str
    rounds: Sequence[RoundRecord]
    params: Vector
    spec: ModelSpec
    run: str | None = None  # id in the store
    model_version: int | None = None  # in the store's registry
    stopped_early: str | None = None  # a callback's reason
    privacy: Mapping[str, Any] = field(default_factory=dict)  # epsilon, delta, noise; aggregation: see `final`
    models: Sequence[Vector] = ()  # after the last round, of a strategy with a model for each cluster

    def __repr__(self) -> str:
        last = dict(self.rounds[-1].metrics) if self.rounds else {}
        parts = [f"{len(self.rounds)} rounds", *(f"{name}={value:.4g}" for name, value in last.items())]
        return f"History({self.experiment!r}: {', '.join(parts)}; params {self.params_sha256[:8]}…)"

    def _repr_html_(self) -> str:
        """What a notebook shows: the rounds as a table, long ones with a gap, where pandas is installed."""
        try:
            return str(self.to_frame().to_html(max_rows=12))
        except ConfigError:
            return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def params_sha256(self) -> str:
        """SHA-256 of the final vector (little-endian float32), hex."""
        return sha256(memory_of(self.params.astype("<f4", copy=False))).hexdigest()

    @property
    def seconds(self) -> float:
        """Rounds and evaluations, summed."""
        return sum(record.seconds + (record.eval_seconds or 0.0) for record in self.rounds)

    def column(self, name: str) -> np.ndarray:
        """One number per round, NaN where not measured: a metric ("test_accuracy") or a field ("seconds").

        Errors: ConfigError for a name that no round has, with the nearest one.
        """
        rows = [record.to_json() for record in self.rounds]
        if not any(name in row for row in rows):
            known = {key for row in rows for key in row if not PERCENTILE.search(key)}
            raise ConfigError(f"no round has {name!r}; {suggest(name, known)}")
        return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)

    def rounds_to(self, target: float, metric: str = "test_accuracy") -> int | None:
        """The first round in which metric reached target; None if it never did. A name that ends in "loss" falls."""
        reached = self._reached(target, metric)
        return int(self.rounds[reached[0]].round) if len(reached) else None

    def time_to(self, target: float, metric: str = "test_accuracy") -> float | None:
        """Virtual seconds until metric reached target; None if it never did. A name that ends in "loss" falls.

        Errors: ConfigError for a run without a virtual clock: its experiment had no devices.
        """
        seconds, reached = self.column("virtual_seconds"), self._reached(target, metric)
        return float(seconds[reached[0]]) if len(reached) else None

    def _reached(self, target: float, metric: str) -> np.ndarray:
        """The places of the rounds in which metric was at least target, or at most it where it falls."""
        column = self.column(metric)
        return np.flatnonzero(column <= target if metric.endswith("loss") else column >= target)

    def final(self) -> dict[str, Any]:
        """The last object that `umbel run --json` prints.

        With "privacy" for a run that had any: "epsilon" at "delta", "noise" ("seeded": whoever knows the seed can
        subtract it; or "operating system"), and "aggregation" ("arithmetic" or "protocol") where updates were hidden.
        """
        final = {
            "run": self.run,
            "params_sha256": self.params_sha256,
            "model_version": self.model_version,
            "rounds": self.rounds[-1].round if self.rounds else 0,
            "seconds": self.seconds,
        }
        return final | ({"privacy": dict(self.privacy)} if self.privacy else {})

    def load_into(self, model: Any) -> Any:
        """Assign the final params to a Keras model of the same variables; returns it.

        Variables that stay with clients are left as they are. Errors: ConfigError when the model has other variables.
        """
        return self.spec.load_into(model, self.params)

    def to_frame(self) -> pandas.DataFrame:
        """One row per round, indexed by round. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_frame() needs pandas: pip install 'umbel[notebooks]'") from error
        rows = [record.to_json() for record in self.rounds]
        return pandas.DataFrame(rows, columns=list(rows[0]) if rows else ["round"]).set_index("round")

    def plot(self, path: str | None = None) -> Figure:
        """Accuracy and loss per round; saved to path (.png, .svg, .pdf) when given."""
        from .plots import plot_history

        return plot_history(self, path)

    def to_tensorboard(self, directory: str) -> None:
        """Write every round's numbers as TensorBoard scalars. Needs the package tensorboard."""
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ConfigError("to_tensorboard() needs TensorBoard: pip install 'umbel[tensorboard]'") from error
        writer = Writer(directory)
        for record in self.rounds:
            for name, value in record.to_json().items():
                if name != "round" and isinstance(value, (int, float)):
                    group, _, rest = name.partition("_")
                    is_metric = rest and group in ("train", "test", "validation")
                    writer.add_scalar(f"{group}/{rest}" if is_metric else f"run/{name}", value, record.round)
        writer.close()
