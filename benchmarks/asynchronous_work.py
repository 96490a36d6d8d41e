"""Work that `benchmarks/asynchronous.py` deploys: digits on four nodes, one of which takes ten times as long."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from umbel import Examples, Experiment, FedAvg, FixedCohort, Local
from umbel.data import Digits, Generated
from umbel.strategies.fedbuff import FedBuff

CLIENTS = 4
SECONDS = (2.0, 2.0, 2.0, 20.0)  # time that each client's examples take to come, which stands for its training


def build_model() -> Any:
    """Build a linear classifier: what a round takes is not the arithmetic."""
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(), loss, metrics=["accuracy"])
    return model


def make(client: int) -> Examples:
    """Return every fourth digit, after a while."""
    time.sleep(SECONDS[client])
    digits = Digits("train").load()
    return Examples.of((digits.x[client:1436:CLIENTS], digits.y[client:1436:CLIENTS]))


synchronous = Experiment(
    name="synchronous",
    model=build_model,
    population=Generated(CLIENTS, make, 359),
    strategy=FedAvg(),
    sampler=FixedCohort(CLIENTS),
    local=Local(epochs=1, batch_size=32, learning_rate=0.1),
    rounds=40,
    test=Digits("test"),
)
experiments = {
    "synchronous": synchronous,
    "asynchronous": dataclasses.replace(synchronous, name="asynchronous", strategy=FedBuff(buffer=1), rounds=200),
}
