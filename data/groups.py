"""Partitions along groups: a natural key, or clusters found in the features.

One rule takes groups to clients. As many clients as groups, or clients=None: one each. Fewer clients: groups stay
whole, the largest first to the client that has least. More clients: each group is cut at random among a number of
clients in proportion to its size, one at least.
"""

from __future__ import annotations

import heapq
import importlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import brief
from ..core.protocols import Source
from ..core.reading.coercion import listed_rows, rows_without
from ..core.validation import lacking, require, require_count, require_real
from .allocation import apportion, require_enough
from .partitioners import finite_features_of
from .values import hash_fields, same_fields


@dataclass(frozen=True, eq=False, repr=False)
class ByKey:
    """A natural federation: one client per speaker, hospital, device; numbered in the sorted order of the keys.

    Parameters
    ----------
    keys
        One per example, shape (examples,); None: the source's own `groups()`.
    missing
        What becomes of examples without a key (None, NaN, empty text): "refuse" them; or make them one "client", the
        last.

    Raises
    ------
    ConfigError
        When the source has no groups, keys are not one per example, or some are missing.
    """

    keys: np.ndarray | None = None
    missing: Literal["refuse", "client"] = "refuse"
    finds_clients: ClassVar[bool] = True

    __eq__ = same_fields
    __hash__ = hash_fields

    def __post_init__(self) -> None:
        if self.keys is not None:
            object.__setattr__(self, "keys", _plain(np.asarray(self.keys)))
        require(self.missing in ("refuse", "client"), f"expected missing={self.missing!r} in refuse, client")

    def __repr__(self) -> str:
        parts = [] if self.keys is None else [f"keys={brief(self.keys)}"]
        parts += [] if self.missing == "refuse" else [f"missing={self.missing!r}"]
        return f"ByKey({', '.join(parts)})"

    def partition(self, source: Source, clients: int | None, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        keys = self.keys
        if keys is None:
            require(not lacking(source, ("groups",)), f"{source!r} has no groups of its own: give them, ByKey(keys=…)")
            keys = _plain(np.asarray(source.groups()))  # type: ignore[attr-defined]
        count = source.load().count
        require(keys.shape == (count,), f"expected keys of shape ({count},), one per example, got {keys.shape}")
        missing = rows_without(keys)
        if len(missing) and self.missing == "refuse":
            raise ConfigError(
                f"{len(missing)} examples have no key, in {listed_rows(missing)}: leave them out, or make them one "
                "client, ByKey(missing='client')"
            )
        groups = np.unique(keys, return_inverse=True)[1]
        if len(missing):
            groups[missing] = groups.max() + 1
            groups = np.unique(groups, return_inverse=True)[1]
        return _to_clients(groups, clients, source, generator)


def _plain(keys: np.ndarray) -> np.ndarray:
    """Return keys that sort, hash and describe alike in every process; those missing among objects are empty text."""
    if keys.dtype.kind != "O":
        return keys
    words = np.array(["" if key is None else str(key) for key in keys.reshape(-1)], str)
    words[rows_without(keys.reshape(-1))] = ""
    return words.reshape(keys.shape)


@dataclass(frozen=True)
class KMeans:
    """Feature skew by clusters of x (scikit-learn's MiniBatchKMeans): clients of one cluster see similar inputs.

    Parameters
    ----------
    clusters
        Number of clusters; None: as many as clients. Clusters that end up empty are dropped.
    """

    clusters: int | None = None
    finds_clients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.clusters is not None:
            require_count("clusters", self.clusters)

    def partition(self, source: Source, clients: int | None, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        clusters = self.clusters if self.clusters is not None else clients
        if clusters is None:
            raise ConfigError("KMeans needs a number: give the population clients=…, or KMeans(clusters=…)")
        count = source.load().count
        require(clusters <= count, f"expected clusters={clusters} ≤ {count} examples; lower it")
        fitting = importlib.import_module("sklearn.cluster").MiniBatchKMeans(
            clusters, n_init=1, init_size=max(3 * clusters, 3072), random_state=int(generator.integers(2**31))
        )
        # One thread: threads would add up the centres in any order, and equal seeds would not give equal bits.
        with importlib.import_module("threadpoolctl").threadpool_limits(1):
            groups = fitting.fit_predict(finite_features_of(source.load()))
        return _to_clients(np.unique(groups, return_inverse=True)[1], clients, source, generator)


@dataclass(frozen=True)
class Dbscan:
    """Feature skew by density (scikit-learn's DBSCAN); noise goes to the cluster of the nearest core example.

    Errors: ConfigError when all is noise.
    Ester, Kriegel, Sander, Xu 1996: A Density-Based Algorithm for Discovering Clusters in Large Spatial Databases.

    Parameters
    ----------
    eps
        The largest Euclidean distance of neighbours, in the units of x.
    min_samples
        Neighbours, itself included, that make an example a core of its cluster. Distances between all pairs: for
        thousands of examples, not for millions.
    """

    eps: float = 0.5
    min_samples: int = 5
    finds_clients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("eps", self.eps, above=0)
        require_count("min_samples", self.min_samples)

    def partition(self, source: Source, clients: int | None, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        features = finite_features_of(source.load())
        fitted = importlib.import_module("sklearn.cluster").DBSCAN(eps=self.eps, min_samples=self.min_samples)
        groups = fitted.fit_predict(features)
        cores, noise = fitted.core_sample_indices_, np.flatnonzero(groups == -1)
        if not len(cores):
            raise ConfigError(f"{self} finds no cluster in {len(features)} examples: raise eps or lower min_samples")
        if len(noise):
            nearest = importlib.import_module("sklearn.metrics").pairwise_distances_argmin
            groups[noise] = groups[cores[nearest(features[noise], features[cores])]]
        return _to_clients(groups, clients, source, generator)


def _to_clients(groups: np.ndarray, clients: int | None, source: Source, generator: np.random.Generator) -> np.ndarray:
    """Return owners from groups (0 … groups − 1, none empty), by the rule at the top of this file."""
    sizes = np.bincount(groups)
    if clients is None or clients == len(sizes):
        return groups
    require_enough(source, clients)
    if clients < len(sizes):
        return _packed(sizes, clients)[groups]
    return _cut(groups, _clients_per_group(sizes, clients), generator)


def _packed(sizes: np.ndarray, clients: int) -> np.ndarray:
    """Return the client of each group: the largest group first, to the client that has least."""
    client_of = np.empty(len(sizes), np.int64)
    loads = [(0, client) for client in range(clients)]
    for group in np.argsort(-sizes, kind="stable"):
        load, client = heapq.heappop(loads)
        client_of[group] = client
        heapq.heappush(loads, (load + int(sizes[group]), client))
    return client_of


def _clients_per_group(sizes: np.ndarray, clients: int) -> np.ndarray:
    """Return how many clients share each group: in proportion to its size, from one to as many as its examples."""
    shares = np.minimum(apportion(sizes, clients), sizes)
    while (missing := clients - shares.sum()) > 0:
        room = sizes - shares
        shares += np.minimum(apportion(room, missing, at_least=0), room)
    return shares


def _cut(groups: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return owners such that shares[g] clients, numbered after those of the groups before, divide group g evenly."""
    order = generator.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    sizes = np.bincount(groups)
    place = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its group
    first = np.cumsum(shares) - shares
    owners = np.empty(len(groups), np.int64)
    owners[order] = np.repeat(first, sizes) + place % np.repeat(shares, sizes)
    return owners
