"""Asynchronous rounds: each is a buffer of updates, from clients that began whenever there was room for them.

Who is at work, and when each is done, follows from the virtual clock alone, not from what training gives. So a client
is trained when its update arrives: until then it is a row in a table, and the params it began from are kept. Table and
params are part of the run's state; a run that is killed and resumed has the bits of one that was not.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from ..core.errors import RunStopped
from ..core.parts.algorithms import AsynchronousStrategy
from ..core.parts.devices import REASONS, Devices, Fates, fleet_of
from ..core.random import Key, derive
from ..core.recipe import Recipe
from ..core.runtime import Assignment, Runtime, bytes_of
from ..core.serial import shaped
from ..core.spec import ModelSpec
from ..core.system.faults import crash_point
from ..core.types import Broadcast, ClientUpdate, Failure, RoundRecord, RoundResult, ServerState, State, Vector
from .clock import METRIC, VirtualClock, lost
from .collect import collect
from .rounds import Played, RoundKeys, RoundSetup, averaged, check_enough, conclude, recorded
from .statistics import rebased

TRIES = 8  # samples that are taken, clients at work or out of reach left out, before some room stays free
HOPELESS = 1000  # clients lost in a row, or ten times those at work: nobody will ever arrive


class Flight(NamedTuple):
    """One client at work. Flights are ordered by when they end, and at equal times by who began first."""

    ends: float  # when the client is done: seconds on the virtual clock
    number: int  # place of this flight among all that began, in order
    client: int
    round: int  # round of the broadcast that it began from
    wave: int  # wave of the clients that began from that broadcast: 0 for the first
    began: float  # when the client began: seconds on the virtual clock
    reason: int  # index into REASONS: whether its update will arrive


class AsynchronousState(NamedTuple):
    """State of an asynchronous run, which `ServerState.strategy` holds."""

    strategy: State  # state of the strategy itself
    now: float  # present time: seconds on the virtual clock
    begun: int  # number of clients that began so far
    flights: np.ndarray  # a row for each client at work: float64, shape (n, 7); exact, as no integer in it nears 2⁵³
    broadcasts: Mapping[int, tuple]  # broadcasts that clients at work began from, by round


def first_state(experiment: Recipe, params: Vector) -> State:
    """Return the strategy's part of the state that a run begins with."""
    own = experiment.strategy.init(params)
    if not isinstance(experiment.strategy, AsynchronousStrategy):
        return own
    return AsynchronousState(own, 0.0, 0, np.zeros((0, len(Flight._fields))), {})


def play_asynchronously(table: RoundSetup, state: ServerState, records: Sequence[RoundRecord] = ()) -> Played:
    """Play the round after `state` until the strategy's buffer is full. Arguments and errors: see `play_round`.

    The record has "staleness", the mean of the updates counted, if there are any. RunStopped, too, when clients are
    lost in a row and none arrives. Where nobody can be reached for two weeks, the round ends with what has arrived.
    """
    experiment, runtime = table.experiment, table.runtime
    started = time.perf_counter()
    broadcast = begun(experiment, state, records)
    sky = _Sky(experiment, runtime, state.strategy, broadcast)
    landed, lost_ones = sky.fill_buffer()
    crash_point("before-training", broadcast.round)
    landing = _Landing(experiment, sky, landed, table.opened.spec)
    result = collect(runtime.train, landing, table.opened.summation, table.memory, counts_as=landing.counts_as)
    # Clients begin in one round and land in another: what they were sent is the table's to say.
    result = result._replace(failures=[*lost_ones, *result.failures], bytes_down=sky.bytes_down)
    after, record = closed(table, state, broadcast, result, landing.ages)
    timed = {METRIC: sky.clock.now} if experiment.devices else {}
    record = record._replace(seconds=time.perf_counter() - started, metrics={**record.metrics, **timed})
    crash_point("after-aggregation", broadcast.round)
    return after._replace(strategy=sky.state(after.strategy)), record, result.failures


def begun(experiment: Recipe, state: ServerState, records: Sequence[RoundRecord]) -> Broadcast:
    """Return what clients receive that begin in the round after `state`."""
    number = state.round + 1
    extra, rate = (
        experiment.strategy.broadcast(state.strategy.strategy),
        experiment.local.learning_rate_at(number, records),
    )
    return Broadcast(number, state.params, extra, state.transforms, rate)


