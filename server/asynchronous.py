"""The second loop: a round is a buffer of updates, from clients that began whenever there was room for them.

Who is at work, and when each is done, follows from the virtual clock alone, not from what training gives. So a client
is trained when its update arrives: until then it is a row in a table, and the params it began from are kept. Table and
params are part of the run's state; a run that is killed and resumed has the bits of one that was not.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.devices import REASONS, Devices, Fates, fleet_of
from ..core.errors import ConfigError, RunStopped
from ..core.experiment import Experiment, is_asynchronous
from ..core.faults import crash_point
from ..core.folds import InTheOpen
from ..core.protocols import Runtime
from ..core.random import Key, derive
from ..core.serial import shaped
from ..core.spec import ModelSpec
from ..core.types import Assignment, Broadcast, Failure, RoundRecord, RoundResult, ServerState, State, Vector
from .clock import METRIC, VirtualClock, lost, payload
from .rounds import Spend, averaged, check_enough, conclude
from .statistics import rebased

TRIES = 8  # samples taken, of which those that are at work or out of reach are left out, before some room stays free
HOPELESS = 1000  # clients lost in a row, or ten times those at work: nobody will ever arrive


class Flight(NamedTuple):
    """A client at work. Ordered by when it ends, and at equal times by who began first."""

    ends: float  # seconds on the virtual clock
    number: int  # of all that began, in order
    client: int
    round: int  # of its broadcast
    wave: int  # of the clients that began from that broadcast: 0 for the first
    began: float
    reason: int  # index into REASONS: whether its update will arrive


class AsynchronousState(NamedTuple):
    """What `ServerState.strategy` holds in an asynchronous run."""

    strategy: State  # the strategy's own
    now: float  # seconds on the virtual clock
    begun: int  # clients that began so far
    flights: np.ndarray  # float64, shape (clients at work, 7): exact, since none of its integers nears 2⁵³
    broadcasts: Mapping[int, tuple]  # by round, those that clients at work began from


def first_state(experiment: Experiment, params: Vector) -> State:
    """The strategy's part of the state that a run begins with."""
    own = experiment.strategy.init(params)
    if not is_asynchronous(experiment.strategy):
        return own
    return AsynchronousState(own, 0.0, 0, np.zeros((0, len(Flight._fields))), {})


def check_runtime(experiment: Experiment, runtime: Runtime) -> None:
    """Errors: ConfigError for what a runtime cannot do that does not train clients one by one."""
    if experiment.reweighting is not None and not hasattr(runtime, "train_each"):
        raise ConfigError(
            f"{experiment.reweighting!r} needs a runtime that sees clients one by one, Simulation; not {runtime!r}"
        )
    if is_asynchronous(experiment.strategy) and not hasattr(runtime, "train_each"):
        raise ConfigError(
            f"{experiment.strategy!r} needs a runtime with asynchronous rounds, Simulation; not {runtime!r}"
        )


def play_asynchronously(
    experiment: Experiment,
    runtime: Any,
    state: ServerState,
    records: Sequence[RoundRecord] = (),
    spend: Spend = lambda ledger: None,
    spec: ModelSpec | None = None,
) -> tuple[ServerState, RoundRecord, Sequence[Failure]]:
    """The round after `state`: until the strategy's buffer is full. Arguments and errors: see `play_round`.

    The record has "staleness", the mean of the updates counted. RunStopped, too, when clients are lost in a row and
    none arrives.
    """
    number, strategy, own = state.round + 1, experiment.strategy, state.strategy
    started = time.perf_counter()
    rate = experiment.local.learning_rate_at(number, records)
    broadcast = Broadcast(number, state.params, strategy.broadcast(own.strategy), state.transforms, rate)
    sky = _Sky(experiment, runtime, own, broadcast)
    landed, failures = sky.fill_buffer()
    crash_point("before-training", number)
    result, ages = _collect(experiment, runtime, sky, landed, failures, spec)
    check_enough(experiment, number, result, [flight.client for flight in landed])
    key = derive(experiment.seed, "round", number).derive("decode")
    before = state._replace(strategy=own.strategy)
    mean, before = averaged(experiment, before, broadcast, result.total, len(runtime.client_ids()), key)
    state, record = conclude(experiment, before, broadcast, mean, result, spec)
    timed = {METRIC: sky.clock.now} if experiment.devices else {}
    metrics = {**record.metrics, **timed, "staleness": float(np.mean(ages))}
    record = record._replace(seconds=time.perf_counter() - started, metrics=metrics)
    crash_point("after-aggregation", number)
    return state._replace(strategy=sky.state(state.strategy)), record, result.failures


