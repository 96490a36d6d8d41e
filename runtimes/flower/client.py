"""The ClientApp: a Message becomes a worker's work, and its result the reply."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ...clients.discreet import held_back
from ...clients.engine import Engine
from ...clients.personal import evaluate_client
from ...clients.policy import Policy, Refused, name_of
from ...clients.round import abstain, train_client
from ...clients.spending import Spending, SpendingFile
from ...core.bases import Population
from ...core.errors import ClientError, ConfigError, StoreError, UmbelError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.parts.algorithms import SplitStrategy
from ...core.parts.discretion import is_discreet
from ...core.reading.compatible import check_fresh
from ...core.system.backend import require_tensorflow
from ...core.system.faults import crash_point
from ...core.types import Broadcast, Failure
from . import secure_tasks, wire
from .first_half import Opener, Passage
from .identity import PartyIdentity
from .memory import Disk, client_home

if TYPE_CHECKING:  # TensorFlow is imported for the first message that needs it
    from ...clients.tensorflow.engine import TensorFlowEngine

Work = Callable[[Message, int, Engine, Broadcast, wire.Order, Callable[[], None]], "RecordDict | Failure"]
KEPT_RUNS, KEPT_BYTES = 16, 1 << 30  # most runs, and their most bytes, whose models are ready as they take turns
COPIES = 4  # copies of its parameters that a model takes: they themselves, what was received, gradients, what is sent

log = logging.getLogger(__name__)  # the client's own log: nothing in it is sent
app = ClientApp()
_disk: Disk | None = None
_replicas = 1
_opener: Opener | None = None
_identity: PartyIdentity | None = None
_runs: OrderedDict[tuple[int, str, str], Prepared] = OrderedDict()  # the one that was last used at the end


def keep_in(disk: Disk | None) -> None:
    """Say where this process's clients keep their memory; None: in `client_home()`, not encrypted."""
    global _disk
    _disk = disk


def divide_among(replicas: int) -> None:
    """Say among how many devices of this host its clients' batches are divided; 1: one trains alone."""
    global _replicas
    _replicas = replicas


def cross_by(opener: Opener | None, identity: PartyIdentity | None = None) -> None:
    """Say how this process's clients open channels of steps, for models that are cut; None: they cannot.

    identity: what they prove themselves by; None in a federation that signs nothing.
    """
    global _opener, _identity
    _opener, _identity = opener, identity


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Say which client this node is. Cheap: neither the experiment nor TensorFlow is loaded."""
    return Message(wire.pack_identity(client_id(context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Play a client's round. A failure of the experiment's is a reply with its reason; any other error is Flower's."""
    return _answer(message, context, _train)


@app.train("stage")
def stage(message: Message, context: Context) -> Message:
    """Answer a later message of a round's hidden sum, to a client that trained for the first."""
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
    """Measure over this client's validation examples, with what it keeps at home."""
    return _answer(message, context, _evaluate)


def client_id(context: Context) -> int:
    """Return the partition-id of this node's own configuration (flower-supernode --node-config "partition-id=0").

    Errors: ConfigError without one.
    """
    client = context.node_config.get("partition-id")
    if type(client) is not int:
        raise ConfigError(
            f"expected partition-id={client!r} to be an integer; give it in the SuperNode's --node-config"
        )
    return client


def _answer(message: Message, context: Context, work: Work) -> Message:
    """Return work's reply; a failure that it foresees, as the reply that says so."""
    client, round = client_id(context), 0
    # By run, too: between two runs a file may have been edited, and this process outlives both.
    source = message.metadata.run_id, str(context.run_config["experiment"]), str(context.run_config["overrides"])
    content: RecordDict | Failure
    try:
        order = wire.unpack_order(message.content)
        prepared = _prepared(*source)
        _check_same(prepared.experiment, order.digest)
        worker = prepared.worker(order.compile, order.terms)
        _check_base(worker, order.base)
        _let_go_of_others()
        broadcast = wire.unpack_broadcast(message.content, worker.experiment.transforms.init(worker.spec))
        round = broadcast.round
        _check_size(worker, broadcast)
        _policy().check_round(worker.experiment, round, worker.spec.size)
        charge = partial(_charge, client, source[1], worker, order.digest)
        content = work(message, client, worker, broadcast, order, charge)
    except ClientError as error:
        content = Failure(client, "client_error", str(error))
    except StoreError as error:
        content = Failure(client, "memory", str(error))
    except Refused as error:
        content = Failure(client, "policy", str(error))
    except (UmbelError, wire.Malformed) as error:
        content = Failure(client, "experiment", str(error))
    if isinstance(content, Failure):
        log.warning("this client is left out of round %d: %s: %s", round, content.reason, content.detail)
        content = wire.pack_failure(round, content)
    return Message(content, reply_to=message)


