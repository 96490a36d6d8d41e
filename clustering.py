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

from .core.chain import Chain
from .core.errors import ClientError, IncompatibleError
from .core.experiment import Experiment, is_asynchronous
from .core.folds import WeightedSum
from .core.random import derive
from .core.spec import ModelSpec
from .core.split import is_split
from .core.types import Assignment, Broadcast, Failure, Vector
from .core.validation import require, require_count
from .data import Selected
from .runtimes.simulation import Simulation


@dataclass(frozen=True, eq=False)
class Clustering:
    """Which client is of which kind."""

    labels: np.ndarray  # int64, shape (clients,): 0 for the cluster of client 0, then as they appear
    params: Vector  # from which the clients' updates were taken

    @property
    def clusters(self) -> int:
        """How many have clients."""
        return int(self.labels.max()) + 1

    def members(self, cluster: int) -> np.ndarray:
        """The numbers of its clients, ascending."""
        return np.flatnonzero(self.labels == cluster)

    def experiments(self, experiment: Experiment) -> dict[str, Experiment]:
        """experiment for each cluster's clients alone, by name: each goes on from the params. Sampled are as many
        clients as before, or all where there are fewer."""
        found = {}
        for cluster in range(self.clusters):
            clients = self.members(cluster)
            parts: dict[str, Any] = {"population": Selected(experiment.population, clients)}
            if experiment.validation is not None:
                parts["validation"] = Selected(experiment.validation, clients)
            size = getattr(experiment.sampler, "size", 0)
            if isinstance(size, int) and size > len(clients):
                parts["sampler"] = dataclasses.replace(experiment.sampler, size=len(clients))  # type: ignore[type-var]
            begun = Begun(experiment.model, self.params, experiment.personal)
            name = f"{experiment.name}-{cluster}"
            found[f"cluster_{cluster}"] = dataclasses.replace(experiment, name=name, model=begun, **parts)
        return found


@dataclass(frozen=True, eq=False, repr=False)
class Begun:
    """`model`, with params in place of what it would begin with; variables that stay at home as they are drawn."""

    model: Callable[[], Any]
    params: Vector
    personal: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Begun({getattr(self.model, '__qualname__', self.model)})"

    def __call__(self) -> Any:
        """The model. Errors: ConfigError for one of other variables, or with none until it sees an example."""
        model = self.model()
        return ModelSpec.of(model, self.personal).load_into(model, self.params)


def cluster_clients(
    experiment: Experiment,
    params: Vector,
    clusters: int,
    simulation: Simulation | None = None,
    by_direction: bool = True,
    seed: int = 0,
) -> Clustering:
    """Train every client for one round from params, and group the updates by K-means.

    params: such as those of a run of experiment, whose updates then differ by what clients hold. by_direction: compare
    where updates point; False: their lengths too. Memory: d numbers for every client.
    Errors: IncompatibleError for an experiment that hides single updates; ConfigError for more clusters than clients;
    ClientError for a client whose update is not finite.
    """
    clients = len(experiment.population)
    require_count("clusters", clusters)
    require(clusters <= clients, f"expected clusters={clusters} ≤ {clients} clients")
    for name in ("plan", "aggregation"):
        if (part := getattr(experiment, name)) is not None:
            raise IncompatibleError(f"clustering looks at each client's update, which {name}={part!r} hides")
    if (
        experiment.local.per_example is not None
        or is_asynchronous(experiment.strategy)
        or is_split(experiment.strategy)
    ):
        raise IncompatibleError("clustering takes whole updates of plain rounds; use FedAvg and no per_example")
    updates = _updates(experiment, params, simulation or Simulation())
    if by_direction:
        updates /= np.maximum(np.linalg.norm(updates, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=10, random_state=seed).fit(updates).labels_
    _, first, renumbered = np.unique(found, return_index=True, return_inverse=True)
    return Clustering(np.argsort(np.argsort(first))[renumbered], params)


def _updates(experiment: Experiment, params: Vector, simulation: Simulation) -> np.ndarray:
    """Every client's delta: float32, shape (clients, d)."""
    plain = dataclasses.replace(
        experiment, transforms=Chain(), codec=None, fold=WeightedSum(), devices=None, deadline=None
    )
    simulation.open(plain, _Nothing())
    strategy, rate = plain.strategy, plain.local.learning_rate_at(1, ())
    broadcast = Broadcast(1, params, strategy.broadcast(strategy.init(params)), plain.transforms.init(None), rate)  # type: ignore[arg-type]
    key, rows = derive(plain.seed, "clustering"), []
    for client, update in enumerate(
        simulation.train_each([Assignment(broadcast, client, key) for client in range(len(plain.population))])
    ):
        if isinstance(update, Failure):
            raise ClientError(f"{update.detail}; it cannot be grouped", client=client)
        rows.append(update.delta)
    return np.stack(rows)


class _Nothing:
    """Clients' memory for one round."""

    def read(self, client: int) -> None:
        """Nothing."""

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Forgotten."""
