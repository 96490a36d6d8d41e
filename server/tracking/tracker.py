"""The base of all trackers: numbers by the round, settings, the model, and how the run ended."""

from __future__ import annotations

import importlib
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

from ...core.errors import ConfigError, UmbelError
from ...core.experiment import Experiment
from ...core.runtime import Runtime
from ...core.types import Failure, RoundRecord
from ..history import History, numbers_of

log = logging.getLogger(__name__)
Ending = Literal["finished", "failed", "paused"]


class TrackedRun(NamedTuple):
    """A run as a tracker is told of it."""

    experiment: str  # name of the experiment
    run: str | None  # id of the run in the store; None without one
    settings: Mapping[str, str]  # all that changes the result, and what the runtime chose: {dotted path: text}
    is_resumed: bool  # whether there are rounds that were played before


class Tracker(ABC):
    """A Watcher that writes each round where others look for it: `run(…, watchers=[TensorBoard("logs")])`.

    Every number of a round (metrics, ε, bytes, seconds, clients, failures) goes there by the round's number, once the
    round is committed; settings at the start; the trained model, as `history.save` writes it, at the end. A run that is
    resumed goes on where it was: rounds that are there already are not written again. A tracker that cannot be reached
    ends no run that has begun: its rounds wait, and a line in the log says so.
    """

    _waiting: list[RoundRecord]  # rounds that are not written yet, oldest first
    _is_lost = False  # whether the last try to write failed

    def on_start(
        self, experiment: Experiment | None, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Write the settings, and the rounds of a resumed run that are not there yet.

        Errors: ConfigError where nothing can be written.
        """
        name = "run" if experiment is None else experiment.name
        try:
            written = self.begin(TrackedRun(name, run, settings_of(experiment, runtime), bool(records)))
        except UmbelError:
            raise
        except Exception as error:  # whatever the tracker's library raises
            said = " ".join(str(error).split())
            raise ConfigError(f"cannot write into {type(self).__name__}: {type(error).__name__}: {said}") from error
        self._waiting = [record for record in records if record.round > written]
        self._attempt(self._write)

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Write the round's numbers, after those that wait."""
        self._waiting.append(record)
        self._attempt(self._write)

    def on_end(self, history: History) -> None:
        """Write the model, and what the run ended with."""
        self._attempt(self._write)
        with tempfile.TemporaryDirectory() as folder:
            files = _saved(history, Path(folder))
            self._attempt(lambda: self.keep(files, ending_of(history)))
        self._attempt(lambda: self.end("finished"))

    def on_stop(self, error: BaseException) -> None:
        """Note that the run ended before its end: it was paused, or an error ended it."""
        ending: Ending = "paused" if isinstance(error, (KeyboardInterrupt, GeneratorExit)) else "failed"
        self._attempt(lambda: self.end(ending))

    def _write(self) -> None:
        while self._waiting:
            self.log(self._waiting[0].round, numbers_of(self._waiting[0]))
            del self._waiting[0]

    def _attempt(self, write: Callable[[], None]) -> None:
        """Call write; an error of its is logged, once until it succeeds again, and ends nothing."""
        try:
            write()
        except Exception as error:  # whatever the tracker's library raises
            if not self._is_lost:
                said = " ".join(str(error).split())
                log.warning("cannot write into %s: %s: %s", type(self).__name__, type(error).__name__, said)
            self._is_lost = True
        else:
            self._is_lost = False

    @abstractmethod
    def begin(self, tracked: TrackedRun) -> int:
        """Open the run where it is tracked; return the last round that is there already, 0 for none."""

    @abstractmethod
    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a round's numbers, so that they are seen now."""

    @abstractmethod
    def keep(self, files: Sequence[Path], ending: Mapping[str, str]) -> None:
        """Keep the model's files, which are gone afterwards, and what the run ended with."""

    @abstractmethod
    def end(self, ending: Ending) -> None:
        """Close what `begin` has opened, if it has."""


def settings_of(experiment: Experiment | None, runtime: Runtime | None) -> dict[str, str]:
    """Return all that changes the result, and what the runtime chose, as text."""
    settings = {} if experiment is None else experiment.describe() | {"rounds": str(experiment.rounds)}
    return settings | ({} if runtime is None else dict(runtime.describe()))


def ending_of(history: History) -> dict[str, str]:
    """Return what identifies the model that a run ended with, and what the run promises."""
    ending = {"params_sha256": history.params_sha256}
    if history.model_version is not None:
        ending["model_version"] = str(history.model_version)
    if history.stopped_early is not None:
        ending["stopped_early"] = history.stopped_early
    return ending | {f"privacy.{name}": str(value) for name, value in history.privacy.items()}


def _saved(history: History, folder: Path) -> list[Path]:
    """Save a run's model: its arrays, and the whole of it where it can be had."""
    arrays, whole = folder / "model.npz", folder / "model.keras"
    history.save(arrays)
    try:
        history.save(whole)
    except ConfigError:  # a part of it stays with each client, or the experiment is another process's
        return [arrays]
    return [arrays, whole]


def imported(module: str, extra: str) -> ModuleType:
    """Import a tracker's package. Errors: ConfigError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{package} is not installed: pip install 'umbel[{extra}]'") from error
