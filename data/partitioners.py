"""Partitioners, which decide who owns which example: by chance, by label, by quantity, by feature.

A partitioner answers with one array, the owner of each example, so its parts are disjoint and complete by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples, leaves
from ..core.protocols import Source
from ..core.reading.coercion import listed_rows
from ..core.validation import require, require_count, require_real
from .allocation import apportion, grouped, label_codes, require_enough


class Partitioner(Protocol):
    """A rule that gives every example an owner: a frozen dataclass."""

    finds_clients: ClassVar[bool]  # whether the rule can find the number of clients itself, for clients=None

    def partition(self, source: Source, clients: Any, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example: integers in [0, clients), shape (examples,); every client owns one or more.

        clients: an integer; None too where `finds_clients`.
        A function of the arguments alone: equal generators give equal owners. Errors: ConfigError when the rule
        cannot give every client an example.
        """


@dataclass(frozen=True)
class Iid:
    """Owners drawn uniformly at random; sizes differ by at most one."""

    finds_clients: ClassVar[bool] = False

    def partition(self, source: Source, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        return _dealt(_equal_sizes(require_enough(source, clients), clients), generator)


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: client k's labels follow a mixture q_k ~ Dir(α·p), where p is the data set's; sizes are equal.

    When a label runs out, the mixtures of the clients still to be served are renormalised over the rest, as in the
    paper; clients are served in random order. Needs one label per example.
    Hsu, Qi, Brown 2019: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
    https://arxiv.org/abs/1909.06335

    Parameters
    ----------
    alpha
        Towards 0 a client has one label, towards infinity the partition is IID. The concentration of a single label is
        α·p, so α/10 for ten balanced labels; papers that write Dir(α) per label mean ten times this alpha.
    """

    alpha: float
    finds_clients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_real("alpha", self.alpha, at_least=1e-9, at_most=1e9)  # beyond, gamma variates under- or overflow

    def partition(self, source: Source, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        sizes = _equal_sizes(require_enough(source, clients), clients)
        codes, distinct = label_codes(source.load())
        stock = np.bincount(codes, minlength=len(distinct))
        concentration = self.alpha * stock / len(codes)
        mixtures = generator.dirichlet(concentration, clients)
        counts = np.zeros((clients, len(distinct)), np.int64)
        for client in generator.permutation(clients):
            counts[client] = _draw(sizes[client], mixtures[client], stock, concentration, generator)
            stock -= counts[client]
        return _by_label(codes, counts, generator)


def _draw(
    size: int, mixture: np.ndarray, stock: np.ndarray, concentration: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Count the labels of `size` draws from mixture, renormalised whenever a label is out of stock."""
    drawn = np.zeros_like(stock)
    while size:
        left = stock - drawn
        there = left > 0
        chances = np.where(there, mixture, 0.0)
        if chances.sum() < 1e-9:
            # A tiny alpha puts all mass, to rounding, on labels now gone. The rest of a Dirichlet vector,
            # renormalised, is independent of what was removed and itself Dirichlet: it can be drawn afresh.
            mixture = np.zeros_like(chances)
            mixture[there] = generator.dirichlet(concentration[there])
            chances = mixture
        got = np.minimum(generator.multinomial(size, chances / chances.sum()), left)
        drawn += got
        size -= got.sum()
    return drawn


@dataclass(frozen=True)
class Shards:
    """The pathological split: sort by label, cut into clients·per_client shards, deal each client per_client of them.

    McMahan et al. 2017, section 3. https://arxiv.org/abs/1602.05629
    """

    per_client: int = 2
    finds_clients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_count("per_client", self.per_client)

    def partition(self, source: Source, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        count = require_enough(source, clients)
        shards = clients * self.per_client
        require(
            shards <= count,
            f"expected clients={clients} × per_client={self.per_client} ≤ {count} examples; lower one of them",
        )
        codes, _ = label_codes(source.load())
        owner_of_shard = generator.permutation(shards) // self.per_client
        owners = np.empty(count, np.int64)
        owners[grouped(codes)] = np.repeat(owner_of_shard, _equal_sizes(count, shards))
        return owners


@dataclass(frozen=True)
class ClassesPerClient:
    """Each client has exactly `classes` labels, chosen at random; a label's examples are shared evenly by its clients.

    Every label has a client. Quantity-based label imbalance (#C = k) of Li, Diao, Chen, He 2022: Federated Learning on
    Non-IID Data Silos. https://arxiv.org/abs/2102.02079
    Errors: ConfigError for more classes than labels, clients · classes below the number of labels, or a label with
    fewer examples than clients that chose it.
    """

    classes: int = 2
    finds_clients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_count("classes", self.classes)

    def partition(self, source: Source, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        require_enough(source, clients)
        codes, distinct = label_codes(source.load())
        labels = len(distinct)
        require(self.classes <= labels, f"expected classes={self.classes} ≤ {labels} labels")
        require(
            clients * self.classes >= labels,
            f"expected clients={clients} × classes={self.classes} ≥ {labels} labels, so that each has a client",
        )
        # The lowest scores are chosen. The −1s give every client a first label and every label a first client.
        scores = generator.random((clients, labels))
        turn = np.arange(max(clients, labels))
        scores[turn % clients, generator.permutation(labels)[turn % labels]] = -1
        chosen = np.argpartition(scores, self.classes - 1, axis=1)[:, : self.classes]
        counts = np.zeros((clients, labels), np.int64)
        for label, stock in enumerate(np.bincount(codes)):
            holders = np.flatnonzero((chosen == label).any(axis=1))
            if len(holders) > stock:
                raise ConfigError(
                    f"{self} has {len(holders)} of clients={clients} share label {distinct[label]}, which has only "
                    f"{stock} examples; lower clients or classes"
                )
            counts[generator.permutation(holders), label] = _equal_sizes(int(stock), len(holders))
        return _by_label(codes, counts, generator)


@dataclass(frozen=True)
class LogNormal:
    """Quantity skew: sizes in proportion to exp(σ·z), z standard normal; examples at random.

    Every client has one example for sure; the rest follow the proportions. sigma=0 is `Iid`'s equal sizes.
    """

    sigma: float
    finds_clients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_real("sigma", self.sigma, at_least=0)

    def partition(self, source: Source, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        count = require_enough(source, clients)
        logarithms = self.sigma * generator.standard_normal(clients)
        return _dealt(apportion(np.exp(logarithms - logarithms.max()), count), generator)


@dataclass(frozen=True)
class PowerLaw:
    """Quantity skew: the client of rank r has a share in proportion to r^−exponent; ranks and examples at random.

    Every client has one example for sure; the rest follow the proportions. exponent=0 is `Iid`'s equal sizes.
    """

    exponent: float
    finds_clients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_real("exponent", self.exponent, at_least=0)

    def partition(self, source: Source, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        count = require_enough(source, clients)
        shares = np.arange(1, clients + 1, dtype=np.float64) ** -self.exponent
        return _dealt(generator.permutation(apportion(shares, count)), generator)


@dataclass(frozen=True)
class FeatureSkew:
    """Feature skew: clients lie one after another along the first principal component of x; sizes are equal.

    Parameters
    ----------
    strength
        0 is IID, 1 strictly ordered; between, an example's rank along the component is mixed with chance, strength·rank
        + (1 − strength)·uniform. No example is altered, so this is a partition, unlike the added noise of Li et al.
        2022 (https://arxiv.org/abs/2102.02079), section IV-B, whose kind of skew it imitates.
    """

    strength: float = 1.0
    finds_clients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_real("strength", self.strength, at_least=0, at_most=1)

    def partition(self, source: Source, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return the owner of each example, shape (examples,)."""
        count = require_enough(source, clients)
        scores = _along_first_component(source.load(), generator)
        ranks = np.empty(count)
        ranks[np.argsort(scores, kind="stable")] = np.arange(count) / count
        mixed = self.strength * ranks + (1 - self.strength) * generator.random(count)
        owners = np.empty(count, np.int64)
        owners[np.argsort(mixed, kind="stable")] = np.repeat(np.arange(clients), _equal_sizes(count, clients))
        return owners


def _along_first_component(examples: Examples, generator: np.random.Generator) -> np.ndarray:
    """Return examples' coordinates along the first principal component of x, estimated from 2,048 at most."""
    rows = np.sort(generator.permutation(examples.count)[:2048])
    sample = finite_features_of(examples.take(rows)).astype(np.float64)
    sample -= sample.mean(axis=0)
    direction = generator.standard_normal((sample.shape[1],))
    for _ in range(32):  # power iteration
        direction = sample.T @ (sample @ direction)
        direction /= np.linalg.norm(direction) or 1.0  # constant features leave nothing to order by
    block = 8192  # rows at a time, so that a memory-mapped x is never read whole
    parts = [
        finite_features_of(examples.take(slice(start, start + block))).astype(np.float64) @ direction
        for start in range(0, examples.count, block)
    ]
    return np.concatenate(parts)


def features_of(examples: Examples) -> np.ndarray:
    """Return x as a float matrix of shape (examples, features): every input, flattened.

    Errors: ConfigError for text.
    """
    for array in leaves(examples.x):
        require(array.dtype.kind in "iubf", f"expected x of numbers, found {array.dtype}")
    flat = [
        np.asarray(array if array.dtype.kind == "f" else array.astype(np.float32)).reshape(len(array), -1)
        for array in leaves(examples.x)
    ]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def finite_features_of(examples: Examples) -> np.ndarray:
    """Same as `features_of`, where distances and orders are made of them. Errors: ConfigError for NaN or infinity."""
    features = features_of(examples)
    rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
    require(not len(rows), f"{len(rows)} inputs are not finite (NaN or infinity), in {listed_rows(rows)}: fill them in")
    return features


def _equal_sizes(count: int, parts: int) -> np.ndarray:
    """Divide count into `parts` whole numbers that differ by at most one."""
    return count // parts + (np.arange(parts) < count % parts)


def _dealt(sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return owners in random order, client k `sizes[k]` times."""
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    generator.shuffle(owners)
    return owners


def _by_label(codes: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return owners such that client k has counts[k, l] examples of label l; which of them is left to chance."""
    clients = np.arange(len(counts))
    owners = [generator.permutation(np.repeat(clients, column)) for column in counts.T]
    result = np.empty(len(codes), np.int64)
    result[grouped(codes)] = np.concatenate(owners)
    return result
