"""pfl-research: `FederatedAveraging` over `SimulatedBackend` with its TensorFlow model (legacy Keras)."""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import workload
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.tensorflow import TFModel


class Watch(TrainingProcessCallback):
    """A callback that reports each round; the clock starts again when its own work is done."""

    def __init__(self, rounds: int, accuracy: Callable[[], float]) -> None:
        self.rounds, self.accuracy, self.began = rounds, accuracy, time.perf_counter()

    def after_central_iteration(self, metrics: Metrics, model: Any, *, central_iteration: int) -> tuple[bool, Metrics]:
        seconds = time.perf_counter() - self.began
        last = central_iteration + 1 == self.rounds
        workload.report(central_iteration + 1, seconds, self.accuracy() if last else None)
        self.began = time.perf_counter()
        return False, Metrics()


def main() -> None:
    options = workload.arguments()
    digits, rows = workload.load(options.model), workload.partition()
    order = (client for round in range(1, options.rounds + 2) for client in workload.cohort(round))
    generator = np.random.default_rng(3)

    def examples(client: int) -> Dataset:
        own = generator.permutation(rows[client])
        return Dataset([tf.constant(digits.x[own]), tf.constant(digits.y[own])], user_id=str(client))

    keras_model = workload.build(tf.keras, options.model)
    model = TFModel(keras_model, metrics={}, central_optimizer=tf.keras.optimizers.SGD(1.0))
    clients = FederatedDataset(examples, lambda: next(order))
    FederatedAveraging().run(
        # No rounds of evaluation but the first, which pfl always has; with no metrics it costs a forward pass.
        NNAlgorithmParams(
            central_num_iterations=options.rounds,
            evaluation_frequency=options.rounds,
            train_cohort_size=workload.COHORT,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=clients, val_data=clients),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.LEARNING_RATE, local_batch_size=workload.BATCH
        ),
        callbacks=[Watch(options.rounds, lambda: workload.accuracy(keras_model.predict_on_batch, digits))],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
