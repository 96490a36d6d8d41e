"""Ray: the clients of one experiment on all machines of a cluster, with the bits of a simulation.

This process, the driver, plays the rounds and adds up what arrives; it builds no model, and imports no TensorFlow.
Each host (`host.py`) has a Simulation, and adds up aligned runs of clients by itself (`core/tree.py`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.parts.algorithms import SplitStrategy
from ...core.parts.private import SecureAggregation
from ...core.protocols import Memory
from ...core.reading.directions import Measures
from ...core.runtime import MEMORY, WAIT, Arrival, Assignment, Opened, Parties, Subtotal
from ...core.summation import Summation
from ...core.sums import ClientSum, Meeting, ServerSum
from ...core.types import NOTHING, Broadcast, ClientMetrics, Metrics, Value, Vector, add_metrics
from ...core.validation import require, require_count
from ..simulation import prepare
from .calls import Head, Job
from .cluster import Places, check_address, join, leave
from .crew import Crew
from .division import adds_up_elsewhere, aligned_widths, small_widths
from .host import ClientRun, Introduction, Sent
from .job_queue import JobQueue, gathered
from .likeness import HARDWARE, check_hardware
from .modules import Travelling
from .shelf import Shelf, absolute, shelf_for, shelf_needed

log = logging.getLogger(__name__)

BLOCK = 256  # the most clients that are evaluated in one call
CHUNKS = 8  # the most chunks of the server's examples in one call
VECTORS = 6  # vectors that stay in the object store: params and extra of the last rounds
AHEAD = 8  # runs for each host that may be begun before their turn, where their updates travel one by one


class Ray:
    """Clients run on all machines of a Ray cluster; the result is that of a Simulation, bit for bit.

    A host or a node that is lost, or hangs, has its work done again by the others. New nodes are used from the next
    round on. All nodes have to have the same versions of Umbel, Keras, TensorFlow, NumPy and Python.

    Parameters
    ----------
    address
        HOST:PORT of a cluster that this machine is a node of; None: a cluster of its own, on this machine alone, which
        ends with close() and leaves nothing behind. A cluster that was not named is never joined.
    workers
        The most clients that train side by side; None: as many as the cluster has room for.
    threads
        Number of them in one process, each on a processor. More than one saves memory, and costs time.
    gpus
        The most GPUs, a process on each; None: all that Ray knows of; 0: none, though there are some.
    memory
        "driver": what clients keep between rounds travels with their work, and lies in the store; or a folder on a file
        system that all nodes share under one name: hosts read and write it there, and the store has notes of it. For
        the memory of many clients, or of large models.
    compile, aggregation
        Same as for Simulation.
    """

    is_live = False

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        threads: int = 1,
        gpus: int | None = None,
        memory: Literal["driver"] | str | os.PathLike[str] = "driver",
        compile: Literal["auto", "xla", "graph"] = "auto",
        aggregation: Literal["arithmetic", "protocol"] = "arithmetic",
    ):
        if address is not None:
            check_address(address)
        if workers is not None:
            require_count("workers", workers)
        require_count("threads", threads)
        if gpus is not None:
            require_count("gpus", gpus, at_least=0)
        require(compile in ("auto", "xla", "graph"), f"expected compile={compile!r} to be 'auto', 'xla' or 'graph'")
        words = ("arithmetic", "protocol")
        require(aggregation in words, f"expected aggregation={aggregation!r} to be 'arithmetic' or 'protocol'")
        self.address, self.workers, self.threads, self.gpus = address, workers, threads, gpus
        self.compile, self.aggregation = compile, aggregation
        self.memory = None if memory == "driver" else absolute(memory)
        self._places = Places(threads, workers, gpus, address)
        self._crew: Crew | None = None
        self._hiding: str = aggregation
        self._parties = Parties()
        self._experiment: Experiment | None = None
        self._introduction: Introduction | None = None
        self._shelf: Shelf | None = None
        self._vectors: deque[tuple[Vector, Any]] = deque(maxlen=VECTORS)  # with their references
        self._examples: tuple[Examples, Any] | None = None  # the server's, where they are not the experiment's own
        self._code = Travelling()
        self._end: Callable[[], Any] = lambda: None

    def __repr__(self) -> str:
        return f"Ray({'' if self.address is None else repr(self.address)})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Send the experiment to every host, which builds its model, and choose how it compiles."""
        prepare(experiment.resolved)
        if self._crew is None:
            join(self.address, self._places)
            self._crew = Crew(self._places, (self.threads, self.compile, self.aggregation), self.address is not None)
            self._end = weakref.finalize(self, _close, self._crew, self._code)
        self._code.begin()
        self._memory, self._experiment = memory, experiment
        self._hiding = (choices or {}).get("aggregation", self.aggregation)
        self._vectors.clear()
        self._examples = None
        self._shelf = shelf_for(self.memory, choices)
        self._introduction = found = self._crew.open(self._put(experiment), choices, self._shelf)
        self._shelf = shelf_needed(self._shelf, experiment.resolved, found.opened.spec, choices)
        self._hardware = check_hardware(self._crew.hardware, choices)
        self._say(found)
        return found.opened

    def describe(self) -> Mapping[str, str]:
        """Return what the first host says of the model, the name of what clients keep elsewhere, and the hardware.

        That is whether all nodes compute the same bits.
        """
        shelf = {} if self._shelf is None else {MEMORY: self._shelf.folder.name}
        return {**self._introduced.described, **shelf, HARDWARE: self._hardware}

    def measures(self) -> Measures:
        """Return the metrics that the model measures, and which way they are to go."""
        return self._introduced.measures

    def initial_params(self) -> Vector:
        """Return the model's own initial weights, drawn from the experiment's seed."""
        return self._introduced.initial_params.copy()

    def client_ids(self) -> Sequence[int]:
        """Return the clients' numbers, 0 … clients − 1."""
        return range(len(self._running.resolved.population))

    @property
    def figures(self) -> Mapping[str, int]:
        """Counts: nodes and processes now; of this runtime's life processes lost, calls made again or twice, bytes."""
        if self._crew is None:
            return {}
        now = {"nodes": self._crew.nodes, "processes": len(self._crew.ready)}
        return now | dataclasses.asdict(self._crew.figures)

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Train clients on all hosts; arrivals in the order of work, those of a run that was added up as one."""
        self._parties = parties = Parties()
        crew = self._hosts
        crew.grow()
        division = _Division(self, crew, parties, summation)
        waiting: list[Assignment] = []
        try:
            for assignment in work:
                if assignment is not WAIT:
                    waiting.append(assignment)
                    continue
                division.send(waiting, is_last=False)
                waiting = []
                yield division.next()
            division.send(waiting, is_last=True)
            while division.has_more:
                yield division.next()
        finally:
            division.abandon()

    def hidden_sum(
        self, aggregation: SecureAggregation, meeting: Meeting, cohort: Sequence[int]
    ) -> tuple[ServerSum, Callable[[int], ClientSum] | None]:
        """Return both halves, which are in this process: a simulation of hiding, as Simulation's."""
        return aggregation.rehearse(meeting, cohort, self._hiding == "protocol")

    def ask(self, messages: Mapping[int, bytes], reply_bytes: int) -> Iterator[Arrival]:
        """Yield the replies of the clients' halves."""
        return self._parties.ask(messages)

    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """Evaluate params centrally, in chunks over the hosts."""
        sent, size = self._vector(params), self._introduced.chunk
        others: list[Any] = []
        if examples is not self._running.resolved.test_examples():
            if self._examples is None or self._examples[0] is not examples:
                self._examples = examples, self._put(examples)
            others = [self._examples[1]]
        starts = range(0, examples.count, size)
        width = max(1, min(CHUNKS, len(starts) // (4 * self._hosts.slots)))
        queue = JobQueue(self._hosts)
        for first in range(0, len(starts), width):
            queue.add(Job("evaluate", partial(tuple, (sent, others, starts[first : first + width]))))
        total: dict[str, Any] = {}
        while queue.has_more:
            for sums in queue.next()[1]:
                total = add_metrics(total, sums)
        return total

    def results(self, step: Literal["train", "test"], metrics: Metrics) -> Mapping[str, Value]:
        """Return the values of joined states, by the model of one of the hosts."""
        queue = JobQueue(self._hosts)
        queue.add(Job("results", partial(tuple, (step, metrics))))
        found: Mapping[str, Value] = queue.next()[1]
        return found

    def evaluate_clients(self, params: Vector, clients: Sequence[int], extra: Vector = NOTHING) -> ClientMetrics:
        """Evaluate params on each client's own validation examples, some clients on every host."""
        population = self._running.resolved.validation_clients()
        if population is None:
            raise ConfigError("the experiment has no validation population to evaluate clients on")
        sizes, remembers = population.sizes(), not population.is_some_clients
        chosen = [client for client in clients if sizes[client]]
        sent, other = self._vector(params), self._vector(extra)
        width = max(1, min(BLOCK, -(-len(chosen) // (4 * self._hosts.slots))))
        queue = JobQueue(self._hosts)
        for first in range(0, max(1, len(chosen)), width):
            queue.add(
                Job("evaluate_clients", partial(self._asked, sent, other, chosen[first : first + width], remembers))
            )
        return gathered(queue)

    def close(self) -> None:
        """End every process that was started, and the cluster, if it is this runtime's own."""
        self._end()
        self._crew, self._experiment, self._introduction = None, None, None
        self._vectors.clear()
        self._examples = None

    @property
    def _running(self) -> Experiment:
        if self._experiment is None:
            raise ConfigError("this Ray has no experiment yet; hand it to run(experiment, ray)")
        return self._experiment

    @property
    def _introduced(self) -> Introduction:
        self._running  # noqa: B018  raises
        assert self._introduction is not None
        return self._introduction

    @property
    def _hosts(self) -> Crew:
        self._running  # noqa: B018  raises
        assert self._crew is not None
        return self._crew

    def _say(self, found: Introduction) -> None:
        """Log where clients train, and what could be better."""
        members, nodes = self._hosts.ready, self._hosts.nodes
        log.info("%d processes on %d nodes of %s, clients on %s", len(members), nodes, self._places, found.devices[0])
        if self._hosts.is_on_gpus and not any(device.startswith("GPU") for device in found.devices):
            log.warning(
                "Ray knows of GPUs that TensorFlow does not see: clients train on CPUs. pip install 'umbel[gpu]'"
            )
        strategy = self._running.resolved.strategy
        if isinstance(strategy, SplitStrategy) and strategy.in_turn and len(members) > 1:
            log.warning("%r lets one client train at a time: one process works, %d wait", strategy, len(members) - 1)

    def _put(self, value: Any) -> Any:
        """Put a value into the object store; return its reference."""
        import ray

        return ray.put(value)

    def _vector(self, vector: Vector) -> list[Any]:
        """Return a list of the reference of a vector, which is put once; none for an empty one."""
        if not len(vector):
            return []
        for known, reference in self._vectors:
            if known is vector:
                return [reference]
        self._vectors.append((vector, self._put(vector)))
        return [self._vectors[-1][1]]

    def _sent(self, broadcast: Broadcast) -> Sent:
        """Put a broadcast into the object store."""
        rest = [self._put(broadcast._replace(params=NOTHING, extra=NOTHING))]
        return Sent(self._vector(broadcast.params), self._vector(broadcast.extra), rest)

    def _kept(self, clients: Iterable[int]) -> dict[int, list[np.ndarray]]:
        """Return what clients keep at home, those that keep anything."""
        found = {client: self._memory.read(client) for client in clients}
        return {client: arrays for client, arrays in found.items() if arrays is not None}

    def _asked(self, params: list[Any], extra: list[Any], clients: Sequence[int], remembers: bool) -> tuple:
        """Return the arguments of an evaluation of clients."""
        return params, extra, clients, self._kept(clients) if remembers else {}


class _Division:
    """A cohort's work, divided into runs; and what comes back of them, client by client where it did so."""

    def __init__(self, ray: Ray, crew: Crew, parties: Parties, summation: Summation):
        self._ray, self._crew, self._parties, self._summation = ray, crew, parties, summation
        window = None if summation.subtotals else AHEAD * max(1, len(crew.ready))
        self._queue = JobQueue(crew, window)
        self._out: deque[list[Assignment]] = deque()
        self._arrived: deque[Arrival] = deque()
        self._place = 0  # of the next client in the cohort
        self._sent: dict[
            int, tuple[Broadcast, Sent]
        ] = {}  # broadcasts by identity, which they keep while they are here

    @property
    def has_more(self) -> bool:
        """Return whether somebody has yet to arrive."""
        return bool(self._arrived) or self._queue.has_more

    def send(self, assignments: Sequence[Assignment], is_last: bool) -> None:
        """Send clients to train. is_last: no others follow."""
        count, slots = len(assignments), self._crew.slots
        is_added_up = self._summation.subtotals and is_last
        is_added_up = is_added_up and adds_up_elsewhere(self._place, count, slots, self._summation.shape.delta)
        widths = aligned_widths(self._place, count, slots) if is_added_up else small_widths(count, slots)
        start = 0
        for width in widths:
            run = list(assignments[start : start + width])
            self._out.append(run)
            self._queue.add(Job("train", partial(self._arguments, run, is_added_up)))
            start += width
        self._place += count

    def next(self) -> Arrival:
        """Return the next arrival."""
        if not self._arrived:
            head, content = self._queue.next()
            run = self._out.popleft()
            self._arrived.extend(self._arrivals(run, head, content))
        return self._arrived.popleft()

    def abandon(self) -> None:
        """Let go of who is still out."""
        self._queue.abandon()

    def _arguments(self, run: Sequence[Assignment], is_added_up: bool) -> tuple[ClientRun]:
        sent: list[Sent] = []
        places: dict[int, int] = {}
        clients = []
        for assignment in run:
            name = id(assignment.broadcast)
            if name not in self._sent:
                self._sent[name] = assignment.broadcast, self._ray._sent(assignment.broadcast)
            if name not in places:
                places[name] = len(sent)
                sent.append(self._sent[name][1])
            clients.append((places[name], assignment.client, assignment.key))
        memory = self._ray._kept(assignment.client for assignment in run)
        return (ClientRun(sent, clients, memory, self._summation, is_added_up),)

    def _arrivals(self, run: Sequence[Assignment], head: Head, content: Any) -> Iterator[Arrival]:
        """Yield what a run came to; where a sum is hidden, client by client, hidden here."""
        if head.arrival is not None:
            subtotal = head.arrival.content
            assert isinstance(subtotal, Subtotal)
            yield head.arrival._replace(content=subtotal._replace(sum=content))
            return
        for assignment, arrival in zip(run, content, strict=True):
            if assignment.opening is not None:
                kept = arrival.memory.get(assignment.client, [])
                arrival = self._parties.arrival(assignment, arrival.content, kept)
            yield arrival


def _close(crew: Crew, code: Travelling) -> None:
    code.end()
    crew.close()
    leave()
