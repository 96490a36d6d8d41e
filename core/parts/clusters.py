"""Clusters: several models at once, of which each client trains the one that fits its examples best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError
from ..types import Metrics, Weighted

CLUSTER = "cluster_"  # prefix of a cluster's number in the metric that says whether a client is in it, 1 or 0


def first_best(losses: Sequence[float]) -> int:
    """Return the number of the first smallest loss; NaN counts as infinite."""
    return int(np.argmin([math.inf if math.isnan(loss) else loss for loss in losses]))


def membership(chosen: int, clusters: int) -> dict[str, Weighted]:
    """Return the metrics of a client in cluster `chosen`. Their means are the clusters' shares of the cohort."""
    return {f"{CLUSTER}{number}": Weighted(float(number == chosen), 1.0) for number in range(clusters)}


def cluster_of(metrics: Metrics, clusters: int) -> int:
    """Invert `membership`. Errors: ConfigError for metrics of a client that is not in exactly one cluster."""
    members = [
        metrics.get(f"{CLUSTER}{number}", Weighted(0.0, 1.0)) == Weighted(1.0, 1.0) for number in range(clusters)
    ]
    if sum(members) != 1:
        raise ConfigError(f"expected an update from one of {clusters} clusters, got one from {sum(members)} of them")
    return members.index(True)
