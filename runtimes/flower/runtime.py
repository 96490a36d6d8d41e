"""FlowerRuntime: rounds over any Flower Grid. Every client is a node; what it holds stays there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, cast

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ...core.errors import ConfigError, IncompatibleError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.parts.algorithms import AsynchronousStrategy
from ...core.parts.private import RemoteAggregation, SecureAggregation
from ...core.protocols import Memory
from ...core.random import Key
from ...core.reading.directions import Measures
from ...core.recipe import Recipe, is_memory_kept
from ...core.runtime import MEMORY, WAIT, Arrival, Assignment, Opened
from ...core.summation import Summation
from ...core.sums import ClientSum, Meeting, ServerSum
from ...core.system.backend import require_tensorflow
from ...core.types import (
    NOTHING,
    Broadcast,
    ClientMetrics,
    ClientUpdate,
    Failure,
    Metrics,
    Value,
    Vector,
)
from ...core.validation import require_count, require_real
from ..simulation import Simulation
from . import wire
from .check import SLACK_BYTES, Expected, check_metrics, check_update, state_bytes
from .exchange import Exchange, Late, bytes_received, bytes_sent
from .identity import PartyIdentity, name_of
from .mail import Mail, mail_of
from .nodes import FORGED, Nodes
from .second_half import Sessions, check_split, sessions_of
from .secure import FIRST, LATER, STAGE_SECONDS, check_hidden, check_stage, kit_folder, pack_messages
from .signing import SignedMail

log = logging.getLogger(__name__)

Packed = dict[int, tuple[Broadcast, RecordDict]]  # broadcasts as they travel, by their id() while they live
NO_KEY = Key(bytes(16))  # evaluation draws no random numbers
FEDERATION = "federation"  # key among a run's choices: the federation that plays it


def _log_refusal(action: str, about: str) -> None:
    log.warning("%s: %s", action, about)


class FlowerRuntime:
    """Clients are the nodes of a Flower Grid, each known by the partition-id of its own configuration.

    Replies are checked one by one (see `check`) and added up in cohort order: a run gives the bits of a Simulation that
    compiles alike; an asynchronous one as they arrive, and then it gives those of a Simulation in that order. A client
    that fails, or answers wrongly, is a Failure, and the round goes on. What clients keep between rounds stays on their
    disks (see `memory`); what the server keeps, and commits with each round, is the number of the last work of each of
    them that counted. Hidden sums are of the cohort's live clients, each with a kit (see `secure`).

    clients: nodes to wait for; by default as many as the experiment's population has clients, or the roster lists.
    quorum: fewest clients that have to be there for a run, and each of its rounds, to begin, where the others may be
        away; an experiment's min_clients raises it. None: a run begins with all.
    timeout_seconds: a round's deadline, from its broadcast; who has not answered by then is a Failure, and what it
        sends later is refused.
    over_selection: clients sampled for each that is needed. Above 1 a round ends with the first len(cohort) /
        over_selection valid updates, added up as they arrive; the other clients keep nothing of it.
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
        quorum: int | None = None,
        timeout_seconds: float = 600.0,
        over_selection: float = 1.0,
        join_seconds: float = 120.0,
        compile: Literal["auto", "xla", "graph"] = "graph",
        identity: PartyIdentity | None = None,
        refused: Callable[[str, str], None] = _log_refusal,
    ):
        if clients is not None:
            require_count("clients", clients)
        if quorum is not None:
            require_count("quorum", quorum)
        require_real("timeout_seconds", timeout_seconds, above=0)
        require_real("over_selection", over_selection, at_least=1)
        require_real("join_seconds", join_seconds, above=0)
        self.grid, self.clients, self.quorum, self.over_selection = grid, clients, quorum, over_selection
        self.timeout_seconds, self.join_seconds = timeout_seconds, join_seconds
        self._identity, self._refused = identity, refused
        self._server = Simulation(workers=1, compile=compile)  # the server's own model: initial params, evaluation
        self._experiment: Experiment | None = None
        self._connection: Connection | None = None
        self._hidden: tuple[Meeting, int]  # the sum under way, and its next stage
        self._sessions: Sessions | None = None  # of a model that is cut
        self._training: Exchange | None = None  # the last that clients trained in: it may be under way

    def __repr__(self) -> str:
        clients = 0 if self._connection is None else len(self._connection.nodes.of)
        return f"FlowerRuntime({clients} clients, timeout_seconds={self.timeout_seconds:g})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Build the server's model and wait for the clients.

        memory: what is written there is a round's number, by client. Errors: RunStopped when too few clients appear in
        time; ConfigError for a run to resume whose clients' memory has no name.
        """
        check_hidden(experiment.resolved, self.over_selection)
        check_split(self.grid, experiment.resolved, self.over_selection)
        if self.over_selection > 1 and experiment.plan is not None:
            raise IncompatibleError(
                f"over_selection={self.over_selection:g} counts the fastest, so that one client decides whether "
                f"another is counted; {experiment.plan!r} accounts for clients that are counted each on its own. Use 1"
            )
        if self.over_selection > 1 and isinstance(experiment.resolved.strategy, AsynchronousStrategy):
            raise IncompatibleError(
                f"over_selection={self.over_selection:g} counts the fastest of a cohort, and {experiment.strategy!r} "
                "has no cohorts: an update counts whenever it arrives. Use 1"
            )
        require_tensorflow("Clients over Flower train")
        opened = self._server.open(experiment, memory, choices)
        self._sessions = sessions_of(self.grid, self._server, experiment.resolved, self._identity)
        keeps = is_memory_kept(experiment.resolved, opened.spec)
        if keeps and choices is not None and MEMORY not in choices:
            raise ConfigError(
                "cannot resume over Flower a run that began elsewhere, and whose clients keep something between "
                "rounds: it is not on their disks; start a new run"
            )
        self._keeps, self._memory = keeps, memory
        self._name = (choices or {}).get(MEMORY) or secrets.token_hex(16)
        self._connection = self._connect(clients := len(experiment.population))
        self._quorum = None if self.quorum is None else max(self.quorum, experiment.min_clients)
        self._connection.nodes.wait(
            self.clients or len(self._connection.names) or clients, self.join_seconds, self._quorum
        )
        self._experiment, self._digest = experiment, experiment.digest
        self._base = opened.spec.base
        summation = replace(opened.summation, strangers=True)
        return opened._replace(summation=summation, over_selection=self.over_selection, digest=self._digest)

    def describe(self) -> Mapping[str, str]:
        """Return the model's digests, how it is compiled, the name of clients' memory, and that of the federation."""
        mine = {} if self._identity is None else {FEDERATION: name_of(self._identity)}
        hides = {} if self._running.secure_aggregation is None else {"aggregation": "protocol"}
        return {**self._server.describe(), MEMORY: self._name, **hides, **mine}

    def measures(self) -> Measures:
        """Return the metrics that the model measures, and which way they are to go."""
        return self._server.measures()

    def initial_params(self) -> Vector:
        """Return the model's own initial weights, drawn from the experiment's seed."""
        params = self._server.initial_params()
        self._server.forget_initial_params()  # as large as the model, for as long as the run lasts
        return params

    @property
    def figures(self) -> Mapping[str, int]:
        """Return nothing: clients are where they are."""
        return {}

    def client_ids(self) -> Sequence[int]:
        """Return the clients that are there, ascending; where a cohort needs more of them, those that are away, too.

        Errors: RunStopped for fewer than the quorum, once they were waited for.
        """
        nodes, everybody = self._connected.nodes, range(len(self._running.population))
        known = sorted(self._connected.names or {*nodes.of, *nodes.away})
        if len(nodes.of) < len(known):
            nodes.look()
        if self._quorum is not None and len(nodes.of) < self._quorum:
            nodes.wait(self._quorum, self.join_seconds)
        needed = self._running.sampler.cohort_size or 1
        found = (sorted(nodes.of), known, everybody)
        return next(list(clients) for clients in found if len(clients) >= needed or clients is everybody)

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Send clients their broadcasts, all at once until the work waits; check each reply as its turn comes.

        While it waits the others stay out, for as long as it takes: work may outlive a round.
        """
        batch: list[Assignment] = []
        with self._exchange(FIRST) as self._training, self._sessions or nullcontext():
            asking = _Asking(self, self._training, summation)
            for assignment in work:
                if assignment is not WAIT:
                    batch.append(assignment)
                    continue
                asking.ask(batch)
                batch = []
                if self._training.is_out:
                    yield asking.arrival()
            asking.ask(batch)
            while self._training.is_out:
                yield asking.arrival()

    def hidden_sum(
        self, aggregation: SecureAggregation, meeting: Meeting, cohort: Sequence[int]
    ) -> tuple[ServerSum, Callable[[int], ClientSum] | None]:
        """Return the server's half, by what its kit holds; the clients have theirs."""
        return cast(RemoteAggregation, aggregation).server(meeting, cohort, kit_folder()), None

    def ask(self, messages: Mapping[int, bytes], reply_bytes: int) -> Iterator[Arrival]:
        """Send a later stage's messages; yield the replies, as they arrive."""
        meeting, number = self._hidden
        self._hidden = meeting, number + 1
        contents = pack_messages(meeting, number, messages)
        label = f"stage {number} of round {meeting.round}"
        bytes_down = bytes_sent(contents)
        with self._exchange(LATER, is_short=True) as exchange:
            exchange.ask(contents, reply_bytes + SLACK_BYTES, label)
            for client, reply in exchange.replies(in_order=False):
                content = check_stage(meeting, number, client, reply)
                self._note(meeting.round, content)
                yield Arrival((client,), content, {}, bytes_received(reply), bytes_down)
                bytes_down = 0

    def _arrival(self, assignment: Assignment, reply: Message | Failure, expected: Expected) -> Arrival:
        """Return what came of an assignment, once it has been checked; its memory is the number that counts."""
        client, round = assignment.client, assignment.broadcast.round
        content: ClientUpdate | bytes | Failure
        if isinstance(reply, Failure):
            content = reply
        elif assignment.opening is not None:
            content = check_stage(assignment.opening.meeting, 0, client, reply)
        else:
            content = check_update(reply, expected)
        up = down = 0
        if self._sessions is not None:
            content, up, down = self._sessions.close(client, reply, content)
        self._note(round, content)
        keeps = self._keeps and not isinstance(content, Failure)
        memory = {client: [np.array([assignment.number or round], np.int64)]} if keeps else {}
        return Arrival((client,), content, memory, bytes_received(reply) + up, down)

    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """Evaluate params centrally, by the server's own model."""
        return self._server.evaluate(params, examples)

    def results(self, step: Literal["train", "test"], metrics: Metrics) -> Mapping[str, Value]:
        """Return the values of joined states, by the server's own model."""
        return self._server.results(step, metrics)

    def evaluate_clients(self, params: Vector, clients: Sequence[int], extra: Vector = NOTHING) -> ClientMetrics:
        """Evaluate params on each client's own validation examples; those that fail are left out.

        Each has what it keeps at home, or the model that it chooses.
        """
        population = self._running.validation
        if population is None:
            raise ConfigError("the experiment has no validation population to evaluate clients on")
        sizes = population.sizes()
        broadcast = Broadcast(0, params, extra, (), None)
        contents = self._contents([Assignment(broadcast, client, NO_KEY) for client in clients if sizes[client]])
        joins = self._server.joins("test")
        with self._exchange("evaluate") as exchange:
            exchange.ask(contents, state_bytes(joins), "an evaluation")
            return self._server.gathered(_measured(exchange.replies(), joins))

    def close(self) -> None:
        """Let the server's model go; the nodes stay where they are."""
        self._server.close()
        self._experiment, self._connection = None, None

    @property
    def _running(self) -> Recipe:
        if self._experiment is None:
            raise ConfigError("this FlowerRuntime has no experiment yet; hand it to run(experiment, runtime)")
        return self._experiment.resolved

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise ConfigError("this FlowerRuntime is not open; hand it to run(experiment, runtime)")
        return self._connection

    def _connect(self, clients: int) -> Connection:
        """Return the connection that this run talks through; signed, where the federation has kits."""
        mail, refused = mail_of(self.grid), partial(self._refused, "node.refused")
        if self._identity is None:
            return Connection(mail, Nodes(self.grid, mail, clients, refused=refused), Late(mail), {})
        signed = SignedMail(mail, self._identity, self.grid, refused)
        names = {client: name for client, name in self._identity.members.items() if client < clients}
        nodes = Nodes(self.grid, signed, clients, signed.client_of, refused, names)
        return Connection(signed, nodes, Late(signed), names)

    def _note(self, round: int, content: object) -> None:
        """Note why a client is not in a round's sum: in the log, and on record where somebody refused somebody."""
        if not isinstance(content, Failure):
            return
        log.warning("round %d: client %d failed, %s: %s", round, *content)
        if content.reason == "policy":
            self._refused("policy.refused", f"client {content.client}: {content.detail}")
        elif content.reason in FORGED:
            self._refused("node.refused", f"client {content.client}: {content.reason}: {content.detail}")

    def _contents(self, assignments: Sequence[Assignment], packed: Packed | None = None) -> dict[int, RecordDict]:
        """Pack each client's message: its broadcast, its own key, and which of its memories counts.

        packed: broadcasts that were packed before; these are added.
        """
        choice, name = self._server.describe()["compile"], self._name if self._keeps else ""
        packed = {} if packed is None else packed
        contents = {}
        terms = self._server.terms()
        for broadcast, client, key, _, number, before in assignments:
            if id(broadcast) not in packed:
                shared = broadcast if self._sessions is None else self._sessions.shared(broadcast)
                packed[id(broadcast)] = broadcast, wire.pack_broadcast(shared)
            own, since = key.derive("client", client), self._noted(self._memory.read(client))
            committed = since if before is None else self._noted(before)
            numbers = (number or broadcast.round, committed)
            order = wire.Order(self._digest, choice, own, name, since, terms, self._base, *numbers)
            contents[client] = wire.pack_order(packed[id(broadcast)][1], order)
        return contents

    def _noted(self, kept: Sequence[np.ndarray] | None) -> int:
        """Return the number of the last work that counted, of what is noted of a client; 0 if there is none."""
        return int(kept[0][0]) if self._keeps and kept else 0

    def _expectations(self, summation: Summation) -> Callable[[Assignment], Expected]:
        """Make a function from an assignment to the form of a valid reply to it."""
        sizes, is_by_size = self._running.population.sizes(), self._running.weighting == "examples"
        joins = self._server.joins("train")

        def expected(assignment: Assignment) -> Expected:
            client = assignment.client
            weight = float(sizes[client]) if is_by_size else 1.0
            form = Expected(client, assignment.broadcast.round, *summation.shape, weight, summation.codec, joins)
            return form if self._sessions is None else self._sessions.expected(form)

        return expected

    def _exchange(self, kind: str, is_short: bool = False) -> Exchange:
        """Make an exchange over this run's connection. is_short: nobody trains for it."""
        mail, nodes, late, _ = self._connected
        seconds = min(self.timeout_seconds, STAGE_SECONDS) if is_short else self.timeout_seconds
        return Exchange(mail, nodes, late, kind, seconds, beside=None if kind == FIRST else self._training)


