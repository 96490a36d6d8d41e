"""A run's memory: what is committed after each round, and what a resumed run goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.bases import Population
from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.protocols import Memory
from ..core.reading.compatible import has_noise, spent
from ..core.reading.directions import Measures
from ..core.recipe import Recipe, is_memory_kept
from ..core.runtime import MEMORY, Opened, Runtime
from ..core.spec import ModelSpec
from ..core.system.faults import crash_point
from ..core.types import RoundRecord, ServerState, Vector
from ..core.validation import shown
from .asynchronous import first_state
from .drift import SourceDrift
from .feedback import first_feedback
from .watched import check_watched

if TYPE_CHECKING:  # SQLAlchemy is imported when a run has a store, not when umbel is
    from .store import Store

Check = Callable[[Measures], None]
NOISE = "noise"  # choice of a run: where noise comes from
CLASSES = "classes"  # choice of a run: what the numbers of labels mean
COLUMNS = "columns"  # choice of a run: what the features are
RESTORE = {NOISE: "runtime", CLASSES: "data", COLUMNS: "data", "federation": "federation"}


class Journal:
    """A run's memory: in the store where there is one, otherwise in this process."""

    def __init__(self, store: Store | None, check: Check):
        self.store = store
        self._check = check
        self.run: str | None = None
        self.records: list[RoundRecord] = []
        self.memory = _ClientMemory()
        self.measures = Measures({}, is_complete=False)
        self._best: tuple[int, Vector] | None = None
        self._ledger: Mapping[str, int] = {}  # ledger on record: it may be ahead of the last round
        self._drift: SourceDrift | None = None
        self.is_new = True
        self._held: str | None = None  # the run that nobody else may play meanwhile

    def begin(self, experiment: Experiment, runtime: Runtime, resume: str | None) -> tuple[ServerState, Opened]:
        """Return the state to go on from, and what the runtime says of the experiment."""
        if self.store is not None:
            self._drift = SourceDrift(experiment)
        self.is_new = resume is None
        if resume is not None:
            return self._resume(experiment, runtime, resume)
        opened = runtime.open(experiment, self.memory, None)
        spec = opened.spec
        self._measure(experiment.resolved, runtime)
        # That examples are missing, or labels unknown, is said now, and not after a round.
        experiment.resolved.test_examples()
        experiment.resolved.validation_clients()
        params = runtime.initial_params()
        state = _first(experiment.resolved, params, spec)
        if self.store is not None:
            described, choices = experiment.describe(), choices_of(experiment.resolved, runtime)
            directions = self.measures.directions
            try:
                run = self.store.create_run(
                    experiment.name, described, experiment.rounds, experiment.seed, choices, spec, state, directions
                )
            except TypeError as error:  # of a strategy of the user's own
                raise ConfigError(f"strategy={shown(experiment.strategy)}, its init(): {error}") from error
            self.run = self._held = self.store.hold(run)
            self.memory.stored = self.store.memory(run)
        return state, opened

    def _resume(self, experiment: Experiment, runtime: Runtime, resume: str) -> tuple[ServerState, Opened]:
        assert self.store is not None
        self._held = self.store.hold(resume)  # before it is read: nobody commits another round meanwhile
        stored = self.store.load_run(self._held)
        stored.check_goes_on(experiment)
        self.run, self.memory.stored = stored.run, self.store.memory(stored.run)
        opened = runtime.open(experiment, self.memory, stored.choices)
        now = choices_of(experiment.resolved, runtime)
        for name, before in stored.choices.items():
            if now.get(name, before) != before:
                raise ConfigError(
                    f"the experiment changed since run {stored.run} began: {name} was {before}, is now {now[name]}; "
                    f"restore the {RESTORE.get(name, 'model')}, or start a new run without --resume"
                )
        if MEMORY in stored.choices and MEMORY not in now and is_memory_kept(experiment.resolved, opened.spec):
            raise ConfigError(
                f"what the clients of run {stored.run} keep is not in the store, but with them, or in a folder of the "
                "cluster; resume it over the same runtime, or start a new run"
            )
        self._measure(experiment.resolved, runtime)
        self.records = [record._replace(directions=self.measures.directions) for record in stored.records]
        self.store.set_rounds(stored.run, experiment.rounds)
        self.store.reopen(stored.run)
        self._ledger = dict(stored.ledger)
        template = _first(experiment.resolved, runtime.initial_params(), opened.spec)
        state = self.store.checkpoint(stored.run, "last", like=template)
        # A simulation repeats a round that was cut off bit for bit, noise included: that is the same release again. On
        # real devices it is another one, and what the first has cost stays spent.
        return (state._replace(ledger=dict(stored.ledger)) if runtime.is_live else state), opened

    def _measure(self, experiment: Recipe, runtime: Runtime) -> None:
        """Note what the model measures. Errors: ConfigError where a callback or schedule waits for something else."""
        self.measures = runtime.measures()
        check_watched(experiment, self.measures, runtime.is_live)
        self._check(self.measures)

    def spend(self, ledger: Mapping[str, int]) -> None:
        """Put privacy events on record before what they pay for is released."""
        self._ledger = ledger
        if self.store is not None and self.run is not None:
            self.store.write_ledger(self.run, ledger)

    def commit(self, state: ServerState, record: RoundRecord, is_best: bool) -> None:
        """Commit the round: nothing of it is lost, or done again, from here on."""
        if is_best and self.store is None:
            self._best = record.round, state.params
        crash_point("before-commit", record.round)
        if self.store is not None and self.run is not None:
            description = None if self._drift is None else self._drift.changed()
            self.store.commit_round(self.run, state, record, self.memory.written, best=is_best, description=description)
            self.memory.written = {}
        crash_point("after-commit", record.round)

    def params_of(self, round: int) -> Vector:
        """Return the params after `round`, the best one."""
        if self.store is not None and self.run is not None:
            return self.store.checkpoint(self.run, round).params
        assert self._best is not None
        assert self._best[0] == round
        return self._best[1]

    def publish(self, recipe: Recipe, params: Vector, opened: Opened, round: int | None = None) -> int | None:
        """Register params as a version of the experiment's model, with its metrics and all that was spent on it.

        round: the one that the params are of; None: the last. Returns the version's number; None without a store or a
        round.
        """
        if self.store is None or self.run is None or not self.records:
            return None
        record = next((one for one in self.records if one.round == round), self.records[-1])
        metrics, epsilon = record.numbers, spent(recipe, self._ledger)
        if (version := self.store.models.version_of(self.run, params, epsilon)) is not None:
            return version  # resumed, it had nothing left to do, or stopped at once again
        models, base = self.store.models, opened.base
        return models.register(self.run, params, opened.spec, metrics, epsilon=epsilon, base=base).version

    def fail(self, error: Exception) -> None:
        """Note the error. A new run that a mistake ended, before it had a round or spent anything, leaves no trace."""
        if isinstance(error, ConfigError) and self.is_new and not self.records and not self._ledger:
            if self.store is not None and self.run is not None:
                self.store.delete_run(self.run)
            return
        self.finish("failed", f"{type(error).__name__}: {error}")

    def finish(self, state: str, reason: str | None) -> None:
        """Note how the run ended."""
        if self.store is not None and self.run is not None:
            self.store.finish(self.run, state, reason)

    def close(self) -> None:
        """Let others play the run."""
        if self.store is not None and self._held is not None:
            self.store.release(self._held)


