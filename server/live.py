"""Asynchronous rounds among real devices: an update counts as it arrives. And the same rounds again, in a simulation.

Whom to ask next is the server's to say; who arrives next is nobody's. So each round's record has who landed, in which
order and from which broadcast, and that is all that a simulation needs to come to the same bits. What has landed in a
round that was not committed counts for nothing: its clients are at work still, as of the last commit, and a resumed run
asks them for the same work again, from the same broadcast and key.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, cast

import numpy as np

from ..core.errors import ConfigError, RunStopped
from ..core.parts.algorithms import AsynchronousStrategy
from ..core.recipe import Recipe
from ..core.runtime import WAIT, Arrival, Assignment, Runtime
from ..core.system.faults import crash_point
from ..core.types import Broadcast, ClientUpdate, Failure, Landing, RoundRecord, ServerState
from .asynchronous import (
    AsynchronousState,
    Flight,
    begun,
    broadcasts_of,
    choose,
    closed,
    flights_of,
    is_too_old,
    received,
    stale,
    state_of,
    wave_key,
)
from .collect import Out, Sum, collect, take
from .rounds import Played, RoundSetup

REST_SECONDS = 5.0  # time for which a client that has failed is asked for nothing; twice as long each time in a row
LONGEST_REST_SECONDS = 300.0
PAUSE_SECONDS = 0.1  # time between two looks at whom to ask, while nobody is at work
HOPELESS = 3  # failures in a row, for each client and ten at least, with which nobody is waited for any longer


class Player(Protocol):
    """Something that plays a run's asynchronous rounds, one after the other, and holds what lasts longer than one."""

    def play(self, state: ServerState, records: Sequence[RoundRecord] = ()) -> Played:
        """Play the round after `state`. Arguments and errors: see `play_round`."""

    def close(self) -> None:
        """Let go of whoever is still at work."""


def player_of(table: RoundSetup, state: ServerState) -> Player | None:
    """Return who plays a run's rounds where real arrivals decide; None where the seed does, or there are cohorts.

    state: the run's, at its beginning. Errors: ConfigError for rounds that last so long on the virtual clock.
    """
    strategy = table.experiment.strategy
    if not isinstance(strategy, AsynchronousStrategy):
        return None
    if table.opened.landings is not None:
        return Again(table)
    return Live(table, state) if table.runtime.is_live else None


def check_runtime(experiment: Recipe, runtime: Runtime) -> None:
    """Raise ConfigError for asynchronous rounds that real devices cannot keep to: those of a length on a clock."""
    strategy = experiment.strategy
    if isinstance(strategy, AsynchronousStrategy) and runtime.is_live and strategy.buffer is None:
        raise ConfigError(
            f"{strategy!r} has rounds of a length on the virtual clock, Simulation's; {runtime!r} is of real devices: "
            "use FedBuff or FedAsync there, or Simulation"
        )


class Live:
    """Rounds of a run whose clients are at work across rounds. One iterator of arrivals outlives them all."""

    def __init__(self, table: RoundSetup, state: ServerState):
        self._table, self._work = table, _Work(table, state)
        self._out = Out(self._work)
        # Somebody has to see each update, as it comes.
        self._summation = replace(table.opened.summation, in_order=False, subtotals=False)
        self._arrivals = table.runtime.train(self._out, self._summation)

    def play(self, state: ServerState, records: Sequence[RoundRecord] = ()) -> Played:
        """Play the round after `state`: see `Player`. RunStopped, too, when clients fail in a row and none arrives."""
        table, work, started = self._table, self._work, time.perf_counter()
        broadcast = begun(table.experiment, state, records)
        work.turn_to(broadcast)
        crash_point("before-training", broadcast.round)
        adding = Sum(self._out, self._summation, table.memory, work.counts_as)
        take(self._landing(), adding, cast(int, table.experiment.strategy.buffer))
        result = adding.result()
        up, down = result.bytes_up + work.bytes_up, result.bytes_down + work.bytes_down
        result = result._replace(failures=[*work.failures, *result.failures], bytes_up=up, bytes_down=down)
        after, record = closed(table, state, broadcast, result, work.ages)
        record = record._replace(seconds=time.perf_counter() - started, landings=tuple(work.landings))
        crash_point("after-aggregation", broadcast.round)
        return after._replace(strategy=work.state(after)), record, result.failures

    def close(self) -> None:
        """Let go of whoever is still at work: what they send later counts for nothing."""
        cast("Generator[Arrival]", self._arrivals).close()

    def _landing(self) -> Iterator[Arrival]:
        """Yield the arrivals that may count. One that does not has no place in the sum, and none in the record."""
        for arrival in self._arrivals:
            if not self._work.lost(arrival):
                yield arrival
                continue
            self._out.took(arrival.clients, in_order=False)


