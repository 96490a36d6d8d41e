"""The ClientApp: a Message becomes a worker's work, and its result the reply."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ...core.errors import ClientError, ConfigError, UmbelError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.loading import load_experiment
from ...core.types import Broadcast, Failure, Population
from . import wire

if TYPE_CHECKING:  # TensorFlow is imported for the first message that needs it
    from ...clients.worker import Worker

Work = Callable[[int, "Worker", Broadcast, wire.Order, Context], "RecordDict | Failure"]
MEMORY = "umbel.memory"  # where in Context.state a client keeps its personal variables

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Say which client this node is. Cheap: neither the experiment nor TensorFlow is loaded."""
    return Message(wire.pack_identity(client_id(context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """A client's round. A failure of the experiment's is a reply with its reason; any other error is Flower's."""
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Metrics over this client's validation examples, with what it keeps at home."""
    return _answer(message, context, _evaluate)


def client_id(context: Context) -> int:
    """The partition-id of this node's own configuration (flower-supernode --node-config "partition-id=0").

    Errors: ConfigError without one.
    """
    client = context.node_config.get("partition-id")
    if type(client) is not int:
        raise ConfigError(
            f"expected partition-id={client!r} to be an integer; give it in the SuperNode's --node-config"
        )
    return client


def _answer(message: Message, context: Context, work: Work) -> Message:
    """work's reply; a failure that it foresees, as the reply that says so."""
    client, round = client_id(context), 0
    reference, overrides = str(context.run_config["experiment"]), str(context.run_config["overrides"])
    content: RecordDict | Failure
    try:
        order = wire.unpack_order(message.content)
        _check_same(_experiment(reference, overrides), order.digest)
        worker = _worker(reference, overrides, order.compile)
        broadcast = wire.unpack_broadcast(message.content, worker.experiment.transforms.init(worker.spec))
        round = broadcast.round
        content = work(client, worker, broadcast, order, context)
    except ClientError as error:
        content = Failure(client, "client_error", str(error))
    except (UmbelError, wire.Malformed) as error:
        content = Failure(client, "experiment", str(error))
    if isinstance(content, Failure):
        content = wire.pack_failure(round, content)
    return Message(content, reply_to=message)


def _train(client: int, worker: Worker, broadcast: Broadcast, order: wire.Order, context: Context):
    data, rows = _examples(worker.experiment.population, client)
    update, kept = worker.train(broadcast, client, order.key, data, rows, _memory(context))
    if isinstance(update, Failure):
        return update
    if kept:
        context.state[MEMORY] = wire.pack_memory(kept)
    return wire.pack_update(broadcast.round, update)


def _evaluate(client: int, worker: Worker, broadcast: Broadcast, order: wire.Order, context: Context):
    population = worker.experiment.validation
    if population is None:
        raise ConfigError("the experiment has no validation population to evaluate clients on")
    data, rows = _examples(population, client)
    # A fold of other clients has its own numbering: what this client keeps at home is not theirs.
    memory = None if hasattr(population, "members") else _memory(context)
    metrics = worker.evaluate(broadcast.params, data, rows, memory)
    return RecordDict({"metrics": wire.pack_metrics(metrics)})


@functools.lru_cache(maxsize=1)
def _experiment(reference: str, overrides: str) -> Experiment:
    """The experiment that a run's configuration names."""
    return load_experiment(reference, json.loads(overrides))


@functools.lru_cache(maxsize=1)
def _worker(reference: str, overrides: str, choice: str) -> Worker:
    """The experiment's worker, built once per process."""
    from ...clients.devices import configure_tensorflow, pick_devices
    from ...clients.worker import Worker

    configure_tensorflow()
    return Worker(_experiment(reference, overrides), pick_devices(None)[0], xla=choice == "xla", is_live=True)


def _check_same(experiment: Experiment, digest: str) -> None:
    """Raise ConfigError when this client's experiment is not the server's: their updates would add up to nothing."""
    if experiment.digest != digest:
        raise ConfigError(
            f"the client's experiment {experiment.name!r} is {experiment.digest[:12]}, the server's is {digest[:12]}; "
            "install the same versions of Umbel, of the experiment's file and of its data on both"
        )


def _examples(population: Population, client: int) -> tuple[Examples, np.ndarray]:
    """The arrays this client indexes into, and its rows of them."""
    resident = population.resident()
    if resident is not None:
        return resident, population.indices(client)
    own = population.examples(client)
    return own, np.arange(own.count, dtype=np.int32)


def _memory(context: Context) -> list[np.ndarray] | None:
    """What this client kept from its last round, None at first."""
    record = context.state.get(MEMORY)
    return wire.unpack_memory(record) if isinstance(record, ArrayRecord) else None
