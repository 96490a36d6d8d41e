"""Clusters: several models at once, of which each client trains the one that fits its examples best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import ConfigError, IncompatibleError
from .protocols import Fold, Strategy
from .types import Broadcast, Metrics, State, Vector, Weighted

if TYPE_CHECKING:
    from .experiment import Experiment

CLUSTER = "cluster_"  # with a cluster's number: the metric that says whether a client is in it, 1 or 0


class ClusteredStrategy(Strategy, Protocol):
    """A strategy with a model for each cluster of clients, both halves. params are one of its models."""

    def models(self, state: State) -> Sequence[Vector]:
        """One for each cluster: float32, shape (d,)."""

    def candidates(self, broadcast: Broadcast) -> Sequence[Vector]:
        """The same, on a client: it trains the first of those whose loss on its training examples is least, sends its
        way from there, and reports CLUSTER metrics."""

    def fold(self, fold: Fold) -> Fold:
        """What sums each cluster's updates apart, as `fold` sums all."""


def is_clustered(strategy: Strategy) -> bool:
    """Whether strategy is a ClusteredStrategy."""
    return hasattr(strategy, "candidates")


def first_best(losses: Sequence[float]) -> int:
    """The number of the first smallest loss; NaN counts as infinite."""
    return int(np.argmin([math.inf if math.isnan(loss) else loss for loss in losses]))


def membership(chosen: int, clusters: int) -> dict[str, Weighted]:
    """The metrics of a client in cluster `chosen`. Their means are the clusters' shares of the cohort."""
    return {f"{CLUSTER}{number}": Weighted(float(number == chosen), 1.0) for number in range(clusters)}


def cluster_of(metrics: Metrics, clusters: int) -> int:
    """The inverse of `membership`. Errors: ConfigError for metrics of a client that is not in exactly one."""
    members = [
        metrics.get(f"{CLUSTER}{number}", Weighted(0.0, 1.0)) == Weighted(1.0, 1.0) for number in range(clusters)
    ]
    if sum(members) != 1:
        raise ConfigError(f"expected an update from one of {clusters} clusters, got one from {sum(members)} of them")
    return members.index(True)


def fold_of(experiment: Experiment) -> Fold:
    """How experiment's updates become a Total: its fold, under a clustered strategy for each cluster apart."""
    strategy: Any = experiment.strategy
    return strategy.fold(experiment.fold) if is_clustered(strategy) else experiment.fold


def check_clusters(experiment: Experiment) -> None:
    """Errors: IncompatibleError for what works on one sum of all updates, or on clients that could not choose."""
    strategy = experiment.strategy
    if not is_clustered(strategy):
        return
    reasons: Mapping[str, str] = {
        "aggregation": "would hide which cluster an update is from",
        "plan": "does not pay for clients that say which cluster they are in",
        "rule": "is for clients that receive one model",
    }
    for name, reason in reasons.items():
        if (part := getattr(experiment, name)) is not None:
            raise IncompatibleError(f"{strategy!r} sums each cluster apart; {name}={part!r} {reason}")
    if len(getattr(experiment.transforms, "transforms", (experiment.transforms,))):
        raise IncompatibleError(
            f"{strategy!r} sums each cluster apart; transforms={experiment.transforms!r} are undone on one sum of all. "
            "To bound updates, use fold=NormBound(…)"
        )
    if experiment.local.per_example is not None:
        raise IncompatibleError(
            f"{experiment.local.per_example!r} does not cover which cluster a client of {strategy!r} says it is in"
        )
    if hasattr(experiment.validation, "members"):
        raise IncompatibleError(
            f"clients of {strategy!r} choose by their training examples; those of validation hold none: hold out a "
            "part of each client's, with split_clients"
        )
