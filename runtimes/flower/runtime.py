"""FlowerRuntime: rounds over any Flower Grid. Every client is a node; what it holds stays there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.random import Key
from ...core.spec import ModelSpec
from ...core.types import (
    NOTHING,
    Broadcast,
    ClientMetrics,
    ClientUpdate,
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
from .check import Expected, check_metrics, check_update
from .exchange import exchange, find_clients
from .private import content_bytes

log = logging.getLogger(__name__)

NO_KEY = Key(bytes(16))  # evaluation draws no random numbers


class FlowerRuntime:
    """Clients are the nodes of a Flower Grid, each known by the partition-id of its own configuration.

    Replies are checked one by one (see `check`) and folded in cohort order: a run gives the bits of a Simulation that
    compiles alike. A client that fails, or answers wrongly, is a Failure, and the round goes on.

    clients: nodes to wait for; by default as many as the experiment's population has clients.
    timeout_seconds: for the replies to one broadcast; who has not answered by then is a Failure.
    join_seconds: for the nodes to appear.
    compile: as for Simulation. Graph by default: where a client's process is new for every message, XLA's compilation
        would be paid for each time.
    """

    is_live = True

    def __init__(
        self,
        grid: Grid,
        *,
        clients: int | None = None,
        timeout_seconds: float = 600.0,
        join_seconds: float = 120.0,
        compile: Literal["auto", "xla", "graph"] = "graph",
    ):
        if clients is not None:
            require_count("clients", clients)
        require_real("timeout_seconds", timeout_seconds, above=0)
        require_real("join_seconds", join_seconds, above=0)
        self.grid, self.clients = grid, clients
        self.timeout_seconds, self.join_seconds = timeout_seconds, join_seconds
        self._server = Simulation(workers=1, compile=compile)  # the server's own model: initial params, evaluation
        self._experiment: Experiment | None = None
        self._nodes: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"FlowerRuntime({len(self._nodes)} clients, timeout_seconds={self.timeout_seconds:g})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> ModelSpec:
        """Build the server's model and wait for the clients.

        memory is not used: what clients keep at home never reaches the server. Errors: RunStopped when too few
        clients appear in time; ConfigError for a resumed run whose clients kept something, which ended with them.
        """
        if experiment.aggregation is not None:
            raise ConfigError(f"{experiment.aggregation!r} runs in simulation only; drop it, or --runtime flower")
        spec, rule = self._server.open(experiment, memory, choices), experiment.client_rule
        keeps = any(variable.offset is None for variable in spec.variables) or (rule is not None and rule.remembers)
        if choices is not None and keeps:
            raise ConfigError(
                "cannot resume over Flower a run whose clients keep something between rounds: they keep it only as "
                "long as the run lasts; start a new run"
            )
        clients = len(experiment.population)
        self._nodes = find_clients(self.grid, self.clients or clients, clients, self.join_seconds)
        self._experiment, self._digest = experiment, experiment.digest
        return spec

    def describe(self) -> Mapping[str, str]:
        """The model's digests, and how it is compiled: here, and by every client."""
        return self._server.describe()

    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        return self._server.initial_params()

    def client_ids(self) -> Sequence[int]:
        """The clients that appeared, ascending."""
        return sorted(self._nodes)

    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """Send the cohort the broadcast; check each reply, and fold it in cohort order as soon as its turn comes."""
        experiment, size = self._running, len(broadcast.params)
        extra_size = experiment.encoded_shape(broadcast).extra
        sizes = experiment.population.sizes()
        total, failures, bytes_up = experiment.fold.zero(size), [], 0
        contents = self._contents(broadcast, {client: key.derive("client", client) for client in cohort})
        bytes_down = _bytes_of(contents)
        for client, reply in self._exchange("train", contents):
            update: ClientUpdate | Failure
            if isinstance(reply, Failure):
                update = reply
            else:
                bytes_up += content_bytes(reply.content) if reply.has_content() else 0
                max_weight = float(sizes[client]) if experiment.weighting == "examples" else 1.0
                update = check_update(reply, Expected(client, broadcast.round, size, extra_size, max_weight))
            if isinstance(update, Failure):
                log.warning("round %d: client %d failed, %s: %s", broadcast.round, *update)
                failures.append(update)
            else:
                total = experiment.fold.add(total, update)
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
        for client, reply in self._exchange("evaluate", contents):
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
        self._experiment, self._nodes = None, {}

    @property
    def _running(self) -> Experiment:
        if self._experiment is None:
            raise ConfigError("this FlowerRuntime has no experiment yet; hand it to run(experiment, runtime)")
        return self._experiment

    def _contents(self, broadcast: Broadcast, keys: Mapping[int, Key]) -> dict[int, RecordDict]:
        """Each client's message: the same broadcast, and its own key."""
        shared, choice = wire.pack_broadcast(broadcast), self.describe()["compile"]
        return {client: wire.pack_order(shared, wire.Order(self._digest, choice, key)) for client, key in keys.items()}

    def _exchange(self, kind: str, contents: Mapping[int, RecordDict]) -> Iterator[tuple[int, Message | Failure]]:
        """`exchange`, by client instead of by node."""
        by_node = {self._nodes[client]: content for client, content in contents.items()}
        replies = exchange(self.grid, kind, by_node, self.timeout_seconds)
        for client, (_, reply) in zip(contents, replies, strict=True):
            if isinstance(reply, str):
                yield client, Failure(client, reply, f"no reply within {self.timeout_seconds:g} seconds")
            else:
                yield client, reply


def _bytes_of(contents: Mapping[int, RecordDict]) -> int:
    """Bytes of a cohort's messages: what they share is measured once, and counted for every client."""
    measured: dict[int, int] = {}
    records = [record for content in contents.values() for record in content.values()]
    for record in records:
        if id(record) not in measured:
            measured[id(record)] = content_bytes(record)
    return sum(measured[id(record)] for record in records)
