"""A runtime in which some clients attack: for testing aggregators against what their papers promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from ..core.aggregators import opened
from ..core.bases import Codec
from ..core.errors import ConfigError, IncompatibleError
from ..core.experiment import Experiment
from ..core.parts.algorithms import AsynchronousStrategy, SplitStrategy
from ..core.protocols import Memory
from ..core.random import Key
from ..core.runtime import WAIT, Arrival, Assignment, Opened, Parties, Runtime, bytes_of
from ..core.summation import Summation
from ..core.types import ClientUpdate, CodedUpdate, Failure
from ..core.validation import require, require_methods
from .wrapping import Wrapping


class Attack(Protocol):
    """An attack: it forges what attackers send in place of their updates; see `strategies.attacks`."""

    def forge(self, own: Sequence[ClientUpdate], honest: Sequence[ClientUpdate], key: Key) -> list[ClientUpdate]: ...


class Attacked(Wrapping):
    """A simulation in which `attackers` send what `attack` forges, each time they are sampled.

    Memory: n·d for a cohort of n. What poisons examples is in `data.attacks`, not here.

    Parameters
    ----------
    simulation
        A runtime on this machine. The attackers train like the others, and forge what leaves them, after the
        experiment's transforms: what a client is asked to do, clipping say, an attacker need not. What they forge
        travels through the experiment's codec, and in its hidden sums, like every update. They collude, and know what
        the honest clients of the cohort send. With no attackers in a cohort its round has the bits of `simulation`.

    Raises
    ------
    ConfigError
        For a runtime of real devices and, when opened, for attackers that the experiment does not have.
    IncompatibleError
        For rounds in which clients wait for one another, and for a model that is cut.
    """

    def __init__(self, simulation: Runtime, attack: Attack, attackers: Sequence[int]):
        require(not simulation.is_live, f"expected a simulation to attack, got {simulation!r} of real devices")
        require_methods("attack", attack, ("forge",), "SignFlip()")
        super().__init__(simulation)
        self.attack, self.attackers = attack, tuple(sorted(set(attackers)))
        self._parties = Parties()

    def __repr__(self) -> str:
        return f"Attacked({self.runtime!r}, {self.attack!r}, attackers={list(self.attackers)})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Bind the simulation to experiment, with the attackers between clients and server."""
        count = len(experiment.population)
        strangers = [client for client in self.attackers if not 0 <= client < count]
        if strangers:
            raise ConfigError(f"expected attackers among {count} clients, got {strangers[:5]}")
        if isinstance(experiment.resolved.strategy, (AsynchronousStrategy, SplitStrategy)):
            raise IncompatibleError(
                f"attackers answer to what the others of a cohort send; {experiment.strategy!r} has other rounds"
            )
        return self.runtime.open(experiment, memory, choices)

    def describe(self) -> Mapping[str, str]:
        """Return the simulation's description, and who attacks how: a run is resumed under the same attack."""
        return dict(self.runtime.describe()) | {"attack": f"{self.attack!r} by {list(self.attackers)}"}

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Yield the simulation's arrivals, held until all are there, with what attackers forge in place of theirs."""
        self._parties = parties = Parties()
        asked: dict[int, Assignment] = {}

        def in_the_open() -> Iterator[Assignment | None]:
            for assignment in work:
                if assignment is WAIT:
                    yield WAIT
                    continue
                asked[assignment.client] = assignment
                yield assignment._replace(opening=None)

        seen = list(self.runtime.train(in_the_open(), dataclasses.replace(summation, subtotals=False)))
        for arrival in self._forged(seen, asked, summation):
            (client,) = arrival.clients
            yield _hidden(arrival, asked[client], parties)

    def ask(self, messages: Mapping[int, bytes], reply_bytes: int) -> Iterator[Arrival]:
        """Yield the replies of the clients' halves, which are here."""
        return self._parties.ask(messages)

    def _forged(self, arrivals: list[Arrival], asked: Mapping[int, Assignment], summation: Summation) -> list[Arrival]:
        """Return the arrivals, with the attackers' updates forged."""
        updates = {}
        for place, arrival in enumerate(arrivals):
            update = opened(arrival.content, summation.codec, summation.shape.delta)
            if not isinstance(update, Failure):
                updates[place] = update
        attacking = [place for place in updates if arrivals[place].clients[0] in self.attackers]
        if not attacking:
            return arrivals
        honest = [update for place, update in updates.items() if place not in attacking]
        key = next(iter(asked.values())).key.derive("aggregation").derive("attack")
        forged = self.attack.forge([updates[place] for place in attacking], honest, key)
        for place, update in zip(attacking, forged, strict=True):
            content = _coded(update, summation.codec, key.derive("codec", arrivals[place].clients[0]))
            arrivals[place] = arrivals[place]._replace(content=content)
        return arrivals


def _coded(update: ClientUpdate, codec: Codec | None, key: Key) -> ClientUpdate | CodedUpdate:
    """Return update as codec sends it."""
    if codec is None:
        return update
    return CodedUpdate(codec.encode(update.delta, key), update.extra, update.weight, update.metrics)


def _hidden(arrival: Arrival, assignment: Assignment, parties: Parties) -> Arrival:
    """Return the arrival as the client's half of a hidden sum sends it, where the assignment opens one."""
    content, opening = arrival.content, assignment.opening
    if opening is None or not isinstance(content, ClientUpdate):
        return arrival
    key = assignment.key.derive("client", assignment.client).derive("aggregation")
    reply = parties.hide(opening, assignment.client, content, key)
    memory = {} if isinstance(reply, Failure) else arrival.memory
    down = arrival.bytes_down + len(opening.message)
    return arrival._replace(content=reply, memory=memory, bytes_up=bytes_of(reply), bytes_down=down)
