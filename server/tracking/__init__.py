"""Trackers: watchers that write a run into TensorBoard, MLflow or Weights & Biases while it goes on."""

from .mlflow import MLflow
from .named import tracker_named
from .tensorboard import TensorBoard
from .tracker import Tracker
from .wandb import WeightsAndBiases

__all__ = ["MLflow", "TensorBoard", "Tracker", "WeightsAndBiases", "tracker_named"]