class _Asking:
    """Work of a run as it goes out, and what came back of it."""

    def __init__(self, runtime: FlowerRuntime, exchange: Exchange, summation: Summation):
        self._runtime, self._exchange, self._in_order = runtime, exchange, summation.in_order
        self._expect = runtime._expectations(summation)
        self._out: dict[int, Assignment] = {}
        self._packed: Packed = {}
        self._bytes_down = 0

    def ask(self, batch: Sequence[Assignment]) -> None:
        """Send a batch of work to its clients, each broadcast packed once for as long as anybody is at work on it."""
        if not batch:
            return
        first = batch[0]
        self._out |= {assignment.client: assignment for assignment in batch}
        contents = self._runtime._contents(batch, self._packed)
        used = {id(assignment.broadcast) for assignment in self._out.values()}
        self._packed = {place: packed for place, packed in self._packed.items() if place in used}
        most = self._expect(first).bytes
        if first.opening is not None:
            self._runtime._hidden = first.opening.meeting, 1
            openings = {one.client: one.opening.message for one in batch if one.opening is not None}
            stages = pack_messages(first.opening.meeting, 0, openings)
            contents = {client: RecordDict({**content, **stages[client]}) for client, content in contents.items()}
            most = first.opening.reply_bytes + SLACK_BYTES
        if (sessions := self._runtime._sessions) is not None:
            node = self._runtime._connected.nodes.of.get
            contents = {one.client: RecordDict({**contents[one.client], **sessions.open(one, node)}) for one in batch}
        self._bytes_down += bytes_sent(contents)
        self._exchange.ask(contents, most, f"round {first.broadcast.round}")

    def arrival(self) -> Arrival:
        """Wait for the next reply; return what came of its assignment."""
        client, reply = self._exchange.reply(self._in_order)
        assignment = self._out.pop(client)
        arrival = self._runtime._arrival(assignment, reply, self._expect(assignment))
        bytes_down, self._bytes_down = self._bytes_down, 0
        return arrival._replace(bytes_down=arrival.bytes_down + bytes_down)


class Connection(NamedTuple):
    """The mail, the nodes and the late messages through which a run talks."""

    mail: Mail
    nodes: Nodes
    late: Late
    names: Mapping[int, str]  # of the clients that there are, by number; empty where that is not known


def _measured(replies: Iterable[tuple[int, Message | Failure]], joins: wire.Joins) -> Iterator[tuple[int, Metrics]]:
    """Yield each client's valid metrics; who failed is in the log. joins: see `wire.unpack_metrics`."""
    for client, reply in replies:
        sums = reply if isinstance(reply, Failure) else check_metrics(reply, client, joins)
        if isinstance(sums, Failure):
            log.warning("evaluation: client %d failed, %s: %s", *sums)
        else:
            yield client, sums
