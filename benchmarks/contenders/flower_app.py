"""Flower's simulation: server and clients on the Message API, in a module that Ray's actors can import.

Two clients: the usual one is that of Flower's TensorFlow template, which clears the session, then builds and compiles a
Keras model for each message; the tuned one keeps one per actor. Both keep the data set.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import workload
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


@functools.cache
def dealt(model: str) -> tuple[workload.Digits, np.ndarray]:
    """Load the data set and the partition, once per actor."""
    return workload.load(model), workload.partition()


def fresh(model: str) -> Any:
    """Build a model, as the template makes it: all else in the session is forgotten, and accuracy is tracked."""
    keras.backend.clear_session()
    built = workload.build(keras, model)
    built.compile(built.optimizer, built.loss, metrics=["accuracy"])
    return built


@functools.cache
def kept(model: str) -> Any:
    """Return the actor's one model."""
    return workload.build(keras, model)


def train(model_of: Callable[[str], Any], message: Message, context: Context) -> Message:
    """Train one local epoch by `fit`."""
    name = message.content["config"]["model"]
    digits, rows = dealt(name)
    own = rows[context.node_config["partition-id"]]
    model = model_of(name)
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    model.fit(digits.x[own], digits.y[own], batch_size=workload.BATCH, verbose=0)
    metrics = MetricRecord({"num-examples": len(own)})
    content = RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics})
    return Message(content=content, reply_to=message)


usual, tuned = ClientApp(), ClientApp()


@usual.train()
def train_usual(message: Message, context: Context) -> Message:
    return train(fresh, message, context)


@tuned.train()
def train_tuned(message: Message, context: Context) -> Message:
    return train(kept, message, context)


class TimedFedAvg(FedAvg):
    """FedAvg that reports each round, from sampling the cohort to the new params."""

    def __init__(self, model: str, rounds: int) -> None:
        # fraction_train = 0.1 alone would sample too few in round 1, before all nodes are there.
        cohort = {"min_train_nodes": workload.COHORT, "min_available_nodes": workload.CLIENTS}
        super().__init__(fraction_train=workload.COHORT / workload.CLIENTS, fraction_evaluate=0.0, **cohort)
        self.model, self.rounds, self.began = model, rounds, 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.began = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        if len(replies) != workload.COHORT or any(reply.has_error() for reply in replies):
            raise RuntimeError(f"round {server_round}: {len(replies)} replies, some of them errors")
        arrays, metrics = super().aggregate_train(server_round, replies)
        seconds = time.perf_counter() - self.began
        last = server_round == self.rounds
        workload.report(server_round, seconds, self.accuracy(arrays) if last else None)
        return arrays, metrics

    def accuracy(self, arrays: ArrayRecord) -> float:
        """Measure on the test set, in the server's process."""
        model = kept(self.model)
        model.set_weights(arrays.to_numpy_ndarrays())
        return workload.accuracy(model.predict_on_batch, workload.load(self.model))


def simulate(client: ClientApp) -> None:
    """Simulate with two actors of one CPU each: on two cores, faster than one actor of two."""
    options = workload.arguments()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    random.seed(1)  # Flower samples nodes from the global generator
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        TimedFedAvg(options.model, options.rounds).start(
            grid=grid,
            initial_arrays=ArrayRecord(workload.initial(options.model)),
            num_rounds=options.rounds,
            train_config=ConfigRecord({"model": options.model}),
        )

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server, client, num_supernodes=workload.CLIENTS, backend_config=resources)
