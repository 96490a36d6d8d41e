"""Tables: comma-separated text and Parquet. Nothing is read before it is needed."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.reading.coercion import NUMBER_KINDS, as_array, is_text, listed_rows, rows_without
from ...core.validation import require, suggest
from ..encoding import checked_classes, class_numbers
from ..values import fields_only, once
from .files import optional_import, require_file


@dataclass(frozen=True)
class TableFile(ABC):
    """A table of rows and named columns, one of which is to be predicted."""

    path: str | Path
    label: str
    features: Sequence[str] | None = None
    group: str | None = None
    classes: Sequence[str | int] | None = None

    __getstate__ = fields_only

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", checked_classes(self.classes))
        object.__setattr__(self, "features", _checked_features(self.features))

    def load(self) -> Examples:
        """Return x, float32 of shape (rows, features), and y of shape (rows,)."""
        return self._contents()[1]

    def columns(self) -> tuple[str, ...]:
        """Return the columns of x."""
        return tuple(self.features) if self.features is not None else self._contents()[0]

    def ordered(self, columns: tuple[str, ...]) -> Self:
        """Return the same table with its features in this order."""
        return dataclasses.replace(self, features=columns)

    def class_names(self) -> tuple[str, ...]:
        """Return the classes that were given; empty where a population finds them."""
        return tuple(map(str, self.classes or ()))

    @once
    def groups(self) -> np.ndarray:
        """Return the key of each row; None where it has none."""
        return _groups_of(self, self.frame())

    @once
    def _contents(self) -> tuple[tuple[str, ...], Examples]:
        return _contents_of(self, self.frame())

    @abstractmethod
    def frame(self) -> Any:
        """Read the file as a pandas data frame."""


@dataclass(frozen=True)
class CsvTable(TableFile):
    """A table with a header line, as comma-separated text (.gz and other compressions by suffix).

    Parameters
    ----------
    label
        The column to predict. Labels of text stay text until a population, which sees all clients' tables, numbers
        them; or they become the numbers of `classes`.
    features
        The columns of x, float32; None: all others, in the file's order. Clients of one population, and its test set,
        are read in the order of the first client.
    group
        A column of keys for `ByKey`, such as a hospital or a user; it is not a feature unless named as one.
    classes
        Every label by name, in the order of their numbers; None: a population finds them.

    Raises
    ------
    ConfigError
        For a missing or corrupt file, an unknown column, text or dates among the features, a missing or infinite value,
        a label that is none of the classes, or pandas not installed.
    """

    def frame(self) -> Any:
        """Read the file as a pandas data frame."""
        # In pieces, pandas would guess a column's type for each: a label could be 1 in one of them and "1" in another.
        return _read_table(self.path, "read_csv", low_memory=False)


@dataclass(frozen=True)
class ParquetTable(TableFile):
    """A table in a Parquet file; label, features, group, classes and errors as for `CsvTable`."""

    def frame(self) -> Any:
        """Read the file as a pandas data frame."""
        return _read_table(self.path, "read_parquet")


def _checked_features(features: Sequence[str] | None) -> tuple[str, ...] | None:
    require(not isinstance(features, str), f"expected features={features!r} to be a list of columns: ({features!r},)")
    return None if features is None else tuple(features)


def _read_table(path: str | Path, reader: str, **options: Any) -> Any:
    """Read a table as a pandas data frame."""
    pandas = optional_import("pandas", extra="tables")
    require_file(path)
    try:
        return getattr(pandas, reader)(path, **options)
    except ImportError as error:  # pandas is there, pyarrow is not
        raise ConfigError(f"reading {path} needs pyarrow: pip install 'umbel[tables]'") from error
    except Exception as error:  # pandas, pyarrow and each decompressor raise classes of their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{path} does not read as a table ({reason[0]}): restore it or write it again") from error


def _contents_of(table: TableFile, frame: Any) -> tuple[tuple[str, ...], Examples]:
    """Return the columns of x, and the examples that a table makes of a frame."""
    columns = list(map(str, frame.columns))
    frame.columns = columns
    features = table.features
    if features is None:
        features = tuple(name for name in columns if name not in (table.label, table.group))
    require(bool(features), f"{table.path} has no column besides {table.label!r}")
    require(len(frame) > 0, f"{table.path} has a header and no rows")
    for name in (*features, table.label):
        require(name in columns, f"{table.path} has no column {name!r}: {suggest(name, columns)}")
        missing = np.flatnonzero(frame[name].isna().to_numpy())
        if len(missing):
            raise ConfigError(
                f"{table.path}: column {name!r} lacks {len(missing)} values, the first in row {missing[0] + 1}; "
                "fill them in or drop those rows"
            )
    x = np.empty((len(frame), len(features)), np.float32)
    for position, name in enumerate(features):
        x[:, position] = _numbers(table, name, frame[name])
    return tuple(features), Examples.of((x, _labels(table, frame[table.label])))


def _numbers(table: TableFile, name: str, column: Any) -> np.ndarray:
    """Return a column as float32. Errors: ConfigError for anything but finite numbers and truth values."""
    values = column.to_numpy()
    # NumPy would take dates for nanoseconds, and text that looks like numbers, "nan" too, for those.
    if values.dtype.kind not in NUMBER_KINDS:
        raise ConfigError(
            f"{table.path}: column {name!r} is not numeric, but {column.dtype}; encode it, or leave it out of features"
        )
    with np.errstate(over="ignore"):
        numbers: np.ndarray = values.astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(numbers))
    if len(infinite):
        raise ConfigError(
            f"{table.path}: column {name!r} has values that no float32 holds, in {listed_rows(infinite)}; "
            "scale them, or drop those rows"
        )
    return numbers


def _labels(table: TableFile, column: Any) -> np.ndarray:
    """Return labels: classes as int32 or int64, fractions as float32, text as it is or as the numbers of `classes`.

    Integers are int32, or int64 where that is too small.
    """
    place, name = str(table.path), f"column {table.label!r} of {table.path}"
    values = as_array(column.to_numpy(), name)
    if table.classes:
        return class_numbers(values, table.class_names(), place)
    if is_text(values):
        empty = rows_without(values)
        require(not len(empty), f"{name} lacks {len(empty)} values, in {listed_rows(empty)}: drop those rows")
        return values
    if values.dtype.kind == "f":
        return _numbers(table, table.label, column)
    fits = values.dtype.kind == "b" or (values.min() >= -(2**31) and values.max() < 2**31)
    return values.astype(np.int32) if fits else values


def _groups_of(table: TableFile, frame: Any) -> np.ndarray:
    require(table.group is not None, f"{table.path} has no groups: name the column of keys with group=…")
    require(
        table.group in frame.columns,
        f"{table.path} has no column {table.group!r}: {suggest(str(table.group), map(str, frame.columns))}",
    )
    keys: np.ndarray = frame[table.group].to_numpy()
    if keys.dtype.kind == "O":
        keys = np.array([str(key) for key in keys], object)
        keys[np.flatnonzero(frame[table.group].isna().to_numpy())] = None
    return keys
