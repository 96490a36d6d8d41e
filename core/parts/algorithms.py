"""An algorithm's two halves: strategies on the server, rules on clients."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..bases import Aggregator, Part
from ..random import Key
from ..traits import Trait
from ..types import NOTHING, Broadcast, ClientUpdate, Mean, OwnModel, Phase, State, Total, Vector


class Strategy(Part):
    """The server's half of an algorithm: a frozen dataclass; state in, state out.

    What `update` makes of statistics (BatchNorm) is put aside: they follow the clients' mean, see server/statistics.
    """

    @property
    def mixes_models(self) -> bool:
        """Say whether the model is a mean of models, or there are several, so that statistics are mixed with them."""
        return False

    @property
    def rule(self) -> ClientRule | None:
        """The client's half, where the algorithm has one: by default the strategy itself, if it is a rule."""
        return self if isinstance(self, ClientRule) else None

    @property
    def buffer(self) -> int | None:
        """Number of updates in a round of an asynchronous strategy; None: however many arrive, or a cohort's."""
        return None

    @abc.abstractmethod
    def init(self, params: Vector) -> State:
        """Return the state before the first round."""

    def broadcast(self, state: State) -> Vector:
        """Return the vector that clients receive besides params; empty by default."""
        return NOTHING

    @abc.abstractmethod
    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Return the state and the params after a round."""


class AsynchronousStrategy(Strategy):
    """A strategy whose server does not wait for all clients that it has asked.

    A round is `buffer` updates, or what arrives within `round_seconds`, from whenever they started.
    """

    @property
    def hides(self) -> Trait:
        """Cohorts; for a strategy that mixes models, also updates as they were trained."""
        mixed = Trait.DELTAS | Trait.WHOLE_UPDATE if self.mixes_models else Trait.NONE
        return Trait.COHORTS | Trait.SAME_ROUND | mixed

    @property
    def round_seconds(self) -> float | None:
        """Length of a round on the virtual clock, with clients that begin as it begins; None: when there is room."""
        return None

    @property
    def max_staleness(self) -> int | None:
        """Largest staleness of an update that counts, older ones are thrown away; None for no bound."""
        return None

    @abc.abstractmethod
    def receive(self, update: ClientUpdate, staleness: int, base: Vector, params: Vector) -> ClientUpdate:
        """Return what an update counts as.

        staleness: rounds since the client began, 0 for none. base: params that it began from.
        """


class SplitStrategy(Strategy):
    """A strategy whose clients hold a model's first layers, and train with a server that holds the others."""

    if TYPE_CHECKING:  # a field of the leaves, in whose way a property would be

        @property
        def cut(self) -> str:
            """Name of the last layer that lies with clients."""

    @property
    def hides(self) -> Trait:
        """Whole models; and clients send activations and labels in every step."""
        return Trait.WHOLE_MODEL | Trait.ONE_EXCHANGE | Trait.ONLY_UPDATES

    @property
    @abc.abstractmethod
    def in_turn(self) -> bool:
        """Return whether the server has one half for all, which clients train in turn, each from `handed_on`."""

    @abc.abstractmethod
    def turns(self, cohort: Sequence[int], key: Key) -> list[int]:
        """Return the cohort in the order in which it trains."""

    @abc.abstractmethod
    def handed_on(self, params: Vector, moved: Vector, on_client: np.ndarray) -> Vector:
        """Return the params that the next client in turn begins with.

        params: params of the broadcast. moved: Σ delta of the clients before it. on_client: which numbers lie with
        clients: bool, shape (d,).
        """

    @abc.abstractmethod
    def closed(self, total: Total, moved: Vector, on_client: np.ndarray) -> Total:
        """Return the round's total.

        total: the total as the experiment's aggregator has it. moved: Σ delta of all updates in it. on_client: which
        numbers lie with clients: bool, shape (d,).
        """


class ClusteredStrategy(Strategy):
    """A strategy with a model for each cluster of clients, both halves. params are one of its models."""

    clusters: int  # number of clusters

    @property
    def needs(self) -> Trait:
        """Updates that show which cluster they are from; clients that choose by their own training examples."""
        return Trait.EACH_UPDATE | Trait.TRAINING_EXAMPLES

    @property
    def hides(self) -> Trait:
        """One model and one sum for all; and clients say which cluster they are in."""
        return Trait.ONE_SUM | Trait.ONE_MODEL | Trait.ONLY_UPDATES | Trait.WHOLE_UPDATE

    @abc.abstractmethod
    def models(self, state: State) -> Sequence[Vector]:
        """Return one model for each cluster: float32, shape (d,)."""

    @abc.abstractmethod
    def candidates(self, broadcast: Broadcast) -> Sequence[Vector]:
        """Return the models on a client, one for each cluster.

        The client trains the first of those whose loss on its training examples is least, sends its way from there, and
        reports CLUSTER metrics.
        """

    @abc.abstractmethod
    def aggregator(self, aggregator: Aggregator) -> Aggregator:
        """Return the aggregator that sums each cluster's updates apart, as `aggregator` sums all."""


class ClientRule(Part):
    """The client's half of an algorithm, as data that the compiled loop can run without tracing user code.

    In each step: gradient ← gradient + proximal·(w − w_global) + offset. Whatever `finish` makes of them, statistics
    (BatchNorm) are sent as they were trained.
    """

    @property
    def proximal(self) -> float:
        """Strength μ ≥ 0 of the pull towards the global model; 0 for none."""
        return 0.0

    @property
    def remembers(self) -> bool:
        """Return whether clients keep a vector between rounds."""
        return False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of a client's round, in order."""
        return (Phase(),)

    @property
    def own(self) -> OwnModel | None:
        """A second model, which is then what the client remembers; None for none."""
        return None

    @property
    def hides(self) -> Trait:
        """One training of all variables, where there are several phases or models."""
        several = Trait.NONE if all(phase.trains == "all" for phase in self.phases) else Trait.ONE_TRAINING
        return several if self.own is None else several | Trait.ONE_TRAINING | Trait.NO_OWN_MODEL


class Correction(ClientRule):
    """A ClientRule that also adds a vector to every gradient, and makes of a delta what is sent."""

    @property
    def sgd_momentum(self) -> float | None:
        """The momentum of the clients' plain SGD that the rule reckons with; None: any optimizer will do.

        Any other optimizer is refused.
        """
        return None

    def extra_size(self, size: int) -> int:
        """Return the length of what a client sends besides delta. size: d."""
        return 0

    def offset(self, broadcast: Broadcast, memory: Vector | None) -> Vector | None:
        """Return the vector added to every gradient: float32, shape (d,); None for nothing. memory: None at first."""
        return None

    @abc.abstractmethod
    def finish(
        self, broadcast: Broadcast, memory: Vector | None, delta: Vector, steps: int, learning_rate: float
    ) -> tuple[Vector, Vector, Vector | None]:
        """Return delta and extra as they are sent, and what the client keeps.

        steps: optimizer steps that the client took. learning_rate: its optimizer's in this round.
        """
