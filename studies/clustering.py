"""One-shot clustering: clients grouped once, by K-means on the updates they send from the same params.

Ghosh, Hong, Yin, Ramchandran 2019: Robust Federated Learning in a Heterogeneous Environment,
https://arxiv.org/abs/1906.06629; after rounds of FedAvg, as Briggs, Fan, Andras 2020: Federated learning with
hierarchical clustering of local updates to improve training on non-IID data, https://arxiv.org/abs/2004.11791, do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.aggregators import WeightedSum
from ..core.errors import ClientError, IncompatibleError
from ..core.experiment import Experiment
from ..core.frozen import NO_BASE, Base
from ..core.parts.algorithms import AsynchronousStrategy, SplitStrategy
from ..core.parts.chain import Chain
from ..core.random import derive
from ..core.runtime import FORGETFUL, Assignment, Opened
from ..core.spec import ModelSpec
from ..core.types import Broadcast, ClientUpdate, Failure, Vector
from ..core.validation import callable_name, fields_of, require, require_count
from ..data import Selected
from ..runtimes.simulation import Simulation


@dataclass(frozen=True, eq=False)
class Clustering:
    """Groups of clients: which client is in which cluster."""

    labels: np.ndarray  # cluster of each client, 0 for client 0's, then as they appear: int64, shape (clients,)
    params: Vector  # params from which the clients' updates were taken
    spec: ModelSpec
    base: Base = NO_BASE  # values of the model's frozen variables

    @property
    def clusters(self) -> int:
        """Number of clusters that have clients."""
        return int(self.labels.max()) + 1

    def members(self, cluster: int) -> np.ndarray:
        """Return the numbers of a cluster's clients, ascending."""
        return np.flatnonzero(self.labels == cluster)

    def experiments(self, experiment: Experiment) -> dict[str, Experiment]:
        """Return experiment for each cluster's clients alone, by name: each goes on from the params.

        Sampled are as many clients as before, or all where there are fewer.
        """
        found = {}
        for cluster in range(self.clusters):
            clients = self.members(cluster)
            parts: dict[str, Any] = {"population": Selected(experiment.population, clients)}
            if experiment.validation is not None:
                parts["validation"] = Selected(experiment.validation, clients)
            size = experiment.resolved.sampler.cohort_size or 0
            if isinstance(size, int) and size > len(clients):
                parts["sampler"] = dataclasses.replace(experiment.sampler, size=len(clients))  # type: ignore[type-var]
            begun = Begun(experiment.model, self.params, self.spec, self.base)
            name = f"{experiment.name}-{cluster}"
            found[f"cluster_{cluster}"] = dataclasses.replace(experiment, name=name, model=begun, **parts)
        return found


@dataclass(frozen=True, eq=False, repr=False)
class Begun:
    """`model` with params, and base where something is frozen, in place of what it would begin with.

    Variables that stay at home are as they are drawn.
    """

    model: Callable[[], Any]
    params: Vector
    spec: ModelSpec
    base: Base

    def __repr__(self) -> str:
        return f"Begun({callable_name(self.model)})"

    def __call__(self) -> Any:
        """Build the model. Errors: ConfigError for one of other variables, or with none until it sees an example."""
        from ..clients.keras.building import make_model

        model = make_model(self.model)
        return self.spec.load_into(model, self.params, self.base)


def cluster_clients(
    experiment: Experiment,
    params: Vector,
    clusters: int,
    simulation: Simulation | None = None,
    by_direction: bool = True,
    seed: int = 0,
) -> Clustering:
    """Train every client for one round from params, and group the updates by K-means.

    It takes memory for d numbers of every client.

    Parameters
    ----------
    experiment
        What clients train, and how.
    params
        Vector that they start from, such as that of a run of experiment: then updates differ by what clients hold.
    clusters
        Number of groups.
    simulation
        Runtime that trains them; None: a new Simulation.
    by_direction
        Whether to compare where updates point alone; False: their lengths too.
    seed
        Seed of K-means.

    Raises
    ------
    IncompatibleError
        For an experiment that hides single updates.
    ConfigError
        For more clusters than clients.
    ClientError
        For a client whose update is not finite.
    """
    clients = len(experiment.population)
    require_count("clusters", clusters)
    require(clusters <= clients, f"expected clusters={clusters} ≤ {clients} clients")
    for name in ("plan", "secure_aggregation"):
        if (part := fields_of(experiment, name)[name]) is not None:
            raise IncompatibleError(f"clustering looks at each client's update, which {name}={part!r} hides")
    if experiment.local.per_example is not None or isinstance(
        experiment.resolved.strategy, (AsynchronousStrategy, SplitStrategy)
    ):
        raise IncompatibleError("clustering takes whole updates of plain rounds; use FedAvg and no per_example")
    updates, opened = _updates(experiment, params, simulation or Simulation())
    if by_direction:
        updates /= np.maximum(np.linalg.norm(updates, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=10, random_state=seed).fit(updates).labels_
    _, first, renumbered = np.unique(found, return_index=True, return_inverse=True)
    return Clustering(np.argsort(np.argsort(first))[renumbered], params, opened.spec, opened.base)


def _updates(experiment: Experiment, params: Vector, simulation: Simulation) -> tuple[np.ndarray, Opened]:
    """Collect every client's delta: float32, shape (clients, d); and what the simulation says of the model."""
    plain = dataclasses.replace(
        experiment, transforms=Chain(), codec=None, aggregator=WeightedSum(), devices=None, deadline=None
    )
    opened = simulation.open(plain, FORGETFUL)
    summation = dataclasses.replace(opened.summation, subtotals=False)
    strategy, rate = plain.resolved.strategy, plain.local.learning_rate_at(1, ())
    broadcast = Broadcast(1, params, strategy.broadcast(strategy.init(params)), plain.transforms.init(None), rate)  # type: ignore[arg-type]
    key, rows = derive(plain.seed, "clustering"), []
    work = (Assignment(broadcast, client, key) for client in range(len(plain.population)))
    for arrival in simulation.train(work, summation):
        if isinstance(arrival.content, Failure):
            raise ClientError(f"{arrival.content.detail}; it cannot be grouped", client=arrival.content.client)
        assert isinstance(arrival.content, ClientUpdate)
        rows.append(arrival.content.delta)
    return np.stack(rows), opened
