"""FlowerRuntime: rounds over any Flower Grid. Every client is a node; what it holds stays there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ...core.errors import ConfigError, IncompatibleError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.random import Key
from ...core.spec import ModelSpec
from ...core.types import (
    NOTHING,
    Broadcast,
    ClientMetrics,
    Failure,
    Memory,
    Metrics,
    RoundResult,
    Vector,
    Weighted,
    add_metrics,
)
from ...core.validation import require_count, require_real
from ..simulation import Simulation
from . import wire
from .check import SLACK_BYTES, Expected, check_metrics, check_update
from .exchange import Exchange, Late
from .nodes import Nodes
from .private import content_bytes
from .private_exchange import GridMail, SuperLinkMail, mail_of

log = logging.getLogger(__name__)

NO_KEY = Key(bytes(16))  # evaluation draws no random numbers
MEMORY = "memory"  # among a run's choices: the name that its clients keep their memory under


class FlowerRuntime:
    """Clients are the nodes of a Flower Grid, each known by the partition-id of its own configuration.

    Replies are checked one by one (see `check`) and folded in cohort order: a run gives the bits of a Simulation that
    compiles alike. A client that fails, or answers wrongly, is a Failure, and the round goes on. What clients keep
    between rounds stays on their disks (see `memory`); what the server keeps, and commits with each round, is which
    round each of them last counted in.

    clients: nodes to wait for; by default as many as the experiment's population has clients.
    timeout_seconds: a round's deadline, from its broadcast; who has not answered by then is a Failure, and what it
        sends later is refused.
    over_selection: clients sampled for each that is needed. Above 1 a round ends with the first len(cohort) /
        over_selection valid updates, folded as they arrive; the other clients keep nothing of it.
    join_seconds: for the nodes to appear.
    compile: as for Simulation. Graph by default: XLA's compilation takes longer than a short run does.
    """

    is_live = True

    def __init__(
        self,
        grid: Grid,
        *,
        clients: int | None = None,
        timeout_seconds: float = 600.0,
        over_selection: float = 1.0,
        join_seconds: float = 120.0,
        compile: Literal["auto", "xla", "graph"] = "graph",
    ):
        if clients is not None:
            require_count("clients", clients)
        require_real("timeout_seconds", timeout_seconds, above=0)
        require_real("over_selection", over_selection, at_least=1)
        require_real("join_seconds", join_seconds, above=0)
        self.grid, self.clients, self.over_selection = grid, clients, over_selection
        self.timeout_seconds, self.join_seconds = timeout_seconds, join_seconds
        self._server = Simulation(workers=1, compile=compile)  # the server's own model: initial params, evaluation
        self._experiment: Experiment | None = None
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        clients = 0 if self._connection is None else len(self._connection.nodes.of)
        return f"FlowerRuntime({clients} clients, timeout_seconds={self.timeout_seconds:g})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> ModelSpec:
        """Build the server's model and wait for the clients.

        memory: what is written there is a round's number, by client. Errors: RunStopped when too few clients appear in
        time; ConfigError for a run to resume whose clients' memory has no name.
        """
        if experiment.codec is not None:
            raise ConfigError(f"{experiment.codec!r} runs in simulation only; drop it, or --runtime flower")
        if experiment.aggregation is not None:
            raise ConfigError(f"{experiment.aggregation!r} runs in simulation only; drop it, or --runtime flower")
        if self.over_selection > 1 and experiment.plan is not None:
            raise IncompatibleError(
                f"over_selection={self.over_selection:g} counts the fastest, so that one client decides whether "
                f"another is counted; {experiment.plan!r} accounts for clients that are counted each on its own. Use 1"
            )
        spec, rule = self._server.open(experiment, memory, choices), experiment.client_rule
        keeps = any(variable.offset is None for variable in spec.variables) or (rule is not None and rule.remembers)
        if keeps and choices is not None and MEMORY not in choices:
            raise ConfigError(
                "cannot resume over Flower a run that began elsewhere, and whose clients keep something between "
                "rounds: it is not on their disks; start a new run"
            )
        self._keeps, self._memory = keeps, memory
        self._name = (choices or {}).get(MEMORY) or secrets.token_hex(16)
        clients, mail = len(experiment.population), mail_of(self.grid)
        self._connection = Connection(mail, Nodes(self.grid, mail, clients), Late(mail))
        self._connection.nodes.wait(self.clients or clients, self.join_seconds)
        self._experiment, self._digest = experiment, experiment.digest
        return spec

    def describe(self) -> Mapping[str, str]:
        """The model's digests, how it is compiled, here and by every client, and what clients' memory goes by."""
        return {**self._server.describe(), MEMORY: self._name}

    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        return self._server.initial_params()

    def client_ids(self) -> Sequence[int]:
        """The clients that appeared, ascending."""
        return sorted(self._connected.nodes.of)

    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """Send the cohort the broadcast; check each reply, and fold it as soon as its turn comes."""
        experiment = self._running
        goal = max(1, round(len(cohort) / self.over_selection)) if self.over_selection > 1 else len(cohort)
        keys = {client: key.derive("client", client) for client in cohort}
        contents = self._contents(broadcast, keys)
        bytes_up, bytes_down = 0, _bytes_of(contents)
        expect = self._expectations(broadcast)
        total, counted, failures = experiment.fold.zero(expect(0).size), set[int](), []
        with self._exchange("train", contents, f"round {broadcast.round}", expect(0).bytes) as exchange:
            for client, reply in exchange.replies(in_order=goal == len(cohort)):
                bytes_up += _bytes(reply)
                update = reply if isinstance(reply, Failure) else check_update(reply, expect(client))
                del reply  # one in memory at a time
                if isinstance(update, Failure):
                    log.warning("round %d: client %d failed, %s: %s", broadcast.round, *update)
                    failures.append(update)
                    continue
                total = experiment.fold.add(total, update)
                counted.add(client)
                del update
                if len(counted) == goal:
                    break
        missing = set(cohort) - counted - {failure.client for failure in failures}
        failures += [Failure(one, "round_closed", f"{goal} others were faster") for one in sorted(missing)]
        for client in sorted(counted) if self._keeps else ():
            self._memory.write(client, [np.array([broadcast.round], np.int64)])
        return RoundResult(experiment.fold.total(total), failures, bytes_up, bytes_down)

    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """Central evaluation, by the server's own model."""
        return self._server.evaluate(params, examples)

    def evaluate_clients(self, params: Vector, clients: Sequence[int]) -> ClientMetrics:
        """Each client on its own validation examples, with what it keeps at home; those that fail are left out."""
        population = self._running.validation
        if population is None:
            raise ConfigError("the experiment has no validation population to evaluate clients on")
        sizes = population.sizes()
        broadcast = Broadcast(0, params, NOTHING, (), None)
        contents = self._contents(broadcast, {client: NO_KEY for client in clients if sizes[client]})
        total: dict[str, Weighted] = {}
        values: dict[str, list[float]] = {}
        with self._exchange("evaluate", contents, "an evaluation", SLACK_BYTES) as exchange:
            for client, reply in exchange.replies():
                sums = reply if isinstance(reply, Failure) else check_metrics(reply, client)
                if isinstance(sums, Failure):
                    log.warning("evaluation: client %d failed, %s: %s", *sums)
                    continue
                total = add_metrics(total, sums)
                for name, value in sums.items():
                    values.setdefault(name, []).append(value.mean())
        return ClientMetrics(total, {name: np.array(column) for name, column in values.items()})

    def close(self) -> None:
        """Let the server's model go; the nodes stay where they are."""
        self._server.close()
        self._experiment, self._connection = None, None

    @property
    def _running(self) -> Experiment:
        if self._experiment is None:
            raise ConfigError("this FlowerRuntime has no experiment yet; hand it to run(experiment, runtime)")
        return self._experiment

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise ConfigError("this FlowerRuntime is not open; hand it to run(experiment, runtime)")
        return self._connection

    def _contents(self, broadcast: Broadcast, keys: Mapping[int, Key]) -> dict[int, RecordDict]:
        """Each client's message: the same broadcast, its own key, and which of its memories counts."""
        shared, choice = wire.pack_broadcast(broadcast), self._server.describe()["compile"]
        name = self._name if self._keeps else ""
        return {
            client: wire.pack_order(shared, wire.Order(self._digest, choice, key, name, self._since(client)))
            for client, key in keys.items()
        }

    def _since(self, client: int) -> int:
        """The last round that client counted in, 0 if there is none."""
        noted = self._memory.read(client) if self._keeps else None
        return 0 if noted is None else int(noted[0][0])

    def _expectations(self, broadcast: Broadcast) -> Callable[[int], Expected]:
        """What a valid reply of each client looks like."""
        shape, sizes = self._running.encoded_shape(broadcast), self._running.population.sizes()
        is_by_size = self._running.weighting == "examples"

        def expected(client: int) -> Expected:
            weight = float(sizes[client]) if is_by_size else 1.0
            return Expected(client, broadcast.round, shape.delta, shape.extra, weight)

        return expected

    def _exchange(self, kind: str, contents: Mapping[int, RecordDict], label: str, max_bytes: int) -> Exchange:
        mail, nodes, late = self._connected
        return Exchange(mail, nodes, late, kind, contents, self.timeout_seconds, max_bytes, label)


class Connection(NamedTuple):
    """What a run talks through."""

    mail: GridMail | SuperLinkMail
    nodes: Nodes
    late: Late


def _bytes(reply: Message | Failure) -> int:
    """Bytes of a reply's content."""
    return 0 if isinstance(reply, Failure) or not reply.has_content() else content_bytes(reply.content)


def _bytes_of(contents: Mapping[int, RecordDict]) -> int:
    """Bytes of a cohort's messages: what they share is measured once, and counted for every client."""
    measured: dict[int, int] = {}
    records = [record for content in contents.values() for record in content.values()]
    for record in records:
        if id(record) not in measured:
            measured[id(record)] = content_bytes(record)
    return sum(measured[id(record)] for record in records)
