"""A stored run again, whole or one client's round of it: bit for bit as it was, and that once more eagerly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..clients.choices import COMPILE
from ..core.aggregators import opened
from ..core.errors import ClientError, ConfigError, IncompatibleError
from ..core.experiment import Experiment
from ..core.parts.algorithms import SplitStrategy
from ..core.protocols import Memory
from ..core.runtime import Arrival, Assignment, Opened, Runtime
from ..core.spec import ModelSpec
from ..core.summation import Summation
from ..core.types import ClientUpdate, Failure, Landing, RoundRecord, Vector, json_float
from ..core.validation import require_count
from ..runtimes.simulation import Simulation
from ..runtimes.wrapping import Wrapping
from ..server.events import Finished, RoundDone
from ..server.history import History
from ..server.loop import play

ELSEWHERE = "it was played on another machine, by another version, or over real devices, and cannot be replayed here"

if TYPE_CHECKING:  # SQLAlchemy is imported when a store is opened
    from ..server.store import Store, StoredRun


@dataclass(frozen=True, eq=False)
class Replay:
    """One client's work in one round: what it started from, and what it sent."""

    run: str
    round: int
    client: int
    spec: ModelSpec
    params: Vector  # model that the client received
    sent: ClientUpdate | Failure  # as in the run, decoded where a codec had packed it
    eager: ClientUpdate | Failure  # the same, computed eagerly
    is_checked: bool  # whether the whole round was played again, and came to the very record that the run has

    @property
    def difference(self) -> float | None:
        """Largest difference between what was sent and what it is eagerly; 0 for equal bits, None for a failure."""
        if isinstance(self.sent, Failure) or isinstance(self.eager, Failure):
            return None
        return float(np.max(np.abs(self.sent.delta - self.eager.delta), initial=0.0))

    def deltas(self) -> dict[str, np.ndarray]:
        """Return what was sent, local minus global, by the variables' paths. Errors: ConfigError for a failure."""
        if isinstance(self.sent, Failure):
            raise ConfigError(f"client {self.client} sent nothing: {self.sent.reason}, {self.sent.detail}")
        return self.spec.unflatten(self.sent.delta)


def replay(
    experiment: Experiment, store: Store, run: str, *, round: int, client: int, workers: int | None = None
) -> Replay:
    """Play one client's round of a stored run again.

    The round after the last that is stored, one that ended the run say, begins from the stored state. An earlier one is
    reached by playing the run again, in memory, and each round on the way has to come to the record that the run has.
    The store is read, and never written. experiment: as the run has it; that is checked.
    Errors: IncompatibleError for a run with a plan or a hidden sum, which keep single updates from everybody, and for
    one that cuts the model; ConfigError for another experiment, a round that was not played, a client that did not take
    part, and where the numbers are not the run's; ClientError that names the batch, where the client's training fails.
    """
    _check_allowed(experiment)
    require_count("round", round)
    require_count("client", client, at_least=0)
    stored = store.load_run(run)
    stored.check_goes_on(experiment)
    done = len(stored.records)
    if round > done + 1:
        raise ConfigError(f"run {stored.run} has {done} rounds; round={round} was not played")
    with closing(Simulation(workers, stored.choices.get(COMPILE, "auto"))) as simulation:  # type: ignore[arg-type]
        catching = Catching(_in_order(simulation, stored), round, client, is_last=round > done)
        if round > done:
            _play_on(experiment, catching, store, stored.run)
        else:
            _play_again(experiment, catching, stored)
        if catching.assignment is None or catching.content is None:
            cohort = ", ".join(map(str, sorted(catching.cohort)))
            raise ConfigError(
                f"client {client} did not take part in round {round}; those who did: {cohort or 'nobody'}"
            )
        spec, sent = catching.opened.spec, _decoded(catching, catching.content)
        eager = _eagerly(experiment, catching)
        return Replay(stored.run, round, client, spec, catching.assignment.broadcast.params, sent, eager, round <= done)