class _Work:
    """Clients at work, and whom to ask next: as many as the sampler chooses are at work at any time."""

    def __init__(self, table: RoundSetup, state: ServerState):
        own: AsynchronousState = state.strategy
        self.failures: list[Failure] = []
        self.landings: list[Landing] = []
        self.ages: list[int] = []
        self.bytes_up = self.bytes_down = 0
        self._table, self._experiment = table, table.experiment
        self._broadcasts = broadcasts_of(own, state.transforms)
        self._flights = {one.client: one for one in flights_of(own) if one.round in self._broadcasts}
        self._begun, self._wave, self._lost_in_a_row = own.begun, 0, 0
        self._before: dict[int, Sequence[np.ndarray]] = {}  # what those kept at the last commit who have landed since
        self._resting: dict[int, tuple[float, float]] = {}  # {client that failed last: (until when, for how long)}
        self._now: Broadcast

    def turn_to(self, broadcast: Broadcast) -> None:
        """Begin a round: clients are sent this broadcast from here on."""
        self._now, self._wave = broadcast, 0
        self._broadcasts = self._needed(broadcast.round) | {broadcast.round: broadcast}
        self.failures, self.landings, self.ages = [], [], []
        self.bytes_up = self.bytes_down = 0
        self._before = {}

    def __iter__(self) -> Iterator[Assignment | None]:
        for flight in sorted(self._flights.values(), key=lambda one: one.number):  # of a run that is resumed
            yield self._assignment(flight)
        while True:
            for flight in self._begin():
                yield self._assignment(flight)
            yield WAIT

    def lost(self, arrival: Arrival) -> bool:
        """Return whether an arrival is of no update that may count; then note that. Errors: RunStopped."""
        (client,), content = arrival.clients, arrival.content
        flight = self._flights[client]
        if isinstance(content, Failure):
            self._rest(client)
        elif is_too_old(self._experiment, flight.round, self._now.round):
            content = stale(client, self._now.round - flight.round)
        else:
            return False
        del self._flights[client]
        self.failures.append(content)
        self.bytes_up, self.bytes_down = self.bytes_up + arrival.bytes_up, self.bytes_down + arrival.bytes_down
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= max(10, HOPELESS * len(self._table.runtime.client_ids())):
            raise RunStopped(
                f"round {self._now.round}: {self._lost_in_a_row} clients were lost in a row; the last was client "
                f"{client} ({content.reason}): {content.detail}"
            )
        return True

    def counts_as(self, client: int, update: ClientUpdate | Failure) -> ClientUpdate | Failure:
        """Let the strategy turn an update into what counts; note that it landed."""
        flight = self._flights.pop(client)
        if isinstance(update, Failure):
            return update
        base = self._broadcasts[flight.round]
        update, age = received(self._experiment, self._table.opened.spec, update, base, self._now)
        if client not in self._before:  # what it has kept of this update is written hereafter
            self._before[client] = self._table.memory.read(client) or ()
        self._lost_in_a_row = 0
        self._resting.pop(client, None)
        self.ages.append(age)
        self.landings.append(Landing(flight.number, client, flight.round, flight.wave))
        return update

    def state(self, after: ServerState) -> AsynchronousState:
        """Return the strategy's part of the state after a round: who is at work, and what each began from."""
        kept = self._needed(after.round + 1)
        return state_of(after.strategy, 0.0, self._begun, self._flights.values(), kept)

    def _needed(self, round: int) -> dict[int, Broadcast]:
        """Return the broadcasts of those at work whose updates would count in a round."""
        began = {flight.round for flight in self._flights.values()}
        return {
            number: broadcast
            for number, broadcast in self._broadcasts.items()
            if number in began and not is_too_old(self._experiment, number, round)
        }

    def _begin(self) -> list[Flight]:
        """Choose who begins now; wait until somebody can, where nobody is at work."""
        while True:
            clients, key = (
                self._table.runtime.client_ids(),
                wave_key(self._experiment.seed, self._now.round, self._wave),
            )
            chosen = choose(self._experiment, clients, self._flights, key, self._rested)
            flights = [
                Flight(0.0, self._begun + place, client, self._now.round, self._wave, 0.0, 0)
                for place, client in enumerate(chosen)
            ]
            self._wave += 1
            self._begun += len(flights)
            self._flights |= {flight.client: flight for flight in flights}
            if self._flights:
                return flights
            time.sleep(PAUSE_SECONDS)

    def _rest(self, client: int) -> None:
        """Let a client that has failed be: one that is gone for good is soon asked seldom."""
        _, before = self._resting.get(client, (0.0, REST_SECONDS / 2))
        rest = min(2 * before, LONGEST_REST_SECONDS)
        self._resting[client] = time.monotonic() + rest, rest

    def _rested(self, clients: Sequence[int]) -> Sequence[int]:
        now = time.monotonic()
        return [client for client in clients if self._resting.get(client, (-math.inf, 0.0))[0] <= now]

    def _assignment(self, flight: Flight) -> Assignment:
        key = wave_key(self._experiment.seed, flight.round, flight.wave)
        broadcast, before = self._broadcasts[flight.round], self._before.get(flight.client)
        return Assignment(broadcast, flight.client, key, number=flight.number + 1, before=before)


