"""IFCA: clients of several kinds, with a model for each kind, found while they are trained.

Ghosh, Chung, Yin, Ramchandran 2020: An Efficient Framework for Clustered Federated Learning, Algorithm 1, with model
averaging. https://arxiv.org/abs/2006.04088
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..core.bases import Aggregator
from ..core.parts.algorithms import ClusteredStrategy
from ..core.parts.clusters import cluster_of
from ..core.random import derive
from ..core.traits import Trait
from ..core.types import Broadcast, ClientUpdate, Mean, State, Total, Vector, add_metrics
from ..core.validation import require, require_count, require_real
from .server_rate import Rate, rate_at, require_rate


class Clusters(NamedTuple):
    """State of IFCA on the server."""

    rounds: int  # number of rounds done so far
    leader: int  # number of the cluster with the largest weight in the last round: its model is params
    models: np.ndarray  # the clusters' models: float32, shape (clusters, d)


@dataclass(frozen=True)
class IFCA(ClusteredStrategy):
    """Iterative federated clustering with k models: each client trains the one that fits its training examples best.

    Best is the least loss. The server makes FedAvg's step in each cluster: w_j ← w_j + η_s·Σ_{i in j} n_i·Δ_i / Σ_{i in
    j} n_i. FedAvg when k is 1, bit for bit.

    A client receives k models and sends one update. It evaluates all k on its training examples, every round: k forward
    passes more. The server keeps k·d numbers.

    train_cluster_0, … are the clusters' shares of a round's cohort. params, the run's model, is that of the cluster
    whose clients had the largest weight in the last round, and what test_… is about; test_cluster_0_…, … are about
    each. A client's validation_… is about the model that it would choose. `History.models` has all k in the end.

    The models begin as the model's own initial weights, each but the first with every number scaled at random by up to
    spread: 0.5 for 0.5 to 1.5. Which kinds of clients part, and when, depends on where the models begin: should one
    cluster take all clients, try another seed, or a larger spread.

    Parameters
    ----------
    clusters
        The number k of models.
    seed
        Draws what models begin as, around the experiment's own.
    server_lr
        η_s, a number or a schedule.
    """

    clusters: int = 2
    spread: float = 0.5
    seed: int = 0
    server_lr: Rate = 1.0

    mixes_models: ClassVar[bool] = True  # statistics are mixed too, cluster by cluster

    def __post_init__(self) -> None:
        require_count("clusters", self.clusters)
        require_real("spread", self.spread, above=0)
        require(self.spread < 1, f"expected spread={self.spread!r} < 1, for variances to stay positive")
        require_count("seed", self.seed, at_least=0)
        require_rate("server_lr", self.server_lr)

    def candidates(self, broadcast: Broadcast) -> Sequence[Vector]:
        """Return the k models, in their order."""
        leader = int(broadcast.extra[0])
        models = [*broadcast.extra[1:].reshape(self.clusters - 1, len(broadcast.params))]
        models.insert(leader, broadcast.params)
        return models

    def aggregator(self, aggregator: Aggregator) -> Aggregator:
        """Return an aggregator that applies `aggregator` to each cluster apart."""
        return PerCluster(aggregator, self.clusters)

    def init(self, params: Vector) -> State:
        """Begin with params, and other models around it."""
        draws = derive(self.seed, "ifca").generator().uniform(-1, 1, (self.clusters, len(params)))
        draws[0] = 0
        return Clusters(0, 0, (params * (1 + self.spread * draws)).astype(np.float32))

    def broadcast(self, state: State) -> Vector:
        """Return which of the models is params, and the others."""
        others = np.delete(state.models, state.leader, axis=0)
        return np.concatenate([np.array([state.leader], np.float32), others.ravel()])

    def models(self, state: State) -> Sequence[Vector]:
        """Return the k models."""
        return [*state.models]

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take one step for each cluster that had clients, along their mean delta."""
        rounds, models = state.rounds + 1, state.models.copy()
        shares = mean.extra[: self.clusters]
        for number in np.flatnonzero(shares):
            size = len(params)
            start = self.clusters + number * size
            step = mean.extra[start : start + size] / shares[number]
            models[number] = models[number] + rate_at(self.server_lr, rounds) * step
        leader = int(np.argmax(shares))
        return Clusters(rounds, leader, models), models[leader].copy()


@dataclass(frozen=True)
class PerCluster(Aggregator):
    """The aggregator `inner` for each cluster apart.

    A Total's extra is each cluster's weight, then each cluster's sum: k·(d + 1) numbers. Memory: that of inner, for
    each cluster that has clients.
    """

    inner: Aggregator
    clusters: int

    @property
    def needs(self) -> Trait:
        """Each update, to see its cluster; and what the inner aggregator needs."""
        return Trait.EACH_UPDATE | self.inner.needs

    @property
    def hides(self) -> Trait:
        """The traits that the inner aggregator hides, and the plain sum."""
        return Trait.PLAIN_SUM | self.inner.hides

    @property
    def min_clients(self) -> int:
        """Least number of updates of the inner aggregator: in the least case a round has one cluster."""
        return self.inner.min_clients

    def zero(self, size: int) -> tuple[int, dict]:
        """Return an accumulator of vectors of `size` numbers: nobody is in any cluster."""
        return size, {}

    def add(self, accumulator: tuple[int, dict], update: ClientUpdate) -> tuple[int, dict]:
        """Add one update into its cluster's sum. Errors: ConfigError for one that does not say which."""
        size, sums = accumulator
        number = cluster_of(update.metrics, self.clusters)
        sums[number] = self.inner.add(sums[number] if number in sums else self.inner.zero(size), update)
        return accumulator

    def merge(self, one: tuple[int, dict], other: tuple[int, dict]) -> tuple[int, dict]:
        """Merge cluster by cluster."""
        size, sums = one
        for number, own in other[1].items():
            sums[number] = self.inner.merge(sums[number], own) if number in sums else own
        return size, sums

    def total(self, accumulator: tuple[int, dict]) -> Total:
        """Return the clusters' totals in one; its delta is their sum."""
        size, sums = accumulator
        totals = {number: self.inner.total(own) for number, own in sorted(sums.items())}
        weights = np.zeros(self.clusters, np.float32)
        deltas = np.zeros((self.clusters, size), np.float32)
        metrics: dict = {}
        for number, total in totals.items():
            weights[number], deltas[number] = total.weight, total.delta
            metrics = add_metrics(metrics, total.metrics)
        return Total(
            deltas.sum(0),
            np.concatenate([weights, deltas.ravel()]),
            sum(total.weight for total in totals.values()),
            sum(total.clients for total in totals.values()),
            metrics,
        )
