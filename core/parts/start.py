"""Weights that an experiment starts from, in place of those that its model's builder draws."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..spec import settle
from ..validation import require

SUFFIXES = (".keras", ".weights.h5", ".npz")
PINNED = re.compile(r"(?P<path>.+) sha256:(?P<digest>[0-9a-f]{16})")  # a file, as a run has it on record


class InitialWeights(ABC):
    """Weights to start from. They are part of the experiment: a run is resumed with those that it began with."""

    @abstractmethod
    def describe(self) -> str:
        """Return text that other weights would not have."""

    @abstractmethod
    def load_into(self, model: Any) -> None:
        """Assign the weights to a built Keras model, frozen ones too. Errors: ConfigError where they do not fit it."""


@dataclass(frozen=True)
class WeightsFile(InitialWeights):
    """Weights of a file: .keras or .weights.h5, as Keras saves them, or .npz, as `umbel models export` does.

    Only weights are read, no code. digest: the beginning of the file's SHA-256, where it has to be that very file.
    """

    path: str
    digest: str | None = None

    @staticmethod
    def of(text: str | os.PathLike[str]) -> WeightsFile:
        """Return the file at a path; of "FILE.keras sha256:…", as a run has it on record, that very file."""
        pinned = PINNED.fullmatch(str(text))
        return WeightsFile(str(text)) if pinned is None else WeightsFile(pinned["path"], pinned["digest"])

    def __post_init__(self) -> None:
        suffixes = ", ".join(SUFFIXES)
        require(
            str(self.path).endswith(SUFFIXES), f"expected start={str(self.path)!r} to be a file that ends in {suffixes}"
        )

    def describe(self) -> str:
        """Return the file's name and the beginning of its SHA-256."""
        return f"{Path(self.path).name} sha256:{self._checked()}"

    def load_into(self, model: Any) -> None:
        """Assign the file's weights. The optimizer begins as it was built, whatever the file holds of one."""
        self._checked()
        try:
            if self.path.endswith(".npz"):
                _load_arrays(model, self.path)
                return
            optimizer = [variable.numpy() for variable in model.optimizer.variables]
            model.load_weights(self.path)
            for variable, value in zip(model.optimizer.variables, optimizer, strict=True):
                variable.assign(value)
        except ConfigError:
            raise
        except Exception as error:  # Keras, HDF5 and zipfile have kinds of their own
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"the weights of start={self.path!r} do not fit the model: {reason}") from error

    def _checked(self) -> str:
        digest = _file_digest(self.path)
        require(
            self.digest is None or digest == self.digest,
            f"start={self.path!r} has changed since the run began: its SHA-256 was {self.digest}…, is now {digest}…; "
            "restore it",
        )
        return digest


def _load_arrays(model: Any, path: str) -> None:
    """Assign arrays by the paths of the model's variables; each has to be there, and no other."""
    with np.load(path, allow_pickle=False) as held:
        paths = [weight.path for weight in model.weights]
        missing, more = sorted(set(paths) - set(held.files)), sorted(set(held.files) - set(paths))
        if missing or more:
            what = f"it lacks {missing[0]}" if missing else f"it has {more[0]}, which the model lacks"
            raise ConfigError(f"the weights of start={path!r} do not fit the model: {what}")
        for weight in model.weights:
            weight.assign(held[weight.path])
    settle(model)


def _file_digest(path: str) -> str:
    """Return the first 16 hex digits of a file's SHA-256. Errors: ConfigError where it cannot be read."""
    try:
        status = os.stat(path)
        return _digest_of(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ConfigError(
            f"cannot read start={path!r}: {error.strerror}; put the file there, or correct the path"
        ) from error


@lru_cache(maxsize=16)
def _digest_of(path: str, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