@dataclass(frozen=True, eq=False)
class Replayed:
    """A whole run, played again."""

    run: str
    history: History  # of the rounds that the run has done, with its bits

    @property
    def landings(self) -> int:
        """Number of updates that counted in the order in which they had arrived; 0 where the seed says who counts."""
        return sum(len(record.landings) for record in self.history.rounds)


def replay_run(experiment: Experiment, store: Store, run: str, *, workers: int | None = None) -> Replayed:
    """Play a stored run again in a simulation, as far as it came, and hold each round and the last model to the run's.

    An asynchronous run among real devices is played in the order in which its updates arrived. The store is read, and
    never written. experiment: as the run has it; that is checked. Errors: IncompatibleError for a run with a plan or a
    hidden sum, whose noise and masks nobody has; ConfigError for another experiment, for a run without rounds, and
    where the numbers or the model are not the run's.
    """
    _check_allowed(experiment)
    stored = store.load_run(run)
    experiment.check_unchanged(stored.description)
    if not stored.records:
        raise ConfigError(f"run {stored.run} has no rounds yet; there is nothing to play again")
    played = replace(experiment, rounds=len(stored.records), callbacks=())
    with closing(Simulation(workers, stored.choices.get(COMPILE, "auto"))) as simulation:  # type: ignore[arg-type]
        history = None
        for event in play(played, _in_order(simulation, stored)):
            if isinstance(event, RoundDone):
                _check_round(event.record, stored)
            elif isinstance(event, Finished):
                history = event.history
    assert history is not None
    if not np.array_equal(history.params, stored.server_state.params):
        raise ConfigError(f"the last model of run {stored.run} has other bits; {ELSEWHERE}")
    return Replayed(stored.run, history)


class InOrder(Wrapping):
    """A simulation in which clients land as they did among real devices. landings: by round."""

    def __init__(self, runtime: Runtime, landings: Mapping[int, Sequence[Landing]]):
        super().__init__(runtime)
        self._landings = landings

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Same as `Runtime.open`, with who lands in each round."""
        return self.runtime.open(experiment, memory, choices)._replace(landings=self._landings)


def _in_order(simulation: Simulation, stored: StoredRun) -> Runtime:
    """Return the simulation in which a run is played again."""
    landings = {record.round: record.landings for record in stored.records}
    return InOrder(simulation, landings) if any(landings.values()) else simulation


class Catching(Wrapping):
    """A runtime that keeps what one client sends in one round. is_last: nothing after that is played."""

    def __init__(self, runtime: Runtime, round: int, client: int, is_last: bool):
        self.runtime = runtime
        self.is_live = runtime.is_live
        self.assignment: Assignment | None = None
        self.content: Any = None
        self.kept: list[np.ndarray] | None = None  # what the client remembered before its round
        self.cohort: list[int] = []
        self._round, self._client, self._is_last = round, client, is_last

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Same as `Runtime.open`; the memory is read when the client is asked."""
        self.memory = memory
        self.opened = self.runtime.open(experiment, memory, choices)
        return self.opened

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Same as `Runtime.train`."""
        for arrival in self.runtime.train(self._noted(work), dataclasses.replace(summation, subtotals=False)):
            if self.assignment is not None and self.content is None and arrival.clients == (self._client,):
                self.content = arrival.content
                if self._is_last:
                    raise _Seen
            yield arrival

    def _noted(self, work: Iterable[Assignment | None]) -> Iterator[Assignment | None]:
        for assignment in work:
            if assignment is not None and assignment.broadcast.round == self._round:
                self.cohort.append(assignment.client)
                if assignment.client == self._client and self.assignment is None:
                    self.assignment = assignment
                    self.kept = self.memory.read(self._client)
            yield assignment


class _Seen(Exception):
    """Ends a round in which all was seen."""


class _Remembered:
    """The memory of a client as it was before its round."""

    def __init__(self, kept: list[np.ndarray] | None):
        self._kept = kept

    def read(self, client: int) -> list[np.ndarray] | None:
        """Return what the client kept."""
        return self._kept

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Keep nothing."""


