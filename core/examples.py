"""Examples: what a client, a test set or a source holds, as arrays with the example on the first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .errors import ConfigError
from .reading.coercion import as_array, frame_columns, is_frame, target_columns

Arrays = Any  # an array, or a dict, list or tuple of arrays (a model with several inputs or outputs)


def map_arrays(function: Callable[[Any], Any], arrays: Arrays) -> Arrays:
    """Apply function to every array of a nested structure; None stays None."""
    if arrays is None:
        return None
    if isinstance(arrays, dict):
        return {name: map_arrays(function, value) for name, value in arrays.items()}
    if isinstance(arrays, (list, tuple)):
        return type(arrays)(map_arrays(function, value) for value in arrays)
    return function(arrays)


def leaves(arrays: Arrays) -> Iterator[Any]:
    """Yield every array of a nested structure, in a fixed order."""
    if isinstance(arrays, dict):
        for value in arrays.values():
            yield from leaves(value)
    elif isinstance(arrays, (list, tuple)):
        for value in arrays:
            yield from leaves(value)
    elif arrays is not None:
        yield arrays


def brief(arrays: Arrays) -> str:
    """Show nested arrays as a log line does: type and shape."""
    if isinstance(arrays, dict):
        return "{" + ", ".join(f"{name}: {brief(part)}" for name, part in arrays.items()) + "}"
    if isinstance(arrays, (tuple, list)):
        return "(" + ", ".join(map(brief, arrays)) + ")"
    return f"{arrays.dtype}{list(arrays.shape)}" if isinstance(arrays, np.ndarray) else repr(arrays)


class Examples(NamedTuple):
    """Inputs, targets and optional per-example weights; all share their first axis."""

    x: Arrays
    y: Arrays = None
    sample_weight: Arrays = None

    def __repr__(self) -> str:
        parts = (f"{name}={brief(part)}" for name, part in self._asdict().items() if part is not None)
        return f"Examples({', '.join(parts)})"

    @property
    def count(self) -> int:  # type: ignore[override]  # hides tuple.count, which nobody asks of examples
        """Number of examples."""
        return len(next(leaves(self.x)))

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(array.nbytes for part in self for array in leaves(part))

    def take(self, rows: np.ndarray | slice) -> Examples:
        """Return the examples at `rows`, as a copy (a view for a slice)."""
        return Examples(*(map_arrays(lambda array: array[rows], part) for part in self))

    @staticmethod
    def of(value: Examples | tuple | Arrays) -> Examples:
        """Check that value, (x,), (x, y) or (x, y, sample_weight), holds arrays of one length; return it as Examples.

        Frames, tensors and sparse matrices become arrays; see `coercion.as_array`. Lists of arrays count as several
        inputs, never as examples. Errors: ConfigError for no array, an array with no first axis, unequal lengths, or
        a value that no array can stand for.
        """
        parts = value if isinstance(value, tuple) else (value,)
        if not 1 <= len(parts) <= 3:
            raise ConfigError(f"expected (x, y) or (x, y, sample_weight), got a tuple of {len(parts)}")
        named = zip(Examples._fields, parts, strict=False)
        examples = Examples(*(map_arrays(partial(as_array, name=name), part) for name, part in named))
        lengths = [array.shape[0] if array.ndim else None for part in examples for array in leaves(part)]
        if not lengths or None in lengths:
            raise ConfigError(
                "expected arrays with the example on the first axis, got none or a scalar; a list stands for several "
                "inputs, so make one of numbers an array: np.array(…)"
            )
        if len(set(lengths)) > 1:
            raise ConfigError(f"expected arrays of one length, got lengths {', '.join(map(str, lengths))}")
        return examples


@dataclass(frozen=True, eq=False)
class FrameExamples:
    """Examples that came with a data frame, as a Source that still knows its columns by name."""

    examples: Examples
    names: tuple[str, ...]
    targets: tuple[str, ...] = ()

    @staticmethod
    def of(value: tuple) -> FrameExamples:
        """Check a tuple (x, y) or (x, y, sample_weight) with a frame in it, as `Examples.of` does; keep its columns."""
        names = frame_columns(value[0]) if is_frame(value[0]) else ()
        return FrameExamples(Examples.of(value), names, target_columns(value[1]) if len(value) > 1 else ())

    def load(self) -> Examples:
        """Return the examples, in the frame's order of columns."""
        return self.examples

    def columns(self) -> tuple[str, ...]:
        """Return the column of each feature."""
        return self.names

    def ordered(self, columns: tuple[str, ...]) -> FrameExamples:
        """Return the same examples with their features in this order."""
        x = self.examples.x[:, [self.names.index(name) for name in columns]]
        return FrameExamples(self.examples._replace(x=x), columns, self.targets)

    def class_names(self) -> tuple[str, ...]:
        """Return the column of each label, where labels have several."""
        return self.targets
