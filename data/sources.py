"""Data sets in memory and in files. Each is a frozen value; nothing is read before `load`."""

from __future__ import annotations

import importlib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Arrays as NestedArrays
from ..core.examples import Examples, brief
from ..core.validation import require, suggest
from .values import fields_only, hash_fields, once, same_fields


@dataclass(frozen=True, eq=False, repr=False)
class Arrays:
    """Arrays in memory, or memory-mapped: those stay on disk.

    x, y, sample_weight: arrays, or dicts, lists and tuples of arrays, all with the example on the first axis.
    Errors: ConfigError for no array or for unequal lengths.
    """

    x: NestedArrays
    y: NestedArrays = None
    sample_weight: NestedArrays = None

    def __post_init__(self) -> None:
        for name, part in Examples.of((self.x, self.y, self.sample_weight))._asdict().items():
            object.__setattr__(self, name, part)

    __eq__ = same_fields
    __hash__ = hash_fields

    def __repr__(self) -> str:
        parts = (f"{name}={brief(part)}" for name, part in fields_only(self).items() if part is not None)
        return f"Arrays({', '.join(parts)})"

    def load(self) -> Examples:
        """The arrays, as they are."""
        return Examples(self.x, self.y, self.sample_weight)


@dataclass(frozen=True)
class NpzFile:
    """Arrays of a NumPy .npz file, by name.

    y, sample_weight: None for none. group: name of an array of keys, one per example, for `ByKey`.
    Errors: ConfigError for a file that is missing or corrupt, a name it does not hold, or an array of Python objects,
    since reading one could run code.
    """

    path: str | Path
    x: str = "x"
    y: str | None = "y"
    sample_weight: str | None = None
    group: str | None = None

    __getstate__ = fields_only

    @once
    def load(self) -> Examples:
        """The named arrays."""
        return Examples.of(read_npz(self.path, (self.x, self.y, self.sample_weight)))

    @once
    def groups(self) -> np.ndarray:
        """The key of each example."""
        require(self.group is not None, f"{self.path} has no groups: name the array of keys with group=…")
        return read_npz(self.path, (self.group,))[0]


def read_npz(path: str | Path, names: tuple[str | None, ...]) -> tuple[Any, ...]:
    """The arrays of an .npz file called `names`, None for None. Errors: ConfigError naming file and remedy."""
    require_file(path)
    try:
        with np.load(path, allow_pickle=False) as held:
            if not hasattr(held, "files"):
                raise ConfigError(f"{path} is a single array, not an .npz file: write it with numpy.savez")
            missing = [name for name in names if name is not None and name not in held.files]
            if missing:
                raise ConfigError(f"{path} holds no array {missing[0]!r}: {suggest(missing[0], held.files)}")
            return tuple(None if name is None else held[name] for name in names)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        if "Object arrays" in str(error):
            raise ConfigError(
                f"{path} holds an array of Python objects, which is refused since reading it could run code: "
                "save numbers or strings"
            ) from error
        raise ConfigError(f"{path} does not read as an .npz file ({error}): restore it or write it again") from error


@dataclass(frozen=True)
class CsvTable:
    """A table with a header line, as comma-separated text (.gz and other compressions by suffix).

    label: the column to predict; text becomes the number of its class in sorted order (int32).
    features: the columns of x, float32; None: all others, in the file's order.
    group: a column of keys for `ByKey`, such as a hospital or a user; it is not a feature unless named as one.
    Errors: ConfigError for a missing or corrupt file, an unknown column, text among the features, a missing value, or
    pandas not installed.
    """

    path: str | Path
    label: str
    features: tuple[str, ...] | None = None
    group: str | None = None

    __getstate__ = fields_only

    @once
    def load(self) -> Examples:
        """x float32 of shape (rows, features); y of shape (rows,)."""
        return _examples_of(self, self._frame())

    @once
    def groups(self) -> np.ndarray:
        """The key of each row."""
        return _groups_of(self, self._frame())

    def _frame(self) -> Any:
        return _read_table(self.path, "read_csv")


@dataclass(frozen=True)
class ParquetTable:
    """A table in a Parquet file; label, features, group and errors as for `CsvTable`."""

    path: str | Path
    label: str
    features: tuple[str, ...] | None = None
    group: str | None = None

    __getstate__ = fields_only

    @once
    def load(self) -> Examples:
        """x float32 of shape (rows, features); y of shape (rows,)."""
        return _examples_of(self, self._frame())

    @once
    def groups(self) -> np.ndarray:
        """The key of each row."""
        return _groups_of(self, self._frame())

    def _frame(self) -> Any:
        return _read_table(self.path, "read_parquet")


def _read_table(path: str | Path, reader: str) -> Any:
    """A pandas data frame."""
    pandas = optional_import("pandas", extra="tables")
    require_file(path)
    try:
        return getattr(pandas, reader)(path)
    except ImportError as error:  # pandas is there, pyarrow is not
        raise ConfigError(f"reading {path} needs pyarrow: pip install 'umbel[tables]'") from error
    except Exception as error:  # pandas, pyarrow and each decompressor raise classes of their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{path} does not read as a table ({reason[0]}): restore it or write it again") from error


def _examples_of(table: CsvTable | ParquetTable, frame: Any) -> Examples:
    """The columns of a frame that a table names, as examples."""
    columns = list(frame.columns)
    features = table.features
    if features is None:
        features = tuple(name for name in columns if name not in (table.label, table.group))
    require(bool(features), f"{table.path} has no column besides {table.label!r}")
    for name in (*features, table.label):
        require(name in columns, f"{table.path} has no column {name!r}: {suggest(name, map(str, columns))}")
        missing = np.flatnonzero(frame[name].isna().to_numpy())
        if len(missing):
            raise ConfigError(
                f"{table.path}: column {name!r} lacks {len(missing)} values, the first in row {missing[0] + 1}; "
                "fill them in or drop those rows"
            )
    x = np.empty((len(frame), len(features)), np.float32)
    for position, name in enumerate(features):
        try:
            x[:, position] = frame[name].to_numpy()
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{table.path}: column {name!r} is not numeric; encode it, or leave it out of features"
            ) from error
    return Examples.of((x, _label_column(frame[table.label].to_numpy())))


def _label_column(values: np.ndarray) -> np.ndarray:
    """Numbers as int32 (classes) or float32 (regression); anything else as its place in sorted order."""
    if values.dtype.kind in "iub":
        return values.astype(np.int32)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return np.unique(values.astype(str), return_inverse=True)[1].astype(np.int32)


def _groups_of(table: CsvTable | ParquetTable, frame: Any) -> np.ndarray:
    require(table.group is not None, f"{table.path} has no groups: name the column of keys with group=…")
    require(
        table.group in frame.columns,
        f"{table.path} has no column {table.group!r}: {suggest(str(table.group), map(str, frame.columns))}",
    )
    keys = frame[table.group].to_numpy()
    return keys.astype(str) if keys.dtype.kind == "O" else keys


def require_file(path: str | Path) -> None:
    """Raise ConfigError unless path is a file."""
    require(Path(path).is_file(), f"no file at {path}: put it there, or correct path")


def optional_import(module: str, *, extra: str) -> ModuleType:
    """A module that only some sources need. Errors: ConfigError naming the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{package} is not installed: pip install 'umbel[{extra}]'") from error
