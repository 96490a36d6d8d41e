"""Data sets of other libraries, by duck type: neither TensorFlow nor PyTorch is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples, brief, leaves, map_arrays
from ...core.reading.coercion import as_array
from ...core.validation import lacking, require, suggest
from ..values import fields_only, once
from .arrays import Arrays

# Whether elements are batches, by the name of TensorFlow's class for the call that made them; calls that only pass
# elements on say nothing, and neither do those that are not listed.
BATCHED_BY = {
    "_BatchDataset": True,
    "_ParallelBatchDataset": True,
    "_PaddedBatchDataset": True,
    "_TensorSliceDataset": False,
}
PASSING_KINDS = frozenset(
    f"_{name}Dataset" for name in ("Prefetch", "Options", "Take", "Skip", "Shuffle", "Repeat", "Shard", "Filter")
) | {"CacheDataset"}
LABEL = "label"  # name of what is to be predicted in rows of Hugging Face's and TensorFlow's data sets


@dataclass(frozen=True, eq=False)
class TfDataset:
    """A finite `tf.data.Dataset` of x, (x, y) or (x, y, sample_weight), read once in its own order.

    Equal only to itself; pickled as the arrays it holds. A shuffled data set gives a different population each time,
    unless shuffled with a seed.

    Parameters
    ----------
    batched
        Whether its elements are batches, joined along their first axis, or single examples. None: it is told by the
        shapes of the elements, and where these could be either, as of pairs (x, x), it has to be said. Sequences of one
        length whose data set leaves the length open look like batches: say False.
    label
        The name, where elements are dictionaries, of what to predict; None: "label" where there is one.

    Raises
    ------
    ConfigError
        For an endless or empty data set, or one whose elements could be batches or not.
    """

    dataset: Any = field(compare=False)
    batched: bool | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        require(
            not lacking(self.dataset, ("as_numpy_iterator",)),
            f"expected dataset={type(self.dataset).__name__} to be a tf.data.Dataset",
        )
        require(self.batched in (None, True, False), f"expected batched={self.batched!r} in True, False, None")

    def __reduce__(self) -> tuple:
        return Arrays, tuple(self.load())

    @once
    def load(self) -> Examples:
        """Read every element, into one set of arrays."""
        infinite = -1  # tf.data.INFINITE_CARDINALITY
        if not lacking(self.dataset, ("cardinality",)) and int(self.dataset.cardinality()) == infinite:
            raise ConfigError(f"{self.dataset!r} never ends: give it an end with .take(count)")
        _require_dense(self.dataset)
        elements = [_as_parts(element, self.label) for element in self.dataset.as_numpy_iterator()]
        require(bool(elements), f"{self.dataset!r} is empty")
        batched = _are_batches(elements, self.dataset) if self.batched is None else self.batched
        return _joined(elements, np.concatenate if batched else np.stack)


@dataclass(frozen=True, eq=False)
class TorchDataset:
    """A map-style PyTorch data set, or anything with `len` and integer indexing, such as a Hugging Face data set.

    Items are x, (x, y) or (x, y, weight), of tensors, arrays, numbers, pictures (their pixels as they are, not scaled)
    or dicts of them; or rows, dicts with the label among them.
    label: of rows, the name of what to predict; None: "label" where there is one. The rest is x: the array itself where
        it is one.
    Equal only to itself; pickles if the data set does. Errors: ConfigError for an empty data set.
    """

    dataset: Any = field(compare=False)
    label: str | None = None

    def __post_init__(self) -> None:
        require(
            not lacking(self.dataset, ("__len__", "__getitem__")),
            f"expected dataset={type(self.dataset).__name__} to have len() and integer indexing",
        )

    __getstate__ = fields_only

    @once
    def load(self) -> Examples:
        """Read every item, into one set of arrays."""
        require(len(self.dataset) > 0, f"{type(self.dataset).__name__} is empty")
        items = [_as_parts(self.dataset[item], self.label) for item in range(len(self.dataset))]
        return _joined(items, np.stack)


def _as_parts(element: Any, label: str | None) -> tuple:
    """Return one element as (x, …), its members as arrays."""
    if isinstance(element, dict):
        element = _split_row(element, label)
    elif label is not None:
        raise ConfigError(f"expected rows with names for label={label!r}, got {type(element).__name__}")
    # A list is how PyTorch's own collation writes the tuple (x, y).
    parts = tuple(element) if isinstance(element, (tuple, list)) else (element,)
    return tuple(map_arrays(_numpy, part) for part in parts)


def _split_row(row: dict, label: str | None) -> tuple:
    """Split a row into (x, y): y what the label names, x the rest; (x,) where there is no label."""
    require(label is None or label in row, f"rows have no {label!r}: {suggest(str(label), map(str, row))}")
    name = LABEL if label is None else label
    # A list in a row is an array, such as the tokens of a text; in a tuple (x, y) it is several inputs.
    row = {key: np.asarray(value) if isinstance(value, list) else value for key, value in row.items()}
    inputs = {key: value for key, value in row.items() if key != name}
    if name not in row:
        return (row,)
    require(bool(inputs), f"rows hold {name!r} and nothing to predict it from")
    return (next(iter(inputs.values())) if len(inputs) == 1 else inputs), row[name]


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, (str, bytes)):
        return np.asarray(value, object)  # NumPy's own text would be cut to the first one's length
    if isinstance(value, np.ndarray) or lacking(value, ("numpy",)) or not lacking(value, ("detach",)):
        value = value.item() if isinstance(value, np.generic) and value.dtype.kind in "US" else value
        return np.asarray(value) if np.isscalar(value) else as_array(value, "an element of the data set")
    return np.asarray(value.numpy())


def _are_batches(elements: list[tuple], dataset: Any) -> bool:
    """Say whether elements are batches. Errors: ConfigError where their shapes could be of batches or of examples."""
    if not all(map(_looks_batched, elements)):
        return False
    batched = _batched_by_calls(dataset)
    if batched is not None:
        return batched
    lengths = [next(_arrays(parts)).shape[0] for parts in elements]
    # Batches leave their length open, since the last one may be smaller, and are alike but for the last one.
    is_open = all(spec.shape.rank and spec.shape[0] is None for spec in leaves(dataset.element_spec))
    if is_open and len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]:
        return True
    raise ConfigError(
        f"elements such as {brief(elements[0])} could be batches or single examples: say which, "
        "data.TfDataset(dataset, batched=True) or batched=False"
    )


def _require_dense(dataset: Any) -> None:
    """Raise ConfigError for elements that are ragged or sparse: their rows have no shape to share."""
    for spec in leaves(dataset.element_spec):
        for kind, remedy in (("Ragged", "x.to_tensor()"), ("Sparse", "tf.sparse.to_dense(x)")):
            require(
                not type(spec).__name__.startswith(kind),
                f"the data set has elements of {spec}: make them dense, dataset.map(lambda x, y: ({remedy}, y))",
            )


def _batched_by_calls(dataset: Any) -> bool | None:
    """Return whether elements are batches, by the calls that made the data set; None where these do not say."""
    while type(dataset).__name__ in PASSING_KINDS:
        dataset = vars(dataset).get("_input_dataset")
    return BATCHED_BY.get(type(dataset).__name__)


def _looks_batched(parts: tuple) -> bool:
    arrays = list(_arrays(parts))
    return all(array.ndim for array in arrays) and len({array.shape[0] for array in arrays}) == 1


def _arrays(parts: tuple) -> Any:
    return (array for part in parts for array in leaves(part))


def _joined(elements: list[tuple], join: Callable) -> Examples:
    """Join the same member of every element. Errors: ConfigError where shapes differ."""
    try:
        return Examples.of(tuple(_join(column, join) for column in zip(*elements, strict=True)))
    except ValueError as error:
        raise ConfigError(
            f"the elements of the data set differ in shape: {error}; pad or resize them to one shape"
        ) from error


def _join(column: tuple, join: Callable) -> Any:
    first = column[0]
    if isinstance(first, dict):
        require(
            all(one.keys() == first.keys() for one in column),
            f"the elements of the data set differ in names: the first has {', '.join(map(str, first))}",
        )
        return {name: _join(tuple(one[name] for one in column), join) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(_join(part, join) for part in zip(*column, strict=True))
    return join(column)