def _collect(
    experiment: Experiment,
    runtime: Any,
    sky: _Sky,
    landed: Sequence[Flight],
    failures: Sequence[Failure],
    spec: ModelSpec | None,
) -> tuple[RoundResult, list[int]]:
    """The round's sum, and how stale each update in it is. failures: of those who did not land."""
    params, strategy = sky.broadcast.params, experiment.strategy
    mixes_models = getattr(strategy, "mixes_models", False)
    session, ages, failed = InTheOpen(experiment.fold, len(params)), [], [*failures]
    for flight, update in _train(runtime, experiment.seed, landed, sky.broadcasts):
        if isinstance(update, Failure):
            failed.append(update)
            continue
        age, base = sky.broadcast.round - flight.round, sky.broadcasts[flight.round].params
        if age and spec is not None and not mixes_models:
            update = rebased(update, base, params, spec)
        session.add(flight.client, strategy.receive(update, age, base, params))  # type: ignore[attr-defined]
        ages.append(age)
    return RoundResult(session.total(), failed, session.bytes_up, sky.bytes_down), ages


def _train(
    runtime: Any, seed: int, landed: Sequence[Flight], broadcasts: Mapping[int, Broadcast]
) -> Iterator[tuple[Flight, Any]]:
    """Each flight's update, in order. A client that landed twice trains twice, one after the other: what it keeps at
    home from the first is there in the second."""
    batch: dict[int, Flight] = {}
    for flight in [*landed, None]:
        if flight is None or flight.client in batch:
            flights = batch.values()
            work = [Assignment(broadcasts[f.round], f.client, wave_key(seed, f.round, f.wave)) for f in flights]
            yield from zip(flights, runtime.train_each(work), strict=True)
            batch = {}
        if flight is not None:
            batch[flight.client] = flight


def wave_key(seed: int, round: int, wave: int) -> Key:
    """The key of the clients that began together; of a round's first wave that of a synchronous round."""
    key = derive(seed, "round", round)
    return key.derive("wave", wave) if wave else key


def _flight(row: Sequence[float]) -> Flight:
    """A row of the table."""
    ends, number, client, round, wave, began, reason = row
    return Flight(ends, int(number), int(client), int(round), int(wave), began, int(reason))


