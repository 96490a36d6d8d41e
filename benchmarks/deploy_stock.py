"""The same work as a stock Flower app: its own FedAvg, its own Keras template, a process per message.

The tiny model is trained and evaluated as Flower's Keras template does it: built and compiled for each message. The
large one is not trained at all, and nothing imports TensorFlow: the clients send back what they received.
"""

from __future__ import annotations

import json
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from umbel.benchmarks import deploy_work as work
from umbel.runtimes.flower.compat import PushTaskEventsRequest, TaskEvent

client = ClientApp()
server = ServerApp()


def tell(grid, event, content):
    """Hand an event of the run to whoever submitted it, over the client of Flower's own grid."""
    request = PushTaskEventsRequest(events=[TaskEvent(event=event, data=json.dumps(content))])
    grid._runtime_client.PushTaskEvents(request)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Fit the tiny model, or send the large one back."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    metrics = {"num-examples": 1}
    if context.run_config["work"] == "tiny":
        model, (x, y) = work.build_tiny(), _part("train", context)
        model.set_weights(arrays)
        model.fit(x, y, batch_size=work.BATCH_SIZE, epochs=work.EPOCHS, verbose=0)
        arrays, metrics = model.get_weights(), {"num-examples": len(y)}
    return _reply(message, {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure loss and accuracy on the client's own test examples."""
    model, (x, y) = work.build_tiny(), _part("test", context)
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    loss, accuracy = model.evaluate(x, y, verbose=0)
    metrics = {"num-examples": len(y), "loss": float(loss), "accuracy": float(accuracy)}
    return _reply(message, {"metrics": MetricRecord(metrics)})


class Timed(FedAvg):
    """FedAvg that tells when rounds begin."""

    grid: Grid

    def configure_train(self, server_round, arrays, config, grid):
        """Tell that a round begins, then begin it."""
        tell(grid, "round", {"round": server_round, "time": time.time()})
        return super().configure_train(server_round, arrays, config, grid)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Play as many rounds as asked for."""
    is_tiny, clients = context.run_config["work"] == "tiny", int(context.run_config["clients"])
    weights = work.build_tiny().get_weights() if is_tiny else [np.zeros((work.SIDE, work.SIDE), np.float32)]
    strategy = Timed(
        fraction_evaluate=float(is_tiny),
        min_train_nodes=clients,
        min_evaluate_nodes=clients if is_tiny else 0,
        min_available_nodes=clients,
    )
    arrays = ArrayRecord(weights)
    del weights
    tell(grid, "start", {})
    result = strategy.start(grid, initial_arrays=arrays, num_rounds=int(context.run_config["rounds"]))
    accuracy = [record["accuracy"] for record in result.evaluate_metrics_clientapp.values()]
    tell(grid, "final", {"time": time.time(), "accuracy": accuracy[-1] if accuracy else None})


def _part(split: str, context: Context) -> tuple[np.ndarray, np.ndarray]:
    population = work.part(split)
    examples = population.examples(int(context.node_config["partition-id"]))
    return np.asarray(examples.x), np.asarray(examples.y)


def _reply(message: Message, content: dict) -> Message:
    return Message(RecordDict(content), reply_to=message)
