"""Data sets of other libraries, by duck type: neither TensorFlow nor PyTorch is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples, leaves, map_arrays
from ..core.validation import require
from .sources import Arrays
from .values import fields_only, once


@dataclass(frozen=True, eq=False)
class TfDataset:
    """A finite `tf.data.Dataset` of x, (x, y) or (x, y, sample_weight), read once in its own order.

    batched: whether its elements are batches. None: they are when every array in them has the same first axis, so say
    False where an example's own arrays happen to. Equal only to itself; pickled as the arrays it holds. A shuffled
    data set gives a different population each time, unless shuffled with a seed.
    Errors: ConfigError for an endless or empty data set.
    """

    dataset: Any = field(compare=False)
    batched: bool | None = None

    def __post_init__(self) -> None:
        require(
            hasattr(self.dataset, "as_numpy_iterator"),
            f"expected dataset={type(self.dataset).__name__} to be a tf.data.Dataset",
        )

    def __reduce__(self) -> tuple:
        return Arrays, tuple(self.load())

    @once
    def load(self) -> Examples:
        """Every element, in one set of arrays."""
        infinite = -1  # tf.data.INFINITE_CARDINALITY
        if hasattr(self.dataset, "cardinality") and int(self.dataset.cardinality()) == infinite:
            raise ConfigError(f"{self.dataset!r} never ends: give it an end with .take(count)")
        elements = [_as_parts(element) for element in self.dataset.as_numpy_iterator()]
        require(bool(elements), f"{self.dataset!r} is empty")
        batched = all(map(_looks_batched, elements)) if self.batched is None else self.batched
        return _joined(elements, np.concatenate if batched else np.stack)


@dataclass(frozen=True, eq=False)
class TorchDataset:
    """A map-style PyTorch data set, or anything with `len` and integer indexing, of x, (x, y) or (x, y, weight).

    Items may be tensors, arrays, numbers, images or dicts of them. Equal only to itself; pickles if the data set does.
    Errors: ConfigError for an empty data set.
    """

    dataset: Any = field(compare=False)

    def __post_init__(self) -> None:
        require(
            hasattr(self.dataset, "__len__") and hasattr(self.dataset, "__getitem__"),
            f"expected dataset={type(self.dataset).__name__} to have len() and integer indexing",
        )

    __getstate__ = fields_only

    @once
    def load(self) -> Examples:
        """Every item, in one set of arrays."""
        require(len(self.dataset) > 0, f"{type(self.dataset).__name__} is empty")
        return _joined([_as_parts(self.dataset[item]) for item in range(len(self.dataset))], np.stack)


def _as_parts(element: Any) -> tuple:
    """One element as (x, …), its members as arrays."""
    # A list is how PyTorch's own collation writes the tuple (x, y).
    parts = tuple(element) if isinstance(element, (tuple, list)) else (element,)
    return tuple(map_arrays(_numpy, part) for part in parts)


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor with a gradient, or on another device, has no .numpy()
        value = value.detach().cpu()
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def _looks_batched(parts: tuple) -> bool:
    arrays = [array for part in parts for array in leaves(part)]
    return all(array.ndim for array in arrays) and len({array.shape[0] for array in arrays}) == 1


def _joined(elements: list[tuple], join: Any) -> Examples:
    """The same member of every element, joined. Errors: ConfigError where shapes differ."""
    columns: Iterable = zip(*elements, strict=True)
    try:
        return Examples.of(tuple(_join(column, join) for column in columns))
    except ValueError as error:
        raise ConfigError(f"the elements of the data set differ in shape: {error}") from error


def _join(column: tuple, join: Any) -> Any:
    first = column[0]
    if isinstance(first, dict):
        return {name: _join(tuple(one[name] for one in column), join) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(_join(part, join) for part in zip(*column, strict=True))
    return join(column)
