"""Data sets of Hugging Face's package `datasets`, column by column; partitions of flwr-datasets are such data sets."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.reading.coercion import NUMBER_KINDS, as_array, is_text, listed_rows, rows_without
from ...core.validation import lacking, require, shown, suggest
from ..values import fields_only, once

LABEL = "label"  # what most data sets call their labels
GREYS = {
    "1": "L",
    "L": "L",
    "LA": "L",
}  # modes of Pillow that are read as one channel; the others as three, RGBA as four
DEEP = ("I", "F")  # beginnings of the modes of more than eight bits


@dataclass(frozen=True)
class HuggingFace:
    """A data set of Hugging Face: its name, a folder that `save_to_disk` made, or a `datasets.Dataset` that is there.

    Pictures are float32 in 0..1, shape (height, width, channels). Labels that have names (ClassLabel) keep their
    numbers, and the population knows the names.

    Parameters
    ----------
    dataset
        "ylecun/mnist" is loaded by `datasets.load_dataset`, which downloads it once; a Dataset is equal to itself
        alone.
    x
        The column of features; several columns of numbers, which become a matrix; or {input: column}, for a model of
        several inputs. None: all that is neither y nor group.
    y
        The column of labels; None: "label".
    group
        A column of keys, one per example, for `ByKey`: the writer, the hospital.
    split, config
        Which split, and which configuration, of a data set that is loaded by name.

    Raises
    ------
    ConfigError
        For a column that is not there, rows of different lengths, values or labels that are missing, a data set that
        cannot be loaded, or Hugging Face's package not installed.
    """

    dataset: Any
    x: str | Sequence[str] | Mapping[str, str] | None = None
    y: str | None = None
    group: str | None = None
    split: str = "train"
    config: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.x, Mapping):
            object.__setattr__(self, "x", tuple(self.x.items()))  # pairs: a dict has no hash
        elif self.x is not None and not isinstance(self.x, str):
            object.__setattr__(self, "x", tuple(self.x))
        if isinstance(self.dataset, Path):
            object.__setattr__(self, "dataset", str(self.dataset))
        require(
            not isinstance(self.dataset, Mapping),
            f"expected one split, got {shown(self.dataset)}: choose it, dataset['train']",
        )
        is_table = isinstance(self.dataset, str) or is_dataset(self.dataset)
        require(is_table, f"expected dataset={shown(self.dataset)} to be a name, or a datasets.Dataset")

    __getstate__ = fields_only

    def columns(self) -> tuple[str, ...]:
        """Return the column of each feature, where x is a matrix of several; else nothing."""
        names = self._features()
        return names if len(names) > 1 and self._is_matrix() else ()

    def ordered(self, columns: tuple[str, ...]) -> HuggingFace:
        """Return the same source with its features in this order."""
        return replace(self, x=columns)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the labels; empty where they have none."""
        feature = self._table().features.get(self._label())
        return () if lacking(feature, ("names", "int2str")) else tuple(feature.names)

    @once
    def load(self) -> Examples:
        """Read the columns of x and y."""
        require(len(self._table()) > 0, f"{self._place} is empty")
        label = self._label()
        y = self._column(label)
        if not is_text(y) and y.dtype.kind in "iu":
            require(
                not self.class_names() or y.min() >= 0,
                f"{self._place}: column {label!r} has examples without a label (-1): choose a split that has them",
            )
            y = y.astype(np.int32) if y.min() >= -(2**31) and y.max() < 2**31 else y
        if isinstance(self.x, tuple) and self.x and isinstance(self.x[0], tuple):
            return Examples.of(({name: self._column(column) for name, column in self.x}, y))
        names = self._features()
        if len(names) == 1:
            return Examples.of((self._column(names[0]), y))
        if self._is_matrix():
            return Examples.of((np.stack([self._numbers(name) for name in names], axis=1), y))
        return Examples.of(({name: self._column(name) for name in names}, y))

    @once
    def groups(self) -> np.ndarray:
        """Read the key of each example."""
        require(self.group is not None, f"{self._place} has no groups: name the column of keys with group=…")
        return np.array(self._plain(str(self.group)), object)

    @property
    def _place(self) -> str:
        return self.dataset if isinstance(self.dataset, str) else "the data set"

    @once
    def _table(self) -> Any:
        """Return the datasets.Dataset: itself, or loaded."""
        return self.dataset if not isinstance(self.dataset, str) else _loaded(self.dataset, self.config, self.split)

    def _label(self) -> str:
        if self.y is None and LABEL not in self._table().column_names:
            raise ConfigError(
                f"{self._place} has no column 'label': name that of the labels with y=…; {self._known(LABEL)}"
            )
        return self._checked(LABEL if self.y is None else self.y)

    def _features(self) -> tuple[str, ...]:
        """List the columns of x."""
        if isinstance(self.x, str):
            return (self._checked(self.x),)
        if self.x:
            pairs = [one if isinstance(one, tuple) else (one, one) for one in self.x]
            return tuple(self._checked(column) for _, column in pairs)
        names = tuple(name for name in self._table().column_names if name not in (self._label(), self.group))
        require(bool(names), f"{self._place} has no column besides {self._label()!r}")
        return names

    def _is_matrix(self) -> bool:
        """Return whether x is several columns, each of one number a row."""
        if isinstance(self.x, tuple) and self.x and isinstance(self.x[0], tuple):
            return False
        kinds = [getattr(self._table().features[name], "dtype", "") for name in self._features()]
        is_numbers = all(str(kind).startswith(("int", "uint", "float", "bool")) for kind in kinds)
        has_rows = any(not lacking(self._table().features[name], ("shape",)) for name in self._features())
        require(
            is_numbers or self.x is None,
            f"{self._place}: columns of a matrix have numbers, not {kinds}: x={{input: column}}",
        )
        return is_numbers and not has_rows

    def _checked(self, name: str) -> str:
        require(name in self._table().column_names, f"{self._place} has no column {name!r}: {self._known(name)}")
        return name

    def _known(self, name: str) -> str:
        return suggest(name, self._table().column_names)

    def _numbers(self, name: str) -> np.ndarray:
        """Return a column as float32. Errors: ConfigError for values that are missing or infinite."""
        column = self._column(name)
        is_plain = column.ndim == 1 and column.dtype.kind in NUMBER_KINDS
        require(is_plain, f"{self._place}: column {name!r} is {column.dtype} {column.shape[1:]}, no number a row")
        numbers: np.ndarray = column.astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(numbers))
        require(
            not len(wrong),
            f"{self._place}: column {name!r} has missing or infinite values, in {listed_rows(wrong)}: fill them in, "
            "or filter those rows out",
        )
        return numbers

    def _column(self, name: str) -> np.ndarray:
        """Return a column as an array; pictures as their pixels."""
        feature = self._table().features[name]
        if type(feature).__name__ == "Image":
            return np.stack(self._pictures(name))
        table = self._table().select_columns([name]).with_format("numpy")
        array = as_array(table[:][name], f"{self._place}: column {name!r}")
        if array.ndim == 1:
            missing = rows_without(array)
            require(
                not len(missing),
                f"{self._place}: column {name!r} lacks values, in {listed_rows(missing)}: fill them in, or filter "
                "those rows out",
            )
        return array

    def _plain(self, name: str) -> list[Any]:
        """Return a column as Python's own values."""
        return list(self._table().select_columns([self._checked(name)]).with_format(None)[:][name])

    def _pictures(self, name: str) -> list[np.ndarray]:
        """Return each picture's pixels, 0..1: float32, shape (height, width, channels)."""
        pictures = [self._pixels(name, row, picture) for row, picture in enumerate(self._plain(name))]
        shapes = {picture.shape for picture in pictures}
        require(
            len(shapes) == 1,
            f"{self._place}: pictures of column {name!r} differ in shape, {sorted(shapes)[:3]}: resize them with "
            "dataset.map",
        )
        return pictures

    def _pixels(self, name: str, row: int, picture: Any) -> np.ndarray:
        require(picture is not None, f"{self._place}: column {name!r} lacks a picture in row {row + 1}: filter it out")
        require(
            not picture.mode.startswith(DEEP),
            f"{self._place}: row {row + 1} of {name!r} has pixels of more than eight bits ({picture.mode}): make them "
            "arrays in 0..1 with dataset.map",
        )
        mode = "RGBA" if picture.mode == "RGBA" else GREYS.get(picture.mode, "RGB")
        pixels = np.asarray(picture.convert(mode), np.float32)
        return pixels.reshape(*pixels.shape[:2], -1) / np.float32(255)


def is_dataset(value: Any) -> bool:
    """Return whether value is a data set of Hugging Face that has a length.

    Errors: ConfigError for one that is streamed, which has none, and for all splits at once.
    """
    if lacking(value, ("with_format", "select_columns")) or isinstance(value, (str, type)):
        return False
    require(
        not lacking(value, ("__len__", "features")),
        f"expected a data set that has a length, got a streamed one, {type(value).__name__}: keep a part of it, "
        "datasets.Dataset.from_list(list(dataset.take(count)))",
    )
    require(not isinstance(value, Mapping), f"expected one split, got {shown(value)}: choose it, dataset['train']")
    return True


def _loaded(name: str, config: str | None, split: str) -> Any:
    """Load a data set by its name, or from the folder that `save_to_disk` made."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError("datasets is not installed: pip install 'umbel[huggingface]'") from error
    try:
        is_saved = any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))
        if not is_saved:
            return datasets.load_dataset(name, config, split=split)
        saved = datasets.load_from_disk(name)
        return saved[split] if isinstance(saved, Mapping) else saved
    except Exception as error:  # the network's, the hub's, a builder's, a reader's: each of its own kind
        said = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"cannot load the data set {name!r}, split {split!r}: {type(error).__name__}: {said}"
        ) from error