def _charge(client: int, reference: str, worker: Engine, digest: str) -> None:
    """Put a reply on this client's own account, before it is made. Errors: Refused where it would be one too many."""
    experiment, plan = worker.experiment, worker.experiment.plan
    spent = Spending(1, {} if plan is None else plan.charge({}))
    variant = f"{digest[:16]}/{worker.spec.digest[:16]}"
    account = SpendingFile.of(_home().folder, client)
    account.charge(name_of(reference), variant, spent, partial(_policy().check_spending, experiment))


def _train(message: Message, client: int, worker: Engine, broadcast: Broadcast, order: wire.Order, charge):
    disk, run = _home(), message.metadata.run_id
    part = None
    if worker.experiment.secure_aggregation is not None:
        experiment = worker.experiment
        joins = worker.joins("train")
        begun = secure_tasks.begin(
            run, client, experiment, joins, order.digest, broadcast, message.content, disk.folder
        )
        if not isinstance(begun, secure_tasks.SumPart):
            return begun
        part = begun
    charge()
    train = partial(_reply, run, client, worker, broadcast, order, message.content, part)
    return held_back(client, train) if is_discreet(worker.experiment) else train()


def _reply(
    run: int,
    client: int,
    worker: Engine,
    broadcast: Broadcast,
    order: wire.Order,
    content: RecordDict,
    part: secure_tasks.SumPart | None,
) -> RecordDict | Failure:
    """Train, note what the client keeps, and pack what leaves it."""
    with _crossing(run, worker, content) as attempt:
        update, kept = _trained(client, worker, broadcast, order)
    crash_point("client-training", broadcast.round)
    if isinstance(update, Failure):
        return update
    if order.memory:
        # Not before it has trained: an order that comes late, and to nothing, must not take what counts by now.
        _home().keep_only(order.memory, client, order.since, order.committed)
        _home().write(order.memory, client, order.number, kept)
    crash_point("client-trained", broadcast.round)
    if part is not None:
        return secure_tasks.enter(run, part, update)
    return RecordDict({**wire.pack_update(broadcast.round, update), **attempt})


@contextlib.contextmanager
def _crossing(run: int, worker: Engine, content: RecordDict) -> Iterator[RecordDict]:
    """Let a model that is cut train inside; yield what its reply says of that. Nothing for a whole one."""
    if not isinstance(worker.experiment.strategy, SplitStrategy):
        yield RecordDict()
        return
    if _opener is None:
        raise ConfigError(
            f"{worker.experiment.strategy!r} needs a connection that is kept open for the steps, which Flower's "
            "SuperNode does not have; start the client by umbel client start"
        )
    invitation = wire.unpack_invitation(content)
    with Passage(partial(_opener, run, invitation.session), invitation, _identity) as passage:
        cast("TensorFlowEngine", worker).cross_by(passage)
        yield wire.pack_attempt(passage.attempt)


def _trained(client: int, worker: Engine, broadcast: Broadcast, order: wire.Order) -> tuple[Any, list[np.ndarray]]:
    """Play a client's round. Examples that cannot be read count as nothing, where a failure would tell of them."""
    memory = _remembered(client, order)
    try:
        data, rows = _examples(worker.experiment.population, client)
    except Exception:
        # DP-SGD's noise depends on how many examples there are: without them only a failure is left.
        if not is_discreet(worker.experiment) or worker.experiment.local.per_example is not None:
            raise
        log.exception("client %d cannot read its examples, and adds nothing", client)
        return abstain(worker, broadcast, order.key), worker.initial_memory if memory is None else memory
    try:
        _policy().check_work(worker.experiment, len(rows))
    except Refused as error:
        # A refusal tells how many examples there are. Of DP-SGD that number is public.
        if not is_discreet(worker.experiment) or worker.experiment.local.per_example is not None:
            raise
        log.warning("client %d adds nothing: %s", client, error)
        return abstain(worker, broadcast, order.key), worker.initial_memory if memory is None else memory
    played = train_client(worker, broadcast, client, order.key, data, rows, memory)
    return played.content, played.memory


def _evaluate(message: Message, client: int, worker: Engine, broadcast: Broadcast, order: wire.Order, charge):
    population = worker.experiment.validation_clients()
    if worker.experiment.secure_aggregation is not None:
        raise Refused(
            f"{worker.experiment.secure_aggregation!r} is to hide what single clients say, their metrics included"
        )
    if population is None:
        raise ConfigError("the experiment has no validation population to evaluate clients on")
    held_out, training = _examples(population, client), partial(_examples, worker.experiment.population, client)
    # A fold of other clients has its own numbering: what this client keeps at home is not theirs.
    memory = None if population.is_some_clients else _remembered(client, order)
    metrics = evaluate_client(worker, broadcast, client, held_out, memory, training)
    return RecordDict(wire.pack_metrics(metrics))


