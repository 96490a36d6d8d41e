"""A trained model, written for other programs: as arrays, or as the whole model that an experiment builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.frozen import Base
from ..core.spec import ModelSpec
from ..core.system.backend import require_tensorflow
from ..core.system.quiet import without_native_logs
from ..core.types import Vector
from ..server import saved
from ..server.history import History

# What a file of each format ends in; a SavedModel is a folder. The first two hold arrays by their variables' paths.
FORMATS = {
    "npz": ".npz",
    "safetensors": ".safetensors",
    "keras": ".keras",
    "saved_model": "",
    "onnx": ".onnx",
    "litert": ".tflite",
}


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model as a run or a version of the registry holds it, and the experiment that builds it."""

    spec: ModelSpec
    params: Vector
    base: Base
    experiment: Experiment | None = None  # None: arrays are all that can be written
    choices: Mapping[str, str] = field(default_factory=dict)  # the run's; the model is held to them
    notes: Mapping[str, str] = field(default_factory=dict)  # text for the header of a .safetensors file

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that the model holds but what stays with clients, by the variables' paths.

        Numbers of types that NumPy has not (bfloat16) are float32, which holds each of them.
        """
        arrays = self.spec.arrays(self.params, self.base)
        return {path: one.astype(np.float32) if one.dtype.kind == "V" else one for path, one in arrays.items()}


def export(model: TrainedModel, path: Path, format: str | None = None) -> None:
    """Write a model to path.

    format: one of FORMATS; None: by what path ends in. "npz" and "safetensors" hold arrays; the others the whole model,
    as Keras writes it. A SavedModel replaces nothing: its folder has to be new or empty.
    Errors: ConfigError for another format or ending, a model that nobody has whole (`personal`), a package that is
    missing, a format that cannot hold the model, or a path that cannot be written.
    """
    format = checked_format(path, format)
    try:
        if format == "npz":
            with open(path, "wb") as file:
                np.savez(file, allow_pickle=False, **model.arrays())
        elif format == "safetensors":
            _write_safetensors(model, path)
        else:
            _write_whole(model, path, format)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def checked_format(path: Path, format: str | None) -> str:
    """Return the format of what is to be written. Errors: ConfigError where it is unknown, or path ends otherwise."""
    if format is None:
        format = next((name for name, suffix in FORMATS.items() if suffix == path.suffix), None)
        if format is None:
            endings = ", ".join(suffix for suffix in FORMATS.values() if suffix)
            raise ConfigError(f"expected path={str(path)!r} to end in {endings}, or in nothing for a SavedModel")
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    suffix = FORMATS[format]
    if suffix and path.suffix != suffix:
        raise ConfigError(f"expected output={str(path)!r} to end in {suffix}")
    if format == "saved_model" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is there already, and not an empty folder; choose another place for a SavedModel")
    return format


def _write_safetensors(model: TrainedModel, path: Path) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ConfigError("safetensors needs its package: pip install 'umbel[safetensors]'") from error
    arrays = {name: np.ascontiguousarray(array) for name, array in model.arrays().items()}
    save_file(arrays, path, metadata=dict(model.notes))


def _write_whole(model: TrainedModel, path: Path, format: str) -> None:
    if model.experiment is None:
        raise ConfigError(
            f"{format} needs the model itself, and this history was read without the experiment that builds it; save "
            "arrays, as .npz or .safetensors"
        )
    require_tensorflow("Whole models are exported")
    with without_native_logs():
        from ..clients.tensorflow.exported import trained_model, write_model
    recipe = model.experiment.resolved
    write_model(trained_model(recipe, model.spec, model.params, model.base, model.choices), path, format)


def save_history(history: History, path: Path, format: str | None) -> None:
    """Write the model that a run ended with: see `History.save`."""
    notes = {"experiment": history.experiment, "run": history.run or "", "params_sha256": history.params_sha256}
    export(TrainedModel(history.spec, history.params, history.base, history.played, notes=notes), path, format)


def register() -> None:
    """Let `History.save` save models."""
    saved.use(save_history)
