"""FEMNIST as LEAF writes it: handwritten characters, a client per writer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.validation import require
from ..values import fields_only, once
from .named import Split, in_folder, not_found

SIDE, CLASSES = 28, 62
FOLDER = "femnist"


@dataclass(frozen=True)
class Femnist:
    """Digits and letters of 3,550 writers (Caldas et al. 2018, https://arxiv.org/abs/1812.01097).

    x: float32 in 0..1, shape (n, 28, 28, 1), the paper white (1); y: int32, shape (n,): 0 to 9 are digits,
        then upper and lower case.
    From the files femnist/train/*.json and femnist/test/*.json in the folder $UMBEL_DATA: LEAF's data/train and
    data/test, as its preprocess.sh writes them. `Partitioned(Femnist(), by=ByKey())` gives each writer a client.
    Errors: ConfigError for files that are missing, or of another format.
    """

    split: Split = "train"

    def __post_init__(self) -> None:
        require(self.split in ("train", "test"), f"expected split={self.split!r} in train, test")

    __getstate__ = fields_only

    @property
    def path(self) -> Path | None:
        """Path of the folder of the split's files; None without $UMBEL_DATA."""
        return in_folder(f"{FOLDER}/{self.split}")

    def load(self) -> Examples:
        """Return the examples, writer after writer, in the order of the files."""
        return self._contents()[0]

    def groups(self) -> np.ndarray:
        """Return the writer of each example."""
        return self._contents()[1]

    @once
    def _contents(self) -> tuple[Examples, np.ndarray]:
        files = [] if self.path is None else sorted(self.path.glob("*.json"))
        if not files:
            raise not_found(f"{FOLDER}/{self.split}/*.json", "LEAF's data/train and data/test")
        users = [user for file in files for user in read_leaf(file)]
        x = np.concatenate([pixels for _, pixels, _ in users]).reshape(-1, SIDE, SIDE, 1)
        y = np.concatenate([labels for _, _, labels in users])
        writers = np.repeat(np.array([name for name, *_ in users], object), [len(labels) for *_, labels in users])
        require(
            0 <= y.min() <= y.max() < CLASSES, f"{self.path} has labels from {y.min()} to {y.max()}, FEMNIST 0 to 61"
        )
        return Examples(x, y), writers


def read_leaf(file: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each user of a file of LEAF's: name, x float32 shape (n, 784), y int32 shape (n,).

    Errors: ConfigError for a file of another format.
    """
    try:
        held = json.loads(file.read_text("utf-8"))
        for user in held["users"]:
            examples: dict[str, Any] = held["user_data"][user]
            x = np.asarray(examples["x"], np.float32).reshape(-1, SIDE * SIDE)
            y = np.asarray(examples["y"]).astype(np.int32).reshape(len(x))
            yield str(user), x, y
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not a file of LEAF's FEMNIST ({type(error).__name__}: {error}): expected users, and "
            "user_data with x of 784 numbers and y"
        ) from error
