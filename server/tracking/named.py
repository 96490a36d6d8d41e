"""Trackers by the words that `umbel run --track` takes."""

from __future__ import annotations

from ...core.errors import ConfigError
from ...core.validation import suggest
from .mlflow import MLflow
from .tensorboard import TensorBoard
from .tracker import Tracker
from .wandb import WeightsAndBiases

KINDS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}


def tracker_named(text: str) -> Tracker:
    """Return the tracker that `umbel run --track` names: "tensorboard", "mlflow" or "wandb".

    After "=" comes its place: a folder of TensorBoard's, a tracking URI of MLflow's, a project of W&B's. Errors:
    ConfigError for another name, or a package that is not installed.
    """
    name, _, place = text.partition("=")
    if name not in KINDS:
        raise ConfigError(f"unknown tracker {name!r}: {suggest(name, KINDS)}")
    return KINDS[name](*[place] if place else [])
