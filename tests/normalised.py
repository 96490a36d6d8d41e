"""Clients whose BatchNorm sees the inputs, so that its statistics are those of the data and known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from federations import CLASSES, FEATURES
from umbel import AllClients, Experiment, FedAvg, History, Local, data


def normalised_input() -> Any:
    """Make a model whose BatchNorm sees the inputs, so that its statistics are those of the data.

    With momentum 0 they are those of one batch.
    """
    import keras

    layers = [keras.Input((FEATURES,)), keras.layers.BatchNormalization(momentum=0.0), keras.layers.Dense(CLASSES)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def far_apart() -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw six clients of unequal sizes, far apart, each of a deviation of about a tenth."""
    generator = np.random.default_rng(3)
    sizes = (4, 9, 16, 5, 12, 7)
    x = [generator.normal(5 * client, 0.1, (size, FEATURES)).astype(np.float32) for client, size in enumerate(sizes)]
    return [(one, generator.integers(0, CLASSES, len(one)).astype(np.int32)) for one in x]


def normalised(**changes: Any) -> Experiment:
    """Make an experiment with every client in every round, one step on all of its examples."""
    settings = {
        "name": "normalised",
        "model": normalised_input,
        "population": data.PerClient(far_apart()),
        "strategy": FedAvg(),
        "sampler": AllClients(),
        "local": Local(batch_size=None, learning_rate=0.1, shuffle=False),
        "rounds": 4,
    }
    return Experiment(**(settings | changes))


def statistics_of(history: History) -> np.ndarray:
    """Return every mean and variance, in the order of the vector."""
    return np.concatenate([history.params[place] for place in history.spec.statistics])
