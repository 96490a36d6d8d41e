"""Data sets known by name: one that ships with scikit-learn, and those that Keras lays out as .npz files."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.random import derive
from ...core.validation import require
from ..allocation import apportion
from ..values import fields_only, once
from .files import read_npz

Split = Literal["train", "test"]
FOLDER_VARIABLE = "UMBEL_DATA"


@dataclass(frozen=True)
class Digits:
    """Handwritten digits of 8×8 pixels, 1,797 of them (Alpaydin and Kaynak 1998), which ship with scikit-learn.

    A fixed split, stratified by label: 1,437 train, 360 test. x float32 in 0..1, shape (n, 64); y int32.
    """

    split: Split = "train"

    def __post_init__(self) -> None:
        _require_split(self.split)

    __getstate__ = fields_only

    @once
    def load(self) -> Examples:
        """Return the examples of the split, in their original order."""
        digits = importlib.import_module("sklearn.datasets").load_digits()
        x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)
        held_out = np.zeros(len(y), bool)
        generator = derive(0, "digits").generator()
        for label, count in enumerate(apportion(np.bincount(y), 360, at_least=0)):
            held_out[generator.permutation(np.flatnonzero(y == label))[:count]] = True
        return Examples(x, y).take(np.flatnonzero(held_out == (self.split == "test")))


@dataclass(frozen=True)
class Greyscale:
    """Images of 28×28 grey pixels in ten classes, as Keras names and files them."""

    split: Split = "train"
    flat: bool = False

    name: ClassVar[str]

    def __post_init__(self) -> None:
        _require_split(self.split)

    __getstate__ = fields_only

    @property
    def path(self) -> Path | None:
        """Path where the file is looked for; None without $UMBEL_DATA."""
        return in_folder(f"{self.name}.npz")

    @once
    def load(self) -> Examples:
        """Return the examples of the split, in their original order."""
        return _images(self.path, self.name, self.split, (784,) if self.flat else (28, 28, 1))


@dataclass(frozen=True)
class Mnist(Greyscale):
    """Handwritten digits (LeCun, Cortes, Burges): 60,000 train, 10,000 test.

    x float32 in 0..1, shape (n, 28, 28, 1), or (n, 784) if flat; y int32. From mnist.npz in the folder $UMBEL_DATA,
    or else by Keras's loader. Errors: ConfigError when neither has it.
    """

    name = "mnist"


@dataclass(frozen=True)
class FashionMnist(Greyscale):
    """Ten kinds of clothing (Xiao et al. 2017): 60,000 train, 10,000 test. Same as `Mnist`, from fashion_mnist.npz."""

    name = "fashion_mnist"


@dataclass(frozen=True)
class Cifar10:
    """Ten kinds of objects in colour (Krizhevsky 2009): 50,000 train, 10,000 test.

    x float32 in 0..1, shape (n, 32, 32, 3); y int32. From cifar10.npz, as `Mnist`.
    """

    split: Split = "train"

    def __post_init__(self) -> None:
        _require_split(self.split)

    __getstate__ = fields_only

    @property
    def path(self) -> Path | None:
        """Path where the file is looked for; None without $UMBEL_DATA."""
        return in_folder("cifar10.npz")

    @once
    def load(self) -> Examples:
        """Return the examples of the split, in their original order."""
        return _images(self.path, "cifar10", self.split, (32, 32, 3))


def in_folder(file: str) -> Path | None:
    """Return the file's place in the folder $UMBEL_DATA, there or not; None where the variable is not set."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) / file if folder else None


def not_found(file: str, contents: str, reason: str = "") -> ConfigError:
    """Return the error for a data set that is not in $UMBEL_DATA."""
    folder = os.environ.get(FOLDER_VARIABLE)
    place = f"{FOLDER_VARIABLE}={folder} holds no {file}" if folder else f"{FOLDER_VARIABLE} is not set"
    remedy = f"put {file} ({contents}) into a folder and set {FOLDER_VARIABLE} to it"
    return ConfigError(f"{place}{reason}: {remedy}")


def _images(path: Path | None, name: str, split: Split, shape: tuple[int, ...]) -> Examples:
    """Read a split of a data set in Keras's layout; pixels scaled to 0..1."""
    if path is not None and path.is_file():
        x, y = read_npz(path, (f"x_{split}", f"y_{split}"))
    else:
        x, y = _fetch(name, split)
    try:
        x = x.reshape(len(x), *shape)
        y = y.reshape(len(x))
    except ValueError as error:
        raise ConfigError(f"{path} is not {name}: its arrays are {x.shape} and {y.shape}; restore it") from error
    x = x.astype(np.float32)
    x /= 255
    return Examples(x, y.astype(np.int32))


def _fetch(name: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Fetch (x, y) by Keras's own loader, which downloads once into ~/.keras."""
    try:
        train, test = importlib.import_module(f"keras.datasets.{name}").load_data()
    except Exception as error:  # no Keras, no network, a refused or damaged download: keras raises bare Exception
        layout = "arrays x_train, y_train, x_test, y_test"
        raise not_found(f"{name}.npz", layout, ", and Keras could not download it") from error
    return train if split == "train" else test


def _require_split(split: str) -> None:
    require(split in ("train", "test"), f"expected split={split!r} in train, test")
