"""A run: rounds one after another, each committed before the next: it may be killed at any instruction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, RunStopped
from ..core.experiment import Experiment
from ..core.parts.algorithms import AsynchronousStrategy, ClusteredStrategy
from ..core.parts.devices import fleet_of
from ..core.parts.epochs import ListedEpochs
from ..core.protocols import Elsewhere, Watcher
from ..core.reading.compatible import check_aggregator, check_fresh, delta_of, has_noise, spent
from ..core.reading.defaults import default_runtime
from ..core.recipe import Recipe
from ..core.runtime import Runtime
from ..core.types import ClientValues, RoundRecord, ServerState
from .arguments import check_arguments, check_cohort, check_watchers, with_progress
from .asynchronous import play_asynchronously
from .events import Event, Events, Finished, RoundDone, Started, history_of, watched
from .history import History
from .journal import NOISE, Check, Journal, choices_of
from .live import check_runtime, player_of
from .progress import default_watchers
from .rounds import Played, RoundSetup, evaluate, play_round
from .watched import check_measured

if TYPE_CHECKING:  # SQLAlchemy is imported when a run has a store, not when umbel is
    from .store import Store


def run(
    experiment: Experiment,
    runtime: Runtime | Elsewhere | None = None,
    *,
    store: str | Store | None = None,
    resume: str | None = None,
    watchers: Sequence[Watcher] | None = None,
    progress: bool | None = None,
) -> History:
    """Train experiment on runtime until its rounds are done or a callback ends it.

    Parameters
    ----------
    experiment
        What is trained, on whom, and how.
    runtime
        Where rounds run, or a federation that plays the whole run itself, and keeps it in a store of its own; None: a
        Simulation of its own, in this process.
    store
        Database URL ("sqlite:///runs.db", "postgresql://…") or an open Store; every round is committed there in one
        transaction. None keeps the run in memory only.
    resume
        Id of a run in the store (or "latest"), which continues after its last committed round, and ends with the bits
        of a run that was never interrupted.
    watchers
        What sees the rounds as they are done.
    progress
        Whether rounds are printed, a line a second at most; None: where there are no watchers.

    Returns
    -------
    History
        The rounds, and the model: `history.plot()`, `history.load_into(model)`, `history.report("report.html")`.

    Raises
    ------
    ConfigError
        For a bad value, and for a resumed run whose experiment changed.
    StoreError
        For a store that cannot be read or written.
    RunStopped
        For too few valid updates, params that are not finite, a plan's budget that is spent. The rounds before are
        committed, and their model is a version of the registry.
    ClientError
        For a client whose code failed.
    """
    watching = with_progress(runtime, watchers, progress)
    if runtime is not None:
        return run_checked(experiment, runtime, lambda measures: None, store=store, resume=resume, watchers=watching)
    with contextlib.closing(default_runtime()) as own:
        return run_checked(experiment, own, lambda measures: None, store=store, resume=resume, watchers=watching)


def run_checked(
    experiment: Experiment,
    runtime: Runtime | Elsewhere,
    check: Check,
    *,
    store: str | Store | None = None,
    resume: str | None = None,
    watchers: Sequence[Watcher] | None = None,
) -> History:
    """Same as `run`, once check has seen what the model measures, before there is a run to fail."""
    check_watchers(watchers)
    events = _play(experiment, runtime, check, store, resume)
    if isinstance(runtime, Elsewhere):
        watchers = [*runtime.watchers, *(watchers or ())]
    return history_of(watched(events, default_watchers() if watchers is None else watchers))


def play(
    experiment: Experiment,
    runtime: Runtime | Elsewhere,
    *,
    store: str | Store | None = None,
    resume: str | None = None,
) -> Events:
    """Same as `run`, as a stream: Started, a RoundDone for each round once it is committed, Finished.

        for event in play(experiment, Simulation(), store="sqlite:///runs.db"):
            if isinstance(event, RoundDone):
                print(event.record.round, event.record.metrics)

    Nothing is begun before the first event is asked for. A consumer that leaves, or closes the stream, pauses the run:
    it can be resumed. Errors: those of `run`; a bad argument's at once.
    """
    return _play(experiment, runtime, lambda measures: None, store, resume)


def _play(
    experiment: Experiment,
    runtime: Runtime | Elsewhere,
    check: Check,
    store: str | Store | None,
    resume: str | None,
) -> Events:
    check_arguments(experiment, runtime, store, resume)
    if isinstance(runtime, Elsewhere):
        events: Events = runtime.play(experiment, store=store, resume=resume)
        return events
    return _played(experiment, runtime, check, store, resume)


def _played(
    experiment: Experiment, runtime: Runtime, check: Check, store: str | Store | None, resume: str | None
) -> Events:
    """Yield the events of a run whose rounds this process plays; note how it ends, however it ends."""
    with _opened(store) as opened, contextlib.closing(Journal(opened, check)) as journal:
        _check(experiment.resolved, runtime)
        course = _Course(experiment, runtime, journal, resume)
        try:
            yield Started(experiment, runtime, journal.run, tuple(journal.records))
            yield from course.rounds()
        except RunStopped as stopped:
            course.publish()
            journal.finish("stopped", str(stopped))
            raise
        except (KeyboardInterrupt, GeneratorExit):
            journal.finish("paused", "interrupted")
            raise
        except Exception as error:
            journal.fail(error)
            raise
        finally:
            course.close()
        history = course.finish()
        yield Finished(history.final(), history)


class _Course:
    """A run under way: the state after its last round, and why there will be no other."""

    def __init__(self, experiment: Experiment, runtime: Runtime, journal: Journal, resume: str | None):
        self._experiment = experiment
        self.recipe, self.runtime, self.journal = experiment.resolved, runtime, journal
        self.state, opened = journal.begin(experiment, runtime, resume)
        self._opened = opened
        self._table = RoundSetup(self.recipe, runtime, opened, journal.memory, journal.spend)
        self._player = player_of(self._table, self.state)
        self._reason = _decision(self.recipe, journal.records)
        self._clients: ClientValues | None = None

    def rounds(self) -> Iterator[Event]:
        """Play and commit what is left of the run, a round at a time."""
        while self.state.round < self.recipe.rounds and self._reason is None:
            yield self._round()

    def _round(self) -> RoundDone:
        recipe, journal = self.recipe, self.journal
        self.state, record, failures = self._played()
        record = record._replace(
            directions=journal.measures.directions, trainable_bytes=self._opened.spec.trainable_bytes
        )
        self._reason = _decision(recipe, [*journal.records, record])
        is_last = record.round == recipe.rounds or self._reason is not None
        clients = None
        if is_last or record.round % recipe.evaluate_every == 0:
            record, clients = evaluate(recipe, self.runtime, self.state, record)
            check_measured(recipe, record)
            self._reason = _decision(recipe, [*journal.records, record])
        journal.records.append(record)
        journal.commit(self.state, record, is_best=_best_round(recipe, journal.records) == record.round)
        self._clients = clients or self._clients
        return RoundDone(record, failures, clients)

    def _played(self) -> Played:
        """Play the next round, whatever kind of round this run has."""
        if self._player is not None:
            return self._player.play(self.state, self.journal.records)
        play = play_asynchronously if isinstance(self.recipe.strategy, AsynchronousStrategy) else play_round
        return play(self._table, self.state, self.journal.records)

    def close(self) -> None:
        """Let go of whoever is still at work."""
        if self._player is not None:
            self._player.close()

    def publish(self) -> None:
        """Register the model after the last round, as far as the run came."""
        self.journal.publish(self.recipe, self.state.params, self._opened)

    def finish(self) -> History:
        """Register the model that the run ends with; return what is left of the run in memory."""
        recipe, state, journal = self.recipe, self.state, self.journal
        best = _best_round(recipe, journal.records) or state.round
        params = state.params if best == state.round else journal.params_of(best)
        version = journal.publish(recipe, params, self._opened, best)
        journal.finish("finished", self._reason)
        strategy = recipe.strategy
        return History(
            recipe.name,
            tuple(journal.records),
            params,
            self._opened.spec,
            run=journal.run,
            model_version=version,
            stopped_early=self._reason,
            privacy=_privacy(recipe, self.runtime, state),
            models=tuple(strategy.models(state.strategy)) if isinstance(strategy, ClusteredStrategy) else (),
            last_clients=self._clients,
            base=self._opened.base,
            played=self._experiment,
        )


def _check(recipe: Recipe, runtime: Runtime) -> None:
    """Raise ConfigError for what does not fit together, before there is a run to fail."""
    check_runtime(recipe, runtime)
    check_cohort(recipe)
    if recipe.aggregator.min_clients > 1:
        check_aggregator(recipe, len(recipe.population))
    listed, clients = recipe.local.epochs, len(recipe.population)
    if isinstance(listed, ListedEpochs) and len(listed.values) != clients:
        raise ConfigError(f"expected {clients} numbers in local.epochs, one per client, got {len(listed.values)}")
    if runtime.is_live:
        check_fresh(recipe)
    elif recipe.devices is not None:
        fleet_of(recipe.devices, len(recipe.population), recipe.seed)


def _decision(recipe: Recipe, records: Sequence[RoundRecord]) -> str | None:
    """Return the first callback's reason to end the run, or None."""
    reasons = (callback.decide(records) for callback in recipe.callbacks)
    return next((reason for reason in reasons if reason), None) if records else None


def _best_round(recipe: Recipe, records: Sequence[RoundRecord]) -> int | None:
    """Return the round that the run ends with, by the first callback that names one."""
    rounds = (callback.best_round(records) for callback in recipe.callbacks)
    return next((round for round in rounds if round is not None), None)


def _privacy(recipe: Recipe, runtime: Runtime, state: ServerState) -> dict[str, Any]:
    """Say what protected the run, and what it cost: see History.final."""
    found: dict[str, Any] = {}
    if recipe.plan is not None:
        found = {"epsilon": spent(recipe, state.ledger), "delta": delta_of(recipe)}
    if has_noise(recipe):
        found[NOISE] = choices_of(recipe, runtime)[NOISE]
    if recipe.secure_aggregation is not None:
        found["aggregation"] = runtime.describe().get("aggregation", "protocol")
    return found


@contextlib.contextmanager
def _opened(store: str | Store | None) -> Iterator[Store | None]:
    """Yield the store that a run was handed: opened and closed here if it is a URL."""
    if store is None or not isinstance(store, str):
        yield store
        return
    from .store import Store

    with Store.open(store) as opened:
        yield opened
