"""A watcher that keeps what each client measures, in every evaluation of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..core.errors import ConfigError, IncompatibleError
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.types import ClientValues, Failure, RoundRecord

if TYPE_CHECKING:
    import pandas


@runtime_checkable
class ClientWatcher(Watcher, Protocol):
    """A Watcher that also sees what each client measures.

    It is told nothing under a plan or hidden sums, which are to hide that.
    """

    def on_clients(self, values: ClientValues) -> None:
        """Take what each client measured, once a round with an evaluation of clients was committed."""


class EachClient:
    """Keeps each client's own validation metrics of every evaluation: `run(…, watchers=[each := EachClient()])`.

    evaluations: one ClientValues for each, oldest first; 8 bytes for each client, metric and evaluation.
    Errors, when a run starts: IncompatibleError for an experiment with a plan or an aggregation, which are to hide what
    single clients say; ConfigError for one without a validation population.
    """

    def __init__(self) -> None:
        self.evaluations: list[ClientValues] = []

    def on_start(self, experiment: Experiment, runtime: Any, run: str | None, records: Sequence[RoundRecord]) -> None:
        """Refuse an experiment in which there is nothing to keep."""
        for part in (experiment.plan, experiment.secure_aggregation):
            if part is not None:
                raise IncompatibleError(f"{part!r} is to hide what single clients say; drop it, or EachClient()")
        if experiment.validation is None:
            raise ConfigError("EachClient() keeps what clients measure; give the experiment a validation population")

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Do nothing: what clients measured comes by `on_clients`."""

    def on_clients(self, values: ClientValues) -> None:
        """Keep what each client measured."""
        self.evaluations.append(values)

    def on_end(self, history: Any) -> None:
        """Do nothing: all is kept already."""

    def to_frame(self) -> pandas.DataFrame:
        """Return a row for each round and client, indexed by both, and a column for each metric. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_frame() needs pandas: pip install 'umbel[notebooks]'") from error
        frames = [
            pandas.DataFrame({"round": each.round, "client": each.clients, **each.values}) for each in self.evaluations
        ]
        empty = pandas.DataFrame({"round": [], "client": []})
        return (pandas.concat(frames) if frames else empty).set_index(["round", "client"])