class Again:
    """Rounds of a run among real devices once more, in a simulation, by who landed in each."""

    def __init__(self, table: RoundSetup):
        assert table.opened.landings is not None
        self._table, self._landings = table, table.opened.landings
        self._last = {landing.round: round for round, landed in sorted(self._landings.items()) for landing in landed}
        self._broadcasts: dict[int, Broadcast] = {}

    def play(self, state: ServerState, records: Sequence[RoundRecord] = ()) -> Played:
        """Play the round after `state`: see `Player`. Errors: ConfigError for a round of which nothing is known."""
        table, started = self._table, time.perf_counter()
        broadcast = begun(table.experiment, state, records)
        if broadcast.round not in self._landings:
            raise ConfigError(f"it is not on record who landed in round {broadcast.round}; play fewer rounds again")
        landed = self._landings[broadcast.round]
        self._broadcasts[broadcast.round] = broadcast
        landing, ages, arriving = self._work(landed), list[int](), iter(landed)

        def counts_as(client: int, update: ClientUpdate | Failure) -> ClientUpdate | Failure:
            base = self._broadcasts[next(arriving).round]
            if isinstance(update, Failure):
                return update
            update, age = received(table.experiment, table.opened.spec, update, base, broadcast)
            ages.append(age)
            return update

        summation = replace(table.opened.summation, strangers=True)  # what did not fit then does not fit now
        result = collect(table.runtime.train, landing, summation, table.memory, counts_as=counts_as)
        after, record = closed(table, state, broadcast, result, ages)
        over = broadcast.round
        self._broadcasts = {round: one for round, one in self._broadcasts.items() if self._last.get(round, 0) > over}
        record = record._replace(seconds=time.perf_counter() - started, landings=tuple(landed))
        return after._replace(strategy=state_of(after.strategy, 0.0, 0, (), {})), record, result.failures

    def close(self) -> None:
        """Do nothing: nobody is at work between rounds."""

    def _work(self, landed: Sequence[Landing]) -> Iterator[Assignment]:
        for number, client, round, wave in landed:
            key = wave_key(self._table.experiment.seed, round, wave)
            yield Assignment(self._broadcasts[round], client, key, number=number + 1)