def _remembered(client: int, order: wire.Order) -> list[np.ndarray] | None:
    """Read what this client kept of the last round that it counted in, None at first."""
    return _home().read(order.memory, client, order.since) if order.memory and order.since else None


def _home() -> Disk:
    return Disk(client_home()) if _disk is None else _disk


class Prepared:
    """A run's experiment, and its workers, each built once, when it is first needed."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._workers: dict[str, TensorFlowEngine] = {}  # workers by how they compile

    def worker(self, choice: str, terms: str) -> TensorFlowEngine:
        """Return the worker that compiles so.

        terms: on which metrics travel. Errors: ConfigError where it has other metrics.
        """
        from ...clients.keras.agreed import Agreement
        from ...clients.keras.metric_terms import MetricTerms
        from ...clients.tensorflow.devices import configure_tensorflow, pick_devices, replica_devices
        from ...clients.tensorflow.engine import TensorFlowEngine
        from ...clients.tensorflow.split import RemoteHalf

        require_tensorflow("Clients over Flower train")
        if choice not in self._workers:
            configure_tensorflow()
            agreement = Agreement.on(MetricTerms.from_json(terms))
            devices = replica_devices(_replicas) if _replicas > 1 else tuple(pick_devices(None)[:1])
            if _replicas > 1 and choice == "xla":
                raise ConfigError(f"replicas={_replicas} are compiled as a graph, and the run with XLA; use replicas=1")
            is_cut = isinstance(self.experiment.resolved.strategy, SplitStrategy)
            self._workers[choice] = TensorFlowEngine(
                self.experiment,
                devices[0],
                xla=choice == "xla",
                is_live=True,
                replicas=devices,
                agreement=agreement,
                remote=RemoteHalf() if is_cut else None,
            )
            self._workers[choice].forget_initial_params()  # the server sends its own
        return self._workers[choice]

    @property
    def nbytes(self) -> int:
        """Number of bytes that it takes, about: models and examples."""
        examples = self.experiment.population.resident() if self._workers else None
        own = 0 if examples is None else examples.nbytes
        workers = self._workers.values()
        return own + sum(4 * COPIES * worker.spec.size + worker.base.nbytes for worker in workers)


def _prepared(run: int, reference: str, overrides: str) -> Prepared:
    """Return what is ready for a run, whose configuration names an experiment that this client agrees to.

    Errors: Refused, ConfigError.
    """
    source = run, reference, overrides
    if source not in _runs:
        experiment = _policy().load(reference, json.loads(overrides))
        check_fresh(experiment.resolved)
        _runs[source] = Prepared(experiment)
    _runs.move_to_end(source)
    return _runs[source]


def _let_go_of_others() -> None:
    """Forget the runs whose turn is the longest ago, where there are too many."""
    while len(_runs) > 1 and (len(_runs) > KEPT_RUNS or sum(one.nbytes for one in _runs.values()) > KEPT_BYTES):
        _runs.popitem(last=False)


@functools.cache
def _policy() -> Policy:
    """Read what this client agrees to, as it was when the process began."""
    return Policy.of_this_process()


def _check_same(experiment: Experiment, digest: str) -> None:
    """Raise ConfigError when this client's experiment is not the server's: their updates would add up to nothing."""
    if experiment.digest != digest:
        raise ConfigError(
            f"the client's experiment {experiment.name!r} is {experiment.digest[:12]}, the server's is {digest[:12]}; "
            "install the same versions of Umbel, of the experiment's file and of its data on both"
        )


def _check_size(worker: Engine, broadcast: Broadcast) -> None:
    """Raise ConfigError when this client's model is of another size than the server's: a file differs, or the data."""
    theirs, own = len(broadcast.params), worker.spec.size
    if theirs != own:
        raise ConfigError(
            f"the client's model has {own} numbers, the server's {theirs}: its experiment differs from the server's; "
            "copy the same file into the folder experiments of every kit"
        )


def _check_base(worker: Engine, base: str) -> None:
    """Raise ConfigError when this client's frozen variables hold other values than the server's."""
    own = worker.spec.base
    if own != base:
        raise ConfigError(
            f"what is frozen in the client's model ({len(list(worker.spec.frozen))} variables) has the hash "
            f"{own[:12] or 'none'}, in the server's {base[:12] or 'none'}; frozen values do not travel: give both the "
            "same pre-trained weights"
        )


def _examples(population: Population, client: int) -> tuple[Examples, np.ndarray]:
    """Return the arrays this client indexes into, and its rows of them."""
    resident = population.resident()
    if resident is not None:
        return resident, population.indices(client)
    own = population.examples(client)
    return own, np.arange(own.count, dtype=np.int32)