def closed(
    table: RoundSetup, state: ServerState, broadcast: Broadcast, result: RoundResult, ages: Sequence[int]
) -> tuple[ServerState, RoundRecord]:
    """Return the state after a round, with the strategy's own state in it, and the round's record, its seconds 0.

    state: that before the round. ages: how stale each update in the result is. Errors: see `play_asynchronously`.
    """
    experiment, runtime, number = table.experiment, table.runtime, broadcast.round
    check_enough(experiment, number, result)
    before = state._replace(strategy=state.strategy.strategy)
    if result.is_of_nobody:
        after, record = before._replace(round=number), recorded(experiment, before, number, {}, result)
    else:
        key = RoundKeys.of(experiment, runtime, number).decode
        mean, before = averaged(experiment, before, broadcast, result.total, key, runtime)
        after, record = conclude(experiment, before, broadcast, mean, result, table.opened.spec)
    aged = {"staleness": float(np.mean(ages))} if ages else {}
    return after, record._replace(metrics={**record.metrics, **aged})


def received(
    experiment: Recipe, spec: ModelSpec, update: ClientUpdate, base: Broadcast, now: Broadcast
) -> tuple[ClientUpdate, int]:
    """Return what an update counts as, its statistics counted from the params of now, and its age.

    base: broadcast that it began from. now: that of the round in which it arrives.
    """
    strategy, age = cast(AsynchronousStrategy, experiment.strategy), now.round - base.round
    if age and not strategy.mixes_models:
        update = rebased(update, base.params, now.params, spec)
    return strategy.receive(update, age, base.params, now.params), age


class _Landing:
    """Work of a round: who landed, in the order they began, and what each update counts as by its age.

    A client that landed twice trains twice, one after the other: what it keeps at home from the first is there in the
    second. ages: how stale each update counted is.
    """

    def __init__(self, experiment: Recipe, sky: _Sky, landed: Sequence[Flight], spec: ModelSpec):
        self.ages: list[int] = []
        self._experiment, self._sky, self._landed, self._spec = experiment, sky, landed, spec
        self._arriving = iter(landed)

    def __iter__(self) -> Iterator[Assignment]:
        seed = self._experiment.seed
        for flight in self._landed:
            key = wave_key(seed, flight.round, flight.wave)
            yield Assignment(self._sky.broadcasts[flight.round], flight.client, key)

    def counts_as(self, client: int, update: ClientUpdate | Failure) -> ClientUpdate | Failure:
        """Let the strategy turn an update into what counts, its statistics counted from the params of now."""
        flight = next(self._arriving)
        if isinstance(update, Failure):
            return update
        base = self._sky.broadcasts[flight.round]
        update, age = received(self._experiment, self._spec, update, base, self._sky.broadcast)
        self.ages.append(age)
        return update


def wave_key(seed: int, round: int, wave: int) -> Key:
    """Return the key of the clients that began together; for a round's first wave, that of a synchronous round."""
    key = derive(seed, "round", round)
    return key.derive("wave", wave) if wave else key


def flights_of(state: AsynchronousState) -> list[Flight]:
    """Return the clients at work, in order."""
    return [
        Flight(ends, int(number), int(client), int(round), int(wave), began, int(reason))
        for ends, number, client, round, wave, began, reason in state.flights.tolist()
    ]


def broadcasts_of(state: AsynchronousState, transforms: State) -> dict[int, Broadcast]:
    """Return the broadcasts that clients at work began from, by round. transforms: the transforms' state of now."""
    kept = {round: Broadcast(*parts) for round, parts in state.broadcasts.items()}
    return {round: one._replace(transforms=shaped(one.transforms, transforms)) for round, one in kept.items()}


def state_of(
    own: State, now: float, begun: int, flights: Iterable[Flight], broadcasts: Mapping[int, Broadcast]
) -> AsynchronousState:
    """Return the state of a run with these clients at work. own: the strategy's own. broadcasts: by round."""
    table = np.array(rows := sorted(flights), np.float64).reshape(len(rows), len(Flight._fields))
    return AsynchronousState(own, now, begun, table, {round: tuple(one) for round, one in sorted(broadcasts.items())})