class _ClientMemory:
    """The clients' memory at home: written this round, else as last committed."""

    def __init__(self) -> None:
        self.written: dict[int, list[np.ndarray]] = {}
        self.stored: Memory | None = None

    def read(self, client: int) -> list[np.ndarray] | None:
        """Return the client's arrays, or None if it never took part."""
        if client in self.written:
            return self.written[client]
        return self.stored.read(client) if self.stored is not None else None

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Replace the client's arrays."""
        self.written[client] = arrays


def _first(recipe: Recipe, params: Vector, spec: ModelSpec) -> ServerState:
    """Return the state of a run that begins with params."""
    own, transforms = first_state(recipe, params), recipe.transforms.init(spec)
    return ServerState(0, params, own, transforms, {}, first_feedback(recipe))


def choices_of(recipe: Recipe, runtime: Runtime) -> dict[str, str]:
    """Return the choices that a resumed run has to have in common with itself, besides the recipe.

    A simulation's ledger does not pay for a round twice that it repeats bit for bit. A real device would not repeat it.
    """
    noise = {NOISE: "operating system" if runtime.is_live else "seeded"} if has_noise(recipe) else {}
    return dict(runtime.describe()) | noise | _encoding(recipe.population)


def _encoding(population: Population) -> dict[str, str]:
    """Return the names that the population's numbers stand for, if any: files may have changed since a run began."""
    encoding = population.encoding()
    if encoding is None:
        return {}
    named = {CLASSES: encoding.classes, COLUMNS: encoding.columns}
    return {name: json.dumps(words, ensure_ascii=False) for name, words in named.items() if words}
