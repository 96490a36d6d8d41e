"""A trained model in the formats of other programs, written by Keras itself: `model.save` and `model.export`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from ...core.errors import ConfigError
from ...core.frozen import Base
from ...core.random import derive
from ...core.recipe import Recipe
from ...core.spec import ModelSpec
from ...core.system.quiet import without_native_logs
from ...core.types import Vector
from ..keras.building import BUILDING, as_keras, build_model, describe_model, reason
from ..keras.samples import sample_of
from .building import create_variables

CONFIG = "model.config"  # choice of a run that says how its model was built
NEEDS = {"onnx": ("onnx", "tf2onnx")}  # packages that a format needs besides Keras and TensorFlow
NOISY = ("tf2onnx", "tensorflow", "absl")  # loggers that tell how a conversion goes


def trained_model(
    experiment: Recipe, spec: ModelSpec, params: Vector, base: Base, choices: Mapping[str, str] | None = None
) -> keras.Model:
    """Build an experiment's model, and assign what a run has trained, frozen variables included.

    choices: the run's; with them the model's architecture and settings are held to the run's own.
    Errors: ConfigError for a model that is not the run's, or of which a part stays with each client.
    """
    check_whole(spec)
    with BUILDING:
        sample, key = as_keras(sample_of(experiment.population)), derive(experiment.seed, "model")
        model = build_model(experiment.model, sample, key, create_variables)
    now, before = describe_model(model.model), (choices or {}).get(CONFIG)
    if before is not None and now != before:
        raise ConfigError(
            f"the experiment's model changed since the run: its configuration was {before}, is now {now}; restore it, "
            "or export the weights alone, as .npz or .safetensors"
        )
    return spec.load_into(model.model, params, base)


def check_whole(spec: ModelSpec) -> None:
    """Raise ConfigError for a model of which a part stays with each client: nobody has all of it."""
    personal = [
        variable.path for variable in spec.variables if variable.is_at_home and variable.dtype.startswith("float")
    ]
    if personal:
        raise ConfigError(
            f"{personal[0]} stays with each client, so that there is no whole model to export; export what clients "
            "share, as .npz or .safetensors"
        )


def write_model(model: keras.Model, path: Path, format: str) -> None:
    """Write a built model to path: as "keras", "saved_model" (a folder), "onnx" or "litert".

    Errors: ConfigError where a package is missing, or where Keras cannot write the model in that format.
    """
    missing = [name for name in NEEDS.get(format, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{format} needs {missing[0]}: pip install 'umbel[{format}]'")
    try:
        with _quietly():
            WRITERS[format](model, str(path))
    except OSError:
        raise
    except Exception as error:  # converters raise whatever their libraries do
        raise ConfigError(
            f"Keras cannot write this model as {format}: {type(error).__name__}: {reason(error)}"
        ) from error


def _save(model: keras.Model, path: str) -> None:
    model.save(path)


def _exported(format: str) -> Callable[[Any, str], None]:
    def export(model: keras.Model, path: str) -> None:
        model.export(path, format=format, verbose=False)

    return export


WRITERS: Mapping[str, Callable[[Any, str], None]] = {
    "keras": _save,
    "saved_model": _exported("tf_saved_model"),
    "onnx": _exported("onnx"),
    "litert": _exported("litert"),
}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what converters print, warn of and log off the console."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with without_native_logs(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
