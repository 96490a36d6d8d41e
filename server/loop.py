"""A run: rounds one after another, each committed before the next: it may be killed at any instruction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.clusters import is_clustered
from ..core.compatible import check_fold, delta_of, spent
from ..core.devices import fleet_of
from ..core.errors import ConfigError, RunStopped
from ..core.experiment import Experiment, is_asynchronous
from ..core.faults import crash_point
from ..core.protocols import Elsewhere, Memory, Runtime, Watcher
from ..core.spec import ModelSpec
from ..core.types import RoundRecord, ServerState, Vector
from ..core.validation import require, shown
from .asynchronous import check_runtime, first_state, play_asynchronously
from .callbacks import check_measured
from .feedback import first_feedback
from .history import History
from .rounds import evaluate, play_round

if TYPE_CHECKING:  # SQLAlchemy is imported when a run has a store, not when umbel is
    from .store import Store

NOISE = "noise"  # among a run's choices: where it comes from


def run(
    experiment: Experiment,
    runtime: Runtime | Elsewhere,
    *,
    store: str | Store | None = None,
    resume: str | None = None,
    watchers: Sequence[Watcher] = (),
) -> History:
    """Train experiment on runtime until its rounds are done or a callback ends it.

    runtime: where rounds run, or a federation that plays the whole run itself, and keeps it in a store of its own.

    store: a database URL ("sqlite:///runs.db", "postgresql://…") or an open Store; every round is committed there in
    one transaction. None keeps the run in memory only. resume: the id of a run in the store (or "latest"); it
    continues after its last committed round, and ends with the bits of a run that was never interrupted.

    Errors: ConfigError (a bad value; a resumed run whose experiment changed), StoreError, RunStopped (too few valid
    updates, params not finite, a plan's budget spent; the rounds before are committed, and their model is a version of
    the registry), ClientError (a client's code failed).
    """
    is_runtime = hasattr(runtime, "collect") or isinstance(runtime, Elsewhere)
    require(is_runtime and not isinstance(runtime, type), f"expected runtime={shown(runtime)}, such as Simulation()")
    if isinstance(runtime, Elsewhere):
        played: History = runtime.play(experiment, store=store, resume=resume, watchers=watchers)
        return played
    if resume is not None and store is None:
        raise ConfigError(f"cannot resume run {resume!r} without a store; name the one it was kept in")
    with _opened(store) as opened:
        return _run(experiment, runtime, opened, resume, watchers)


def _run(
    experiment: Experiment, runtime: Runtime, store: Store | None, resume: str | None, watchers: Sequence[Watcher]
) -> History:
    _check(experiment, runtime)
    journal, play = _Journal(store), play_asynchronously if is_asynchronous(experiment.strategy) else play_round
    state, spec = journal.begin(experiment, runtime, resume)
    records, reason = journal.records, _decision(experiment, journal.records)
    for watcher in watchers:
        watcher.on_start(experiment, runtime, journal.run, tuple(records))
    try:
        while state.round < experiment.rounds and reason is None:
            state, record, failures = play(experiment, runtime, state, records, journal.spend, spec)
            reason = _decision(experiment, [*records, record])
            if record.round % experiment.evaluate_every == 0 or record.round == experiment.rounds:
                record = evaluate(experiment, runtime, state, record)
                check_measured(experiment, record)
                reason = _decision(experiment, [*records, record])
            records.append(record)
            journal.commit(state, record, is_best=_best_round(experiment, records) == record.round)
            for watcher in watchers:
                watcher.on_round(record, failures)
    except RunStopped as stopped:
        journal.publish(experiment, state.params, spec)
        journal.finish("stopped", str(stopped))
        raise
    except KeyboardInterrupt:
        journal.finish("paused", "interrupted")
        raise
    except Exception as error:
        journal.finish("failed", f"{type(error).__name__}: {error}")
        raise
    best = _best_round(experiment, records)
    params = state.params if best in (None, state.round) else journal.params_of(best)
    version = journal.publish(experiment, params, spec)
    journal.finish("finished", reason)
    privacy = _privacy(experiment, runtime, state)
    strategy: Any = experiment.strategy
    models = tuple(strategy.models(state.strategy)) if is_clustered(strategy) else ()
    history = History(experiment.name, tuple(records), params, spec, journal.run, version, reason, privacy, models)
    for watcher in watchers:
        watcher.on_end(history)
    return history


class _Journal:
    """A run's memory: in the store where there is one, otherwise in this process."""

    def __init__(self, store: Store | None):
        self.store = store
        self.run: str | None = None
        self.records: list[RoundRecord] = []
        self.memory = _ClientMemory()
        self._best: tuple[int, Vector] | None = None
        self._ledger: Mapping[str, int] = {}  # as on record: it may be ahead of the last round

    def begin(self, experiment: Experiment, runtime: Runtime, resume: str | None) -> tuple[ServerState, ModelSpec]:
        """The state to go on from, and the model's spec."""
        if resume is not None:
            return self._resume(experiment, runtime, resume)
        spec = runtime.open(experiment, self.memory, None)
        experiment.test_examples()  # that they are missing is said now, and not after a round
        params = runtime.initial_params()
        state = _first(experiment, params, spec)
        if self.store is not None:
            described, choices = experiment.describe(), _choices(experiment, runtime)
            run = self.store.create_run(
                experiment.name, described, experiment.rounds, experiment.seed, choices, spec, state
            )
            self.run, self.memory.stored = run, self.store.memory(run)
        return state, spec

    def _resume(self, experiment: Experiment, runtime: Runtime, resume: str) -> tuple[ServerState, ModelSpec]:
        assert self.store is not None
        stored = self.store.load_run(resume)
        experiment.check_unchanged(stored.description)
        self.run, self.memory.stored = stored.run, self.store.memory(stored.run)
        spec = runtime.open(experiment, self.memory, stored.choices)
        now = _choices(experiment, runtime)
        for name, before in stored.choices.items():
            if now.get(name, before) != before:
                raise ConfigError(
                    f"the experiment changed since run {stored.run} began: {name} was {before}, is now {now[name]}; "
                    f"restore the {'runtime' if name == NOISE else 'model'}, or start a new run without --resume"
                )
        self.records = list(stored.records)
        self.store.set_rounds(stored.run, experiment.rounds)
        self.store.reopen(stored.run)
        self._ledger = dict(stored.ledger)
        template = _first(experiment, runtime.initial_params(), spec)
        state = self.store.checkpoint(stored.run, "last", like=template)
        # A simulation repeats a round that was cut off bit for bit, noise included: that is the same release again. On
        # real devices it is another one, and what the first has cost stays spent.
        return (state._replace(ledger=dict(stored.ledger)) if runtime.is_live else state), spec

    def spend(self, ledger: Mapping[str, int]) -> None:
        """Put privacy events on record before what they pay for is released."""
        self._ledger = ledger
        if self.store is not None and self.run is not None:
            self.store.write_ledger(self.run, ledger)

    def commit(self, state: ServerState, record: RoundRecord, is_best: bool) -> None:
        """The round is done: nothing of it is lost, or done again, from here on."""
        if is_best and self.store is None:
            self._best = record.round, state.params
        crash_point("before-commit", record.round)
        if self.store is not None and self.run is not None:
            self.store.commit_round(self.run, state, record, self.memory.written, best=is_best)
            self.memory.written = {}
        crash_point("after-commit", record.round)

    def params_of(self, round: int) -> Vector:
        """The params after `round`, the best one."""
        if self.store is not None and self.run is not None:
            return self.store.checkpoint(self.run, round).params
        assert self._best is not None
        assert self._best[0] == round
        return self._best[1]

    def publish(self, experiment: Experiment, params: Vector, spec: ModelSpec) -> int | None:
        """Register the final params as a version of the experiment's model, with all that was spent to get there."""
        if self.store is None or self.run is None or not self.records:
            return None
        metrics, epsilon = dict(self.records[-1].metrics), spent(experiment, self._ledger)
        if (version := self.store.models.version_of(self.run, params, epsilon)) is not None:
            return version  # resumed, it had nothing left to do, or stopped at once again
        return self.store.models.register(self.run, params, spec, metrics, epsilon=epsilon).version

    def finish(self, state: str, reason: str | None) -> None:
        """Note how the run ended."""
        if self.store is not None and self.run is not None:
            self.store.finish(self.run, state, reason)


class _ClientMemory:
    """What clients keep at home: written this round, else as last committed."""

    def __init__(self) -> None:
        self.written: dict[int, list[np.ndarray]] = {}
        self.stored: Memory | None = None

    def read(self, client: int) -> list[np.ndarray] | None:
        """The client's arrays, None if it never took part."""
        if client in self.written:
            return self.written[client]
        return self.stored.read(client) if self.stored is not None else None

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Replace the client's arrays."""
        self.written[client] = arrays


def _first(experiment: Experiment, params: Vector, spec: ModelSpec) -> ServerState:
    """The state of a run that begins with params."""
    own, transforms = first_state(experiment, params), experiment.transforms.init(spec)
    return ServerState(0, params, own, transforms, {}, first_feedback(experiment))


def _check(experiment: Experiment, runtime: Runtime) -> None:
    """Raise ConfigError for what does not fit together, before there is a run to fail."""
    check_runtime(experiment, runtime)
    if getattr(experiment.fold, "min_clients", 1) > 1:
        check_fold(experiment, len(experiment.population))
    listed = getattr(experiment.local.epochs, "values", None)
    if listed is not None and len(listed) != (clients := len(experiment.population)):
        raise ConfigError(f"expected {clients} numbers in local.epochs, one per client, got {len(listed)}")
    if experiment.devices is not None and not runtime.is_live:
        fleet_of(experiment.devices, len(experiment.population), experiment.seed)


def _decision(experiment: Experiment, records: Sequence[RoundRecord]) -> str | None:
    """The first callback's reason to end the run."""
    reasons = (callback.decide(records) for callback in experiment.callbacks)
    return next((reason for reason in reasons if reason), None) if records else None


def _best_round(experiment: Experiment, records: Sequence[RoundRecord]) -> int | None:
    """The round the run ends with, by the first callback that names one."""
    rounds = (callback.best_round(records) for callback in experiment.callbacks)
    return next((round for round in rounds if round is not None), None)


def _choices(experiment: Experiment, runtime: Runtime) -> dict[str, str]:
    """What a resumed run has to have in common with itself, besides the experiment.

    A simulation's ledger does not pay for a round twice that it repeats bit for bit. A real device would not repeat it.
    """
    noise = {} if experiment.plan is None else {NOISE: "operating system" if runtime.is_live else "seeded"}
    return dict(runtime.describe()) | noise


def _privacy(experiment: Experiment, runtime: Runtime, state: ServerState) -> dict[str, Any]:
    """What protected the run, and what it cost: see History.final."""
    found: dict[str, Any] = {}
    if experiment.plan is not None:
        noise = _choices(experiment, runtime)[NOISE]
        found = {"epsilon": spent(experiment, state.ledger), "delta": delta_of(experiment), "noise": noise}
    if experiment.aggregation is not None:
        found["aggregation"] = runtime.describe().get("aggregation", "protocol")
    return found


@contextlib.contextmanager
def _opened(store: str | Store | None) -> Iterator[Store | None]:
    """The store a run was handed: opened and closed here if it is a URL."""
    if store is None or not isinstance(store, str):
        yield store
        return
    from .store import Store

    with Store.open(store) as opened:
        yield opened