class _Untouched:
    """A store of which a run is read, and to which nothing is written."""

    def __init__(self, store: Store):
        self.load_run, self.checkpoint, self.memory = store.load_run, store.checkpoint, store.memory

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Write nothing."""

    def hold(self, run: str) -> str:
        """Hold nothing: a run may be looked into while another process plays it."""
        return run

    release = _nothing
    set_rounds = reopen = write_ledger = commit_round = finish = _nothing


def _check_allowed(experiment: Experiment) -> None:
    """Raise IncompatibleError for a run whose single updates are nobody's to see."""
    recipe = experiment.resolved
    for part in (recipe.plan, recipe.secure_aggregation):
        if part is not None:
            raise IncompatibleError(
                f"{type(part).__name__} keeps single updates from everybody, and a replay would show one; replay a run "
                "without it, of data that may be seen"
            )
    if isinstance(recipe.strategy, SplitStrategy):
        raise IncompatibleError(
            f"under {recipe.strategy!r} a client has half a model, and no round of its own to replay"
        )


def _play_on(experiment: Experiment, catching: Catching, store: Store, run: str) -> None:
    """Begin the round after the last that is stored, until the client has answered."""
    untouched: Any = _Untouched(store)
    _consume(catching, lambda record: False, play(experiment, catching, store=untouched, resume=run))


def _play_again(experiment: Experiment, catching: Catching, stored: StoredRun) -> None:
    """Play a run again from its beginning, up to the end of the client's round; compare each round with its record."""

    def is_over(record: RoundRecord) -> bool:
        _check_round(record, stored)
        return record.round == catching._round

    _consume(catching, is_over, play(experiment, catching))


def _check_round(record: RoundRecord, stored: StoredRun) -> None:
    """Raise ConfigError for a round played again that has other numbers than the run's."""
    before = stored.records[record.round - 1]
    if record.round == len(stored.records):  # a last round is evaluated, and the run may have had more before it
        record = record._replace(metrics={name: record.metrics[name] for name in before.metrics})
    if _numbers(record) != _numbers(before):
        names = ", ".join(sorted(name for name in record.metrics if record.metrics[name] != before.metrics.get(name)))
        raise ConfigError(f"round {record.round} comes to other numbers than run {stored.run}, {names}: {ELSEWHERE}")


def _consume(catching: Catching, is_over: Callable[[RoundRecord], bool], events: Any) -> None:
    with closing(events):
        try:
            for event in events:
                if isinstance(event, RoundDone) and is_over(event.record):
                    return
        except _Seen:
            return
        except ClientError as error:  # perhaps the client's own, which training eagerly will tell in full
            if catching.assignment is None:
                raise
            catching.content = catching.content or Failure(catching.assignment.client, "client_error", str(error))


def _numbers(record: RoundRecord) -> Any:
    """Return what a round came to: all but times; and where devices were real, but envelopes and who failed."""
    metrics = {name: json_float(value) for name, value in record.metrics.items()}
    sent = () if record.landings else (record.failures, record.bytes_up, record.bytes_down)
    return record.round, record.clients, sent, record.landings, sorted(metrics.items())


def _decoded(catching: Catching, content: Any) -> ClientUpdate | Failure:
    summation = catching.opened.summation
    return content if isinstance(content, Failure) else opened(content, summation.codec, summation.shape.delta)


def _eagerly(experiment: Experiment, catching: Catching) -> ClientUpdate | Failure:
    """Play the client's round once more, eagerly. Errors: ClientError that names the batch, where one fails."""
    assert catching.assignment is not None
    with closing(Simulation(debug=True)) as simulation:
        summation = simulation.open(experiment, _Remembered(catching.kept)).summation
        (arrival,) = simulation.train([catching.assignment], summation)
        return _decoded(catching, arrival.content)
