"""Small federations that tests share. TensorFlow is imported when a model is built, not before."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from umbel import Chain, Experiment, FedAvg, FixedCohort, Local, data

FEATURES, CLASSES = 6, 3


def dense(dropout: float = 0.0, normalised: bool = False, optimizer: str = "SGD", **settings: Any) -> Any:
    """Make a compiled two-layer model for `blobs`."""
    import keras

    layers = [keras.Input((FEATURES,)), keras.layers.Dense(8, "relu")]
    layers += [keras.layers.BatchNormalization()] if normalised else []
    layers += [keras.layers.Dropout(dropout)] if dropout else []
    model = keras.Sequential([*layers, keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        getattr(keras.optimizers, optimizer)(**({"learning_rate": 0.1} | settings)), loss, metrics=["accuracy"]
    )
    return model


def dropped_and_normalised() -> Any:
    """Make a model with everything that is random or remembered inside."""
    return dense(dropout=0.4, normalised=True)


def normalised() -> Any:
    """Make a model with BatchNorm alone."""
    return dense(normalised=True)


def adam() -> Any:
    """Make a model whose optimizer has state."""
    return dense(optimizer="Adam", learning_rate=0.01)


def adapted() -> Any:
    """Make a model whose first layer is frozen under LoRA."""
    model = dense()
    model.layers[0].enable_lora(2)
    return model


def measured() -> Any:
    """Make a model whose metrics are more than means: a confusion matrix, a maximum, two values in a dict."""
    import keras
    from support.metrics_tried import InDict, Largest

    model = adam()
    own = [keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False, name="iou"), Largest("largest"), InDict("in_dict")]
    model.compile(model.optimizer, model.loss, metrics=["accuracy", *own])
    return model


def blobs(count: int = 103, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw three Gaussian classes: x float32 (count, FEATURES), y int32 (count,)."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, count).astype(np.int32)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    return (centres[y] + generator.normal(size=(count, FEATURES))).astype(np.float32), y


@functools.cache
def shared() -> tuple[data.Partitioned, tuple[np.ndarray, np.ndarray]]:
    """Return the clients of every `federation`, and its test examples: for the same arrays workers are built once."""
    clients = data.Partitioned(data.Arrays(*blobs()), by=data.LogNormal(sigma=0.5), clients=8)
    return clients, blobs(64, seed=5)


def federation(**changes: Any) -> Experiment:
    """Make eight clients of unequal size, four a round, three rounds; fields replaced by changes."""
    population, test = shared()
    base = Experiment(
        name="small",
        model=dense,
        population=population,
        strategy=FedAvg(),
        sampler=FixedCohort(4),
        local=Local(epochs=2, batch_size=5, learning_rate=0.1),
        transforms=Chain(),
        rounds=3,
        seed=1,
        test=test,
    )
    return dataclasses.replace(base, **changes)


class Nowhere:
    """Client memory that forgets: for calls below `run`."""

    def read(self, client: int) -> None:
        """Return None: nothing was kept."""

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Forget the arrays."""
