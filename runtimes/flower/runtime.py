"""FlowerRuntime: rounds over any Flower Grid. Every client is a node; what it holds stays there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, cast

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from ...core.clusters import is_clustered
from ...core.errors import ConfigError, IncompatibleError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.protocols import Memory
from ...core.random import Key
from ...core.spec import ModelSpec
from ...core.split import is_split
from ...core.sums import Meeting, RemoteAggregation
from ...core.types import (
    NOTHING,
    Broadcast,
    ClientMetrics,
    Failure,
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
from .exchange import Exchange, Late, bytes_received, bytes_sent
from .identity import Identity
from .nodes import FORGED, Nodes
from .private_exchange import Mail, mail_of
from .secure import STAGE_SECONDS, check_hidden, collect_hidden, kit_folder
from .signing import SignedMail

log = logging.getLogger(__name__)

NO_KEY = Key(bytes(16))  # evaluation draws no random numbers
MEMORY = "memory"  # among a run's choices: the name that its clients keep their memory under


def _log_refusal(action: str, about: str) -> None:
    log.warning("%s: %s", action, about)


class FlowerRuntime:
    """Clients are the nodes of a Flower Grid, each known by the partition-id of its own configuration.

    Replies are checked one by one (see `check`) and folded in cohort order: a run gives the bits of a Simulation that
    compiles alike. A client that fails, or answers wrongly, is a Failure, and the round goes on. What clients keep
    between rounds stays on their disks (see `memory`); what the server keeps, and commits with each round, is which
    round each of them last counted in. Hidden sums are of the cohort's live clients, each with a kit (see `secure`).

    clients: nodes to wait for; by default as many as the experiment's population has clients.
    timeout_seconds: a round's deadline, from its broadcast; who has not answered by then is a Failure, and what it
        sends later is refused.
    over_selection: clients sampled for each that is needed. Above 1 a round ends with the first len(cohort) /
        over_selection valid updates, folded as they arrive; the other clients keep nothing of it.
    join_seconds: for the nodes to appear.
    compile: as for Simulation. Graph by default: XLA's compilation takes longer than a short run does.
    identity: of the server, where the federation has kits: messages are signed, both ways, and a node is the client
        that its key is of. None: nodes are believed.
    refused: told of each node and update that is refused for whom it is from, and of each client's policy that refuses
        this server: an action of the audit log ("node.refused", "policy.refused"), and about whom.
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
        identity: Identity | None = None,
        refused: Callable[[str, str], None] = _log_refusal,
    ):
        if clients is not None:
            require_count("clients", clients)
        require_real("timeout_seconds", timeout_seconds, above=0)
        require_real("over_selection", over_selection, at_least=1)
        require_real("join_seconds", join_seconds, above=0)
        self.grid, self.clients, self.over_selection = grid, clients, over_selection
        self.timeout_seconds, self.join_seconds = timeout_seconds, join_seconds
        self._identity, self._refused = identity, refused
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
        check_hidden(experiment, self.over_selection)
        if is_split(experiment.strategy) or is_clustered(experiment.strategy):
            raise ConfigError(f"{experiment.strategy!r} runs in simulation only; drop it, or --runtime flower")
        if self.over_selection > 1 and experiment.plan is not None:
            raise IncompatibleError(
                f"over_selection={self.over_selection:g} counts the fastest, so that one client decides whether "
                f"another is counted; {experiment.plan!r} accounts for clients that are counted each on its own. Use 1"
            )
        spec, rule = self._server.open(experiment, memory, choices), experiment.client_rule
        keeps = any(variable.offset is None for variable in spec.variables) or (rule is not None and rule.remembers)
        keeps = keeps or (experiment.codec is not None and experiment.codec.error_feedback)
        if keeps and choices is not None and MEMORY not in choices:
            raise ConfigError(
                "cannot resume over Flower a run that began elsewhere, and whose clients keep something between "
                "rounds: it is not on their disks; start a new run"
            )
        self._keeps, self._memory = keeps, memory
        self._name = (choices or {}).get(MEMORY) or secrets.token_hex(16)
        # Not the memory's: a server that was started again plays a round anew, which clients refuse under one name.
        self._session = secrets.token_hex(16)
        self._connection = self._connect(clients := len(experiment.population))
        self._connection.nodes.wait(self.clients or clients, self.join_seconds)
        self._experiment, self._digest = experiment, experiment.digest
        return spec

    def describe(self) -> Mapping[str, str]:
        """The model's digests, how it is compiled, here and by every client, and what clients' memory goes by."""
        hides = {} if self._running.aggregation is None else {"aggregation": "protocol"}
        return {**self._server.describe(), MEMORY: self._name, **hides}

    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        params = self._server.initial_params()
        self._server.forget_initial_params()  # as large as the model, for as long as the run lasts
        return params

    def client_ids(self) -> Sequence[int]:
        """The clients that appeared, ascending."""
        return sorted(self._connected.nodes.of)

    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """Send the cohort the broadcast; check each reply, and fold it as soon as its turn comes.

        With an aggregation, its stages instead: see `secure`. Errors: RunStopped when it reveals no sum.
        """
        experiment = self._running
        if experiment.aggregation is not None and cohort:
            return self._collect_hidden(broadcast, cohort, key)
        goal = max(1, round(len(cohort) / self.over_selection)) if self.over_selection > 1 else len(cohort)
        keys = {client: key.derive("client", client) for client in cohort}
        contents = self._contents(broadcast, keys)
        bytes_up, bytes_down = 0, bytes_sent(contents)
        expect = self._expectations(broadcast)
        total, counted, failures = experiment.fold.zero(expect(0).size), set[int](), []
        with self._exchange("train", contents, f"round {broadcast.round}", expect(0).bytes) as exchange:
            for client, reply in exchange.replies(in_order=goal == len(cohort)):
                bytes_up += bytes_received(reply)
                update = reply if isinstance(reply, Failure) else check_update(reply, expect(client))
                del reply  # one in memory at a time
                if isinstance(update, Failure):
                    self._note(broadcast.round, update)
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

    def _collect_hidden(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """As collect, by the stages of the experiment's aggregation."""
        experiment, aggregation = self._running, cast(RemoteAggregation, self._running.aggregation)
        shape, model = experiment.encoded_shape(broadcast), wire.digest_of(broadcast, self._digest)
        meeting = Meeting(self._session, broadcast.round, len(cohort), shape, model)
        session = aggregation.server(meeting, cohort, kit_folder())
        contents = self._contents(broadcast, {client: key.derive("client", client) for client in cohort})
        found = collect_hidden(meeting, session, contents, self._exchange, self._note)
        for client in session.counted if self._keeps else ():
            self._memory.write(client, [np.array([broadcast.round], np.int64)])
        return RoundResult(found.total, found.failures, found.bytes_up, found.bytes_down)

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

    def _connect(self, clients: int) -> Connection:
        """What this run talks through; signed, where the federation has kits."""
        mail, refused = mail_of(self.grid), partial(self._refused, "node.refused")
        if self._identity is None:
            return Connection(mail, Nodes(self.grid, mail, clients, refused=refused), Late(mail))
        signed = SignedMail(mail, self._identity, self.grid, refused)
        return Connection(signed, Nodes(self.grid, signed, clients, signed.client_of, refused), Late(signed))

    def _note(self, round: int, failure: Failure) -> None:
        """Why a client is not in a round's sum: in the log, and on record where somebody refused somebody."""
        log.warning("round %d: client %d failed, %s: %s", round, *failure)
        if failure.reason == "policy":
            self._refused("policy.refused", f"client {failure.client}: {failure.detail}")
        elif failure.reason in FORGED:
            self._refused("node.refused", f"client {failure.client}: {failure.reason}: {failure.detail}")

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
        is_by_size, codec = self._running.weighting == "examples", self._running.codec

        def expected(client: int) -> Expected:
            weight = float(sizes[client]) if is_by_size else 1.0
            return Expected(client, broadcast.round, shape.delta, shape.extra, weight, codec)

        return expected

    def _exchange(
        self, kind: str, contents: Mapping[int, RecordDict], label: str, max_bytes: int, is_short: bool = False
    ) -> Exchange:
        """is_short: nobody trains for it."""
        mail, nodes, late = self._connected
        seconds = min(self.timeout_seconds, STAGE_SECONDS) if is_short else self.timeout_seconds
        return Exchange(mail, nodes, late, kind, contents, seconds, max_bytes, label)


class Connection(NamedTuple):
    """What a run talks through."""

    mail: Mail
    nodes: Nodes
    late: Late