def is_too_old(experiment: Recipe, began: int, round: int) -> bool:
    """Return whether an update that began in one round is thrown away in another."""
    bound = cast(AsynchronousStrategy, experiment.strategy).max_staleness
    return bound is not None and round - began > bound


def stale(client: int, age: int) -> Failure:
    """Return the failure of a client whose update is thrown away."""
    return Failure(client, "stale", f"its update is {age} rounds old")


def choose(
    experiment: Recipe,
    clients: Sequence[int],
    busy: Collection[int],
    key: Key,
    reachable: Callable[[Sequence[int]], Sequence[int]],
) -> list[int]:
    """Choose as many clients as there is room for, or as are found: the sampler's choice of those free and in reach.

    busy: clients that are at work. reachable: keeps those of some clients that can be reached.
    """
    chosen: list[int] = []
    for attempt in range(TRIES):
        own = key.derive("cohort", attempt) if attempt else key.derive("cohort")
        sample = experiment.sampler.sample(clients, experiment.population.sizes, own)
        room = len(sample) - len(busy) - len(chosen)
        taken = {*busy, *chosen}
        free = [client for client in sample if client not in taken]
        free = list(reachable(free)) if free else free
        if len(free) > room:
            places = own.derive("places").generator().choice(len(free), max(room, 0), replace=False)
            free = [free[place] for place in sorted(places)]
        chosen += free
        if len(free) >= room:
            break
    return sorted(chosen)


class _Sky:
    """The clients at work, while a round lasts."""

    def __init__(self, experiment: Recipe, runtime: Runtime, own: AsynchronousState, broadcast: Broadcast):
        self.experiment, self.broadcast, self.clients = experiment, broadcast, runtime.client_ids()
        fleet = fleet_of(experiment.devices or Devices(), len(experiment.population), experiment.seed)
        self.clock = VirtualClock(experiment, fleet, own.now)
        self.broadcasts = broadcasts_of(own, broadcast.transforms) | {broadcast.round: broadcast}
        self.bytes_down = 0
        self._begun, self._wave, self._lost_in_a_row = own.begun, 0, 0
        self._flights = flights_of(own)
        heapq.heapify(self._flights)
        self._busy = {flight.client for flight in self._flights}

    def state(self, own: State) -> AsynchronousState:
        """Return the state that is left for the rounds to come. own: the strategy's own state."""
        following = self.broadcast.round + 1
        needed = {one.round for one in self._flights if not is_too_old(self.experiment, one.round, following)}
        kept = {round: one for round, one in self.broadcasts.items() if round in needed}
        return state_of(own, self.clock.now, self._begun, self._flights, kept)

    def fill_buffer(self) -> tuple[list[Flight], list[Failure]]:
        """Let time pass until the round is over; return whose updates are in it, in the order they began, and the lost.

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
        if not is_too_old(self.experiment, flight.round, self.broadcast.round):
            return None
        return stale(flight.client, self.broadcast.round - flight.round)

    def _fill_up(self) -> None:
        """Let clients begin where there is room.

        While nobody is at work and nobody can be reached, time passes, two weeks at most.
        """
        began = self.clock.now
        while True:
            key = wave_key(self.experiment.seed, self.broadcast.round, self._wave)
            # Once time has passed: to sample again and again among clients that are all away takes long.
            is_open = self.clock.now == began or len(self.clock.fleet.reachable(self.clients, self.clock.now)) > 0
            if clients := choose(self.experiment, self.clients, self._busy, key, self._reachable) if is_open else []:
                self._begin(clients, key)
            self._wave += 1
            if self._flights or not self.clock.wait(began):
                return

    def _reachable(self, clients: Sequence[int]) -> Sequence[int]:
        return self.clock.fleet.reachable(clients, self.clock.now)

    def _begin(self, clients: Sequence[int], key: Key) -> None:
        """Send the clients the broadcast."""
        fates: Fates = self.clock.fates(np.asarray(clients, np.int64), self.broadcast, key.derive("devices"))
        for client, ends, reason in zip(clients, fates.ends.tolist(), fates.reasons.tolist(), strict=True):
            flight = Flight(ends, self._begun, client, self.broadcast.round, self._wave, self.clock.now, reason)
            heapq.heappush(self._flights, flight)
            self._busy.add(client)
            self._begun += 1
        self.bytes_down += len(clients) * bytes_of(self.broadcast)
