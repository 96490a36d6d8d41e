"""The ClientApp: a Message becomes a worker's work, and its result the reply."""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ...clients.personal import evaluate_client
from ...clients.policy import Policy, Refused
from ...core.errors import ClientError, ConfigError, StoreError, UmbelError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.faults import crash_point
from ...core.protocols import Population
from ...core.types import Broadcast, Failure
from . import secure_tasks, wire
from .memory import Disk, client_home

if TYPE_CHECKING:  # TensorFlow is imported for the first message that needs it
    from ...clients.worker import Worker

Work = Callable[[Message, int, "Worker", Broadcast, wire.Order], "RecordDict | Failure"]
KEPT_RUNS, KEPT_BYTES = 16, 1 << 30  # that take turns, and have their models ready: so many at most, and in so much
COPIES = 4  # of its parameters, that a model takes: they themselves, what was received, gradients, what is sent

app = ClientApp()
_disk: Disk | None = None
_runs: OrderedDict[tuple[int, str, str], Prepared] = OrderedDict()  # the one whose turn it was last at the end


def keep_in(disk: Disk | None) -> None:
    """Where this process's clients keep their memory; None: in `client_home()`, not encrypted."""
    global _disk
    _disk = disk


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Say which client this node is. Cheap: neither the experiment nor TensorFlow is loaded."""
    return Message(wire.pack_identity(client_id(context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """A client's round. A failure of the experiment's is a reply with its reason; any other error is Flower's."""
    return _answer(message, context, _train)


@app.train("stage")
def stage(message: Message, context: Context) -> Message:
    """A later message of a round's hidden sum, to a client that trained for the first."""
    client = client_id(context)
    content: RecordDict | Failure
    try:
        content = secure_tasks.go_on(message.metadata.run_id, client, message.content)
    except UmbelError as error:
        content = Failure(client, "experiment", str(error))
    if isinstance(content, Failure):
        content = wire.pack_failure(0, content)
    return Message(content, reply_to=message)


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
    # By run, too: between two runs a file may have been edited, and this process outlives both.
    source = message.metadata.run_id, str(context.run_config["experiment"]), str(context.run_config["overrides"])
    content: RecordDict | Failure
    try:
        order = wire.unpack_order(message.content)
        prepared = _prepared(*source)
        _check_same(prepared.experiment, order.digest)
        worker = prepared.worker(order.compile)
        _let_go_of_others()
        broadcast = wire.unpack_broadcast(message.content, worker.experiment.transforms.init(worker.spec))
        round = broadcast.round
        _policy().check_round(worker.experiment, round, worker.spec.size)
        content = work(message, client, worker, broadcast, order)
    except ClientError as error:
        content = Failure(client, "client_error", str(error))
    except StoreError as error:
        content = Failure(client, "memory", str(error))
    except Refused as error:
        content = Failure(client, "policy", str(error))
    except (UmbelError, wire.Malformed) as error:
        content = Failure(client, "experiment", str(error))
    if isinstance(content, Failure):
        content = wire.pack_failure(round, content)
    return Message(content, reply_to=message)


def _train(message: Message, client: int, worker: Worker, broadcast: Broadcast, order: wire.Order):
    disk, round, run = _home(), broadcast.round, message.metadata.run_id
    part = None
    if worker.experiment.aggregation is not None:
        begun = secure_tasks.begin(run, client, worker.experiment, broadcast, message.content, disk.folder)
        if not isinstance(begun, secure_tasks.Part):
            return begun
        part = begun
    if order.memory:
        disk.keep_only(order.memory, client, order.since)
    data, rows = _examples(worker.experiment.population, client)
    update, kept = worker.train(broadcast, client, order.key, data, rows, _remembered(client, order))
    crash_point("client-training", round)
    if isinstance(update, Failure):
        return update
    if order.memory:
        disk.write(order.memory, client, round, kept)
    crash_point("client-trained", round)
    return wire.pack_update(round, update) if part is None else secure_tasks.enter(run, part, update)


def _evaluate(message: Message, client: int, worker: Worker, broadcast: Broadcast, order: wire.Order):
    population = worker.experiment.validation
    if worker.experiment.aggregation is not None:
        raise Refused(f"{worker.experiment.aggregation!r} is to hide what single clients say, their metrics included")
    if population is None:
        raise ConfigError("the experiment has no validation population to evaluate clients on")
    held_out, training = _examples(population, client), partial(_examples, worker.experiment.population, client)
    # A fold of other clients has its own numbering: what this client keeps at home is not theirs.
    memory = None if hasattr(population, "members") else _remembered(client, order)
    metrics = evaluate_client(worker, broadcast, client, held_out, memory, training)
    return RecordDict({"metrics": wire.pack_metrics(metrics)})


def _remembered(client: int, order: wire.Order) -> list[np.ndarray] | None:
    """What this client kept of the last round that it counted in, None at first."""
    return _home().read(order.memory, client, order.since) if order.memory and order.since else None


def _home() -> Disk:
    return Disk(client_home()) if _disk is None else _disk


class Prepared:
    """A run's experiment, and its workers, each built once, when it is first needed."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._workers: dict[str, Worker] = {}  # by how they compile

    def worker(self, choice: str) -> Worker:
        """The one that compiles so."""
        from ...clients.devices import configure_tensorflow, pick_devices
        from ...clients.worker import Worker

        if choice not in self._workers:
            configure_tensorflow()
            self._workers[choice] = Worker(self.experiment, pick_devices(None)[0], xla=choice == "xla", is_live=True)
            self._workers[choice].forget_initial_params()  # the server sends its own
        return self._workers[choice]

    @property
    def nbytes(self) -> int:
        """That it takes, about: models and examples."""
        examples = self.experiment.population.resident() if self._workers else None
        own = 0 if examples is None else examples.nbytes
        return own + sum(4 * COPIES * worker.spec.size for worker in self._workers.values())


def _prepared(run: int, reference: str, overrides: str) -> Prepared:
    """What there is for a run, whose configuration names an experiment that this client agrees to.

    Errors: Refused, ConfigError.
    """
    source = run, reference, overrides
    if source not in _runs:
        _runs[source] = Prepared(_policy().load(reference, json.loads(overrides)))
    _runs.move_to_end(source)
    return _runs[source]


def _let_go_of_others() -> None:
    """Forget the runs whose turn is the longest ago, where there are too many."""
    while len(_runs) > 1 and (len(_runs) > KEPT_RUNS or sum(one.nbytes for one in _runs.values()) > KEPT_BYTES):
        _runs.popitem(last=False)


@functools.cache
def _policy() -> Policy:
    """What this client agrees to, as it was when the process began."""
    return Policy.of_this_process()


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
