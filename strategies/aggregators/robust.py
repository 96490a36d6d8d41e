"""Common base of robust aggregators: every update of a round is kept, then a rule finds the centre of them."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from ...core.aggregators import add_scaled
from ...core.bases import Aggregator
from ...core.errors import RunStopped
from ...core.traits import Trait
from ...core.types import NOTHING, ClientUpdate, Total, Vector, add_metrics

Kept = tuple[int, list[ClientUpdate]]  # (d, the updates so far in the order they came)
NUMBERS = 1 << 17  # numbers per step, over all clients: 512 KiB of float32, which stay in the processor's cache
PRODUCTS = 1 << 20  # numbers per matrix product: each wakes BLAS's threads, which is dear on a busy machine


class RobustAggregator(Aggregator):
    """An aggregator whose total has the same mean whatever a minority of the clients sends.

    Total: delta = weight·centre, so that `Total.mean()` is the centre; weight and metrics are sums over all updates, as
    the clients report them. extra goes through the same rule on its own, so that no client's is trusted for its delta.
    Memory: n·d numbers for n clients, since every update is kept until the round ends; they are kept, not copied.
    Updates are finite: runtimes reject others.
    Errors: RunStopped for fewer updates than `min_clients`, unless there is none at all, which sums to nothing.
    """

    needs: ClassVar[Trait] = Trait.EACH_UPDATE | Trait.ALL_UPDATES

    @property
    @abc.abstractmethod
    def min_clients(self) -> int:
        """Least number of updates in a round for what the aggregator guarantees."""

    @abc.abstractmethod
    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Apply the rule: n vectors of shape (d,), n ≥ min_clients, and n weights ≥ 0 as reported, to one vector."""

    def zero(self, size: int) -> Kept:
        """Return an accumulator with no update of `size` numbers yet."""
        return size, []

    def add(self, accumulator: Kept, update: ClientUpdate) -> Kept:
        """Keep one update, whose arrays must not be written to from here on."""
        accumulator[1].append(update)
        return accumulator

    def merge(self, one: Kept, other: Kept) -> Kept:
        """Return the updates of both. Exact."""
        return one[0], one[1] + other[1]

    def total(self, accumulator: Kept) -> Total:
        """Return the total with weight·centre of deltas and of extras."""
        size, updates = accumulator
        if not updates:
            return Total(np.zeros(size, np.float32), NOTHING, 0.0, 0, {})
        if len(updates) < self.min_clients:
            raise RunStopped(
                f"{self!r} needs {self.min_clients} updates, got {len(updates)}; enlarge the cohort, "
                "or expect fewer attackers"
            )
        weights = np.array([update.weight for update in updates])
        delta = self.centre([update.delta for update in updates], weights)
        extra = self.centre([update.extra for update in updates], weights) if len(updates[0].extra) else NOTHING
        weight = float(weights.sum())
        metrics: dict = {}
        for update in updates:
            metrics = add_metrics(metrics, update.metrics)
        return Total(np.float32(weight) * delta, np.float32(weight) * extra, weight, len(updates), metrics)


def sorted_columns(vectors: Sequence[Vector]) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of coordinates, with what the clients sent for each: float32, shape (block, n), rows ascending."""
    size = max(1, NUMBERS // len(vectors))
    for start in range(0, len(vectors[0]), size):
        block = slice(start, start + size)
        # A coordinate's numbers side by side: NumPy sorts short contiguous rows faster than it partitions columns.
        columns = np.stack([vector[block] for vector in vectors], axis=1)
        columns.sort(axis=1)
        yield block, columns


def gram(vectors: Sequence[Vector]) -> np.ndarray:
    """Compute the inner products of all pairs: float64, shape (n, n)."""
    products = np.zeros((len(vectors), len(vectors)))
    size = max(1, PRODUCTS // len(vectors))
    for start in range(0, len(vectors[0]), size):
        # In float32, the distance between two updates would drown in their norms.
        rows = np.array([vector[start : start + size] for vector in vectors], np.float64)
        products += rows @ rows.T
    return products


def squared_distances(products: np.ndarray) -> np.ndarray:
    """Compute ‖x_i − x_j‖² of all pairs, from their inner products: float64, shape (n, n)."""
    norms = np.diag(products)
    distances = np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0)
    np.fill_diagonal(distances, 0)
    return distances


def distances_from(coefficients: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Compute ‖v − x_j‖ of every j, for v = Σ c_i·x_i and the inner products of x: float64, shape (n,)."""
    along = products @ coefficients
    return np.sqrt(np.maximum(coefficients @ along - 2 * along + np.diag(products), 0))


def combination(vectors: Sequence[Vector], coefficients: np.ndarray) -> Vector:
    """Compute Σ c_i·x_i, float32, shape (d,)."""
    combined = np.zeros(len(vectors[0]), np.float32)
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        add_scaled(combined, vector, float(coefficient))
    return combined
