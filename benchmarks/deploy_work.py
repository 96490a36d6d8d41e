"""Work that `benchmarks/deploy.py` deploys: a tiny MLP on handwritten digits, and a model of 100 MB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from umbel import Examples, Experiment, FedAvg, FixedCohort, Local
from umbel.data import Digits, Iid, Partitioned

CLIENTS = 3  # number of the tiny model's clients
LARGE_CLIENTS = 2  # number of the large model's clients
EPOCHS, BATCH_SIZE, LEARNING_RATE = 1, 32, 0.1
SIDE = 5000  # height and width of the large model's one matrix
LARGE_BYTES = 4 * SIDE * SIDE


def build_tiny() -> Any:
    """Build an MLP of 64-32-10: what a round takes is not the arithmetic."""
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LEARNING_RATE), loss, metrics=["accuracy"])
    return model


def build_large() -> Any:
    """Build a model of 25,000,000 parameters in one matrix."""
    import keras

    model = keras.Sequential([keras.Input((SIDE,)), keras.layers.Dense(SIDE, use_bias=False)])
    model.compile(keras.optimizers.SGD(LEARNING_RATE), "mse")
    return model


@dataclass(frozen=True)
class Rows:
    """A few rows for the large model."""

    count: int = 4

    def load(self) -> Examples:
        """Make zeros, and a one in each row."""
        x = np.zeros((self.count, SIDE), np.float32)
        x[:, 0] = 1.0
        return Examples.of((x, np.zeros((self.count, SIDE), np.float32)))


def part(split: str) -> Partitioned:
    """Deal the digits of a split to the clients."""
    return Partitioned(Digits(split), by=Iid(), clients=CLIENTS)


experiments = {
    "tiny": Experiment(
        name="tiny",
        model=build_tiny,
        population=part("train"),
        validation=part("test"),
        strategy=FedAvg(),
        sampler=FixedCohort(CLIENTS),
        local=Local(epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE),
    ),
    "large": Experiment(
        name="large",
        model=build_large,
        population=Partitioned(Rows(), by=Iid(), clients=LARGE_CLIENTS),
        strategy=FedAvg(),
        sampler=FixedCohort(LARGE_CLIENTS),
        local=Local(epochs=1, batch_size=2, learning_rate=LEARNING_RATE),
    ),
}
