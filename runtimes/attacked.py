"""A runtime in which some clients attack: for testing folds against what their papers promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..core.errors import ConfigError, IncompatibleError
from ..core.examples import Examples
from ..core.experiment import Experiment
from ..core.folds import InTheOpen, WeightedSum
from ..core.protocols import AggregationSession, Memory, Runtime
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.types import Broadcast, ClientMetrics, ClientUpdate, Metrics, RoundResult, Shape, Total, Vector
from ..core.validation import require


class Attack(Protocol):
    """What attackers send in place of their updates; see `strategies.attacks`."""

    def forge(self, own: Sequence[ClientUpdate], honest: Sequence[ClientUpdate], key: Key) -> list[ClientUpdate]: ...


class Attacked:
    """A simulation in which `attackers` send what `attack` forges, each time they are sampled.

    simulation: a runtime on this machine. The attackers train like the others, and forge what leaves them, after the
    experiment's transforms: what a client is asked to do, clipping say, an attacker need not. They collude, and know
    what the honest clients of the cohort send. With no attackers in a cohort its round has the bits of `simulation`.
    Rounds are synchronous. Memory: n·d for a cohort of n. What poisons examples is in `data.attacks`, not here.
    Errors: ConfigError for a runtime of real devices and, when opened, for attackers that the experiment does not have;
    IncompatibleError for an experiment with a part that excludes aggregations, such as a codec.
    """

    is_live = False

    def __init__(self, simulation: Runtime, attack: Attack, attackers: Sequence[int]):
        require(not simulation.is_live, f"expected a simulation to attack, got {simulation!r} of real devices")
        require(hasattr(attack, "forge"), f"expected attack={attack!r} to have forge()")
        self.simulation, self.attack, self.attackers = simulation, attack, tuple(sorted(set(attackers)))
        self._hides_updates = False

    def __repr__(self) -> str:
        return f"Attacked({self.simulation!r}, {self.attack!r}, attackers={list(self.attackers)})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> ModelSpec:
        """Bind the simulation to experiment, with the attackers between clients and fold."""
        count = len(experiment.population)
        strangers = [client for client in self.attackers if not 0 <= client < count]
        if strangers:
            raise ConfigError(f"expected attackers among {count} clients, got {strangers[:5]}")
        between = Intercepted(experiment, self.attack, self.attackers)
        self._hides_updates = experiment.aggregation is not None
        # The plan was checked against the experiment as it is, and its transform is among the transforms.
        try:
            attacked = dataclasses.replace(experiment, fold=WeightedSum(), aggregation=between, plan=None)
        except IncompatibleError as error:
            raise IncompatibleError(
                f"attackers stand where an aggregation would, which this excludes: {error}"
            ) from error
        return self.simulation.open(attacked, memory, choices)

    def describe(self) -> Mapping[str, str]:
        """The simulation's, and who attacks how: a run is resumed under the same attack."""
        described = dict(self.simulation.describe()) | {"attack": f"{self.attack!r} by {list(self.attackers)}"}
        return {name: value for name, value in described.items() if name != "aggregation" or self._hides_updates}

    def initial_params(self) -> Vector:
        """The simulation's."""
        return self.simulation.initial_params()

    def client_ids(self) -> Sequence[int]:
        """The simulation's."""
        return self.simulation.client_ids()

    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """A round with what the attackers send in it."""
        return self.simulation.collect(broadcast, cohort, key)

    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """The simulation's."""
        return self.simulation.evaluate(params, examples)

    def evaluate_clients(self, params: Vector, clients: Sequence[int]) -> ClientMetrics:
        """The simulation's."""
        return self.simulation.evaluate_clients(params, clients)

    def close(self) -> None:
        """Close the simulation."""
        self.simulation.close()


class Intercepted:
    """An Aggregation that forges the attackers' updates, then hands all to the experiment's own fold or aggregation."""

    def __init__(self, experiment: Experiment, attack: Attack, attackers: Sequence[int]):
        self.fold, self.aggregation = experiment.fold, experiment.aggregation
        self.attack, self.attackers = attack, frozenset(attackers)

    def __repr__(self) -> str:
        return f"Intercepted({self.attack!r}, attackers={sorted(self.attackers)})"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of the experiment's aggregation."""
        return () if self.aggregation is None else self.aggregation.metrics

    def session(self, shape: Shape, cohort: Sequence[int], round: int, key: Key, is_real: bool) -> AggregationSession:
        """The experiment's own session, behind the attackers."""
        session: AggregationSession = (
            InTheOpen(self.fold, shape.delta)
            if self.aggregation is None
            else self.aggregation.session(shape, cohort, round, key, is_real)
        )
        return _Session(session, self.attack, self.attackers, key.derive("attack"))


class _Session:
    """Holds a round's updates until all are there, since colluding attackers answer to what the others send."""

    def __init__(self, session: AggregationSession, attack: Attack, attackers: frozenset[int], key: Key):
        self._session, self._attack, self._attackers, self._key = session, attack, attackers, key
        self.bytes_up = session.bytes_up
        self._updates: dict[int, ClientUpdate] = {}
        self._keys: dict[int, Key] = {}

    def contribute(self, client: int, update: ClientUpdate, key: Key) -> tuple[ClientUpdate, Key]:
        """The update as it would leave an honest client."""
        return update, key

    def add(self, client: int, contribution: tuple[ClientUpdate, Key]) -> None:
        """Keep it."""
        self._updates[client], self._keys[client] = contribution

    def total(self) -> Total:
        """Forge, then sum in cohort order."""
        attackers = [client for client in self._updates if client in self._attackers]
        if attackers:
            own = [self._updates[client] for client in attackers]
            honest = [update for client, update in self._updates.items() if client not in self._attackers]
            self._updates |= zip(attackers, self._attack.forge(own, honest, self._key), strict=True)
        for client, update in self._updates.items():
            self._session.add(client, self._session.contribute(client, update, self._keys[client]))
        total = self._session.total()
        self.bytes_up = self._session.bytes_up
        return total