class _Sky:
    """The clients at work, while a round lasts."""

    def __init__(self, experiment: Experiment, runtime: Runtime, own: AsynchronousState, broadcast: Broadcast):
        self.experiment, self.broadcast, self.clients = experiment, broadcast, runtime.client_ids()
        fleet = fleet_of(experiment.devices or Devices(), len(experiment.population), experiment.seed)
        self.clock = VirtualClock(experiment, fleet, own.now)
        self.broadcasts = {
            round: Broadcast(*parts)._replace(transforms=shaped(parts[3], broadcast.transforms))
            for round, parts in own.broadcasts.items()
        } | {broadcast.round: broadcast}
        self.bytes_down = 0
        self._begun, self._wave, self._lost_in_a_row = own.begun, 0, 0
        self._flights = [_flight(row) for row in own.flights.tolist()]
        heapq.heapify(self._flights)
        self._busy = {flight.client for flight in self._flights}

    def state(self, own: State) -> AsynchronousState:
        """What is left for the rounds to come. own: the strategy's."""
        flights = sorted(self._flights)
        needed = {flight.round for flight in flights if not self._is_too_old(flight, self.broadcast.round + 1)}
        table = np.array(flights, np.float64).reshape(len(flights), len(Flight._fields))
        kept = {round: tuple(one) for round, one in sorted(self.broadcasts.items()) if round in needed}
        return AsynchronousState(own, self.clock.now, self._begun, table, kept)

    def fill_buffer(self) -> tuple[list[Flight], list[Failure]]:
        """Let time pass until the round is over: whose updates are in it, in the order they began, and who was lost.

        Those that end at the same moment are all heard before anybody begins in their place.
        """
        strategy: Any = self.experiment.strategy
        buffer, began = strategy.buffer or math.inf, self.clock.now
        landed: list[Flight] = []
        failures: list[Failure] = []
        self._fill_up()
        closes = began + (strategy.round_seconds or math.inf)
        while len(landed) < buffer and self._flights:
            ends = self._flights[0].ends
            if not landed and ends > closes:  # the round goes on for as many times its length as it takes
                closes = began + strategy.round_seconds * math.ceil((ends - began) / strategy.round_seconds)
            if ends > closes:
                self.clock.now = closes
                break
            self._hear(buffer, landed, failures)
            if strategy.round_seconds is None and len(landed) < buffer:
                self._fill_up()
        return sorted(landed, key=lambda flight: flight.number), failures

    def _hear(self, buffer: float, landed: list[Flight], failures: list[Failure]) -> None:
        """Let time pass to the next moment at which somebody ends, and hear those who do."""
        self.clock.now = self._flights[0].ends
        while self._flights and self._flights[0].ends == self.clock.now and len(landed) < buffer:
            flight = heapq.heappop(self._flights)
            self._busy.discard(flight.client)
            failed = self._lost(flight)
            if failed is None:
                landed.append(flight)
                self._lost_in_a_row = 0
            else:
                failures.append(failed)
                self._lost_in_a_row += 1
        if self._lost_in_a_row > max(HOPELESS, 10 * len(self._flights)):
            last = failures[-1]
            raise RunStopped(
                f"round {self.broadcast.round}: {self._lost_in_a_row} clients were lost in a row; the last was client "
                f"{last.client} ({last.reason}): {last.detail}"
            )

    def _lost(self, flight: Flight) -> Failure | None:
        if flight.reason:
            return lost(flight.client, REASONS[flight.reason], flight.ends - flight.began)
        if not self._is_too_old(flight, self.broadcast.round):
            return None
        age = self.broadcast.round - flight.round
        return Failure(flight.client, "stale", f"its update is {age} rounds old")

    def _is_too_old(self, flight: Flight, round: int) -> bool:
        bound = self.experiment.strategy.max_staleness  # type: ignore[attr-defined]
        return bound is not None and round - flight.round > bound

    def _fill_up(self) -> None:
        """Let clients begin where there is room; wait while nobody is at work and nobody can be reached."""
        began = self.clock.now
        while True:
            key = wave_key(self.experiment.seed, self.broadcast.round, self._wave)
            clients = self._choose(key)
            if clients:
                self._begin(clients, key)
            self._wave += 1
            if self._flights:
                return
            self.clock.wait(began)

    def _choose(self, key: Key) -> list[int]:
        """As many clients as there is room for, or as are found: the sampler's choice of those that are free and in
        reach."""
        chosen: list[int] = []
        for attempt in range(TRIES):
            own = key.derive("cohort", attempt) if attempt else key.derive("cohort")
            sample = self.experiment.sampler.sample(self.clients, self.experiment.population.sizes, own)
            room = len(sample) - len(self._busy) - len(chosen)
            taken = self._busy.union(chosen)
            free = [client for client in sample if client not in taken]
            free = list(self.clock.fleet.reachable(free, self.clock.now)) if free else free
            if len(free) > room:
                places = own.derive("places").generator().choice(len(free), max(room, 0), replace=False)
                free = [free[place] for place in sorted(places)]
            chosen += free
            if len(free) >= room:
                break
        return sorted(chosen)

    def _begin(self, clients: Sequence[int], key: Key) -> None:
        """Send the clients the broadcast."""
        fates: Fates = self.clock.fates(np.asarray(clients, np.int64), self.broadcast, key.derive("devices"))
        for client, ends, reason in zip(clients, fates.ends.tolist(), fates.reasons.tolist(), strict=True):
            flight = Flight(ends, self._begun, client, self.broadcast.round, self._wave, self.clock.now, reason)
            heapq.heappush(self._flights, flight)
            self._busy.add(client)
            self._begun += 1
        self.bytes_down += len(clients) * payload(self.broadcast)
