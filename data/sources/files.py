"""Files of arrays, and the base of all sources that read files. Nothing is read before `load`."""

from __future__ import annotations

import importlib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.validation import require, suggest
from ..values import fields_only, once


@dataclass(frozen=True)
class NpzFile:
    """Arrays of a NumPy .npz file, by name.

    Parameters
    ----------
    y, sample_weight
        None for none.
    group
        Name of an array of keys, one per example, for `ByKey`.

    Raises
    ------
    ConfigError
        For a file that is missing or corrupt, a name it does not hold, or an array of Python objects, since reading one
        could run code.
    """

    path: str | Path
    x: str = "x"
    y: str | None = "y"
    sample_weight: str | None = None
    group: str | None = None

    __getstate__ = fields_only

    @once
    def load(self) -> Examples:
        """Read the named arrays."""
        return Examples.of(read_npz(self.path, (self.x, self.y, self.sample_weight)))

    @once
    def groups(self) -> np.ndarray:
        """Read the key of each example."""
        require(self.group is not None, f"{self.path} has no groups: name the array of keys with group=…")
        return read_npz(self.path, (self.group,))[0]


def read_npz(path: str | Path, names: tuple[str | None, ...]) -> tuple[Any, ...]:
    """Read the arrays of an .npz file called `names`, None for None. Errors: ConfigError naming file and remedy."""
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


def require_file(path: str | Path) -> None:
    """Raise ConfigError unless path is a file."""
    require(Path(path).is_file(), f"no file at {path}: put it there, or correct path")


def optional_import(module: str, *, extra: str) -> ModuleType:
    """Import a module that only some sources need. Errors: ConfigError naming the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{package} is not installed: pip install 'umbel[{extra}]'") from error
