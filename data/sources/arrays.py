"""The source of arrays in memory."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.examples import Arrays as NestedArrays
from ...core.examples import Examples, brief
from ...core.reading.coercion import frame_columns, is_frame, target_columns
from ..values import hash_fields, same_fields


@dataclass(frozen=True, eq=False, repr=False)
class Arrays:
    """Arrays in memory, or memory-mapped: those stay on disk.

    Parameters
    ----------
    x, y, sample_weight
        Arrays, or dicts, lists and tuples of arrays, all with the example on the first axis.
    names
        The column of each feature, where x is a matrix; taken from x where that is a data frame.
    targets
        The column of each label, where y is a matrix, such as one for each class; taken from a data frame too.

    Raises
    ------
    ConfigError
        For no array or for unequal lengths.
    """

    x: NestedArrays
    y: NestedArrays = None
    sample_weight: NestedArrays = None
    names: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if is_frame(self.x):
            object.__setattr__(self, "names", frame_columns(self.x))
        if is_frame(self.y):
            object.__setattr__(self, "targets", target_columns(self.y))
        for name, part in Examples.of((self.x, self.y, self.sample_weight))._asdict().items():
            object.__setattr__(self, name, part)

    __eq__ = same_fields
    __hash__ = hash_fields

    def __repr__(self) -> str:
        parts = (f"{name}={brief(part)}" for name, part in self.load()._asdict().items() if part is not None)
        return f"Arrays({', '.join(parts)})"

    def columns(self) -> tuple[str, ...]:
        """Return the column of each feature; empty where features have no names."""
        return self.names

    def ordered(self, columns: tuple[str, ...]) -> Arrays:
        """Return the same examples with their features in this order."""
        x = self.x[:, [self.names.index(name) for name in columns]]
        return Arrays(x, self.y, self.sample_weight, columns, self.targets)

    def class_names(self) -> tuple[str, ...]:
        """Return the column of each label, where labels have several."""
        return self.targets

    def load(self) -> Examples:
        """Return the arrays, as they are."""
        return Examples(self.x, self.y, self.sample_weight)
