"""Simulation: every client on this machine, in this process, at hardware speed."""

from __future__ import annotations

import dataclasses
import logging
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from ..clients.personal import evaluate_client
from ..core.clusters import fold_of
from ..core.errors import ConfigError
from ..core.examples import Examples, leaves
from ..core.experiment import Experiment
from ..core.faults import crash_point
from ..core.folds import InTheOpen
from ..core.protocols import AggregationSession, Memory, Population
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.split import is_split
from ..core.types import (
    NOTHING,
    Assignment,
    Broadcast,
    ClientMetrics,
    ClientUpdate,
    Failure,
    RoundResult,
    Vector,
    add_metrics,
)
from ..core.validation import require, require_count
from .split import collect_split

if TYPE_CHECKING:  # TensorFlow is imported when a simulation opens, not when umbel is
    from ..clients.worker import Worker

log = logging.getLogger(__name__)
T = TypeVar("T")

AHEAD = 2  # clients per worker that may be finished and wait for their turn in the fold
CHUNK = 4096  # examples per evaluation call: fixed, so that sums do not depend on the number of workers


class Simulation:
    """Clients run side by side on worker threads, each with a model of its own; updates fold in cohort order.

    workers: threads; by default one per processor, or one per accelerator. The result does not depend on it.
    compile: "xla", "graph", or "auto": both are timed on the experiment's own model when the run is long enough to
    repay XLA's compilation. The choice is reported, stored with a run, and kept when it is resumed. It changes results
    by rounding only, unless the model draws random numbers (Dropout): XLA draws others.
    aggregation: for an experiment with secure aggregation or homomorphic encryption: its "arithmetic" alone, or the
    whole "protocol", keys and masks and all. Both give the same integers; the run says which it used.
    devices: logical devices ("GPU:0", "CPU:1"), shared out among the workers; by default every GPU, else the CPU.
    debug: run clients eagerly on one thread; errors name client, round and batch.
    replicas: devices among which each client's batches are divided, every worker having as many to itself where there
        are enough: for clients too large for one. The result is that of one device, to rounding. Compiled as a graph.

    One Simulation can run several experiments in turn; workers are rebuilt only when the experiment changes.
    """

    is_live = False

    def __init__(
        self,
        workers: int | None = None,
        compile: Literal["auto", "xla", "graph"] = "auto",
        devices: Sequence[str] | None = None,
        debug: bool = False,
        aggregation: Literal["arithmetic", "protocol"] = "arithmetic",
        replicas: int = 1,
    ):
        if workers is not None:
            require_count("workers", workers)
        require(compile in ("auto", "xla", "graph"), f"expected compile={compile!r} to be 'auto', 'xla' or 'graph'")
        words = ("arithmetic", "protocol")
        require(aggregation in words, f"expected aggregation={aggregation!r} to be 'arithmetic' or 'protocol'")
        self.workers, self.compile, self.device_names, self.debug = workers, compile, devices, debug
        require_count("replicas", replicas)
        require(replicas == 1 or compile != "xla", f"replicas={replicas} are compiled as a graph, not with XLA")
        self.aggregation, self.replicas = aggregation, replicas
        self._hiding: str = aggregation
        self._experiment: Experiment | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._team: list[Worker] = []
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._tensors: dict[tuple[Any, ...], tuple[Examples, Examples]] = {}

    def __repr__(self) -> str:
        return f"Simulation(workers={self.workers}, compile={self.compile!r})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> ModelSpec:
        """Build the workers, unless they already stand for this experiment, and choose how they compile."""
        self._memory = memory
        compiled = (choices or {}).get("compile")
        self._hiding = (choices or {}).get("aggregation", self.aggregation)
        fits = self._experiment is not None and workers_of(experiment) == workers_of(self._experiment)
        if not fits or compiled not in (None, self.describe()["compile"]):
            self.close()
            self._build(experiment, compiled)
        self._experiment = experiment
        for worker in self._team:
            worker.experiment = experiment
        return self._team[0].spec

    def describe(self) -> Mapping[str, str]:
        """The model's digests, how it was compiled, and how updates were hidden, if they were."""
        described = self._team[0].describe() | {"compile": "xla" if self._team[0].xla else "graph"}
        hides = self._running.aggregation is not None
        return described | ({"aggregation": self._hiding} if hides else {})

    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        return self._team[0].initial_params

    def forget_initial_params(self) -> None:
        """Keep no copy of them: whoever asks again waits for another model."""
        for worker in self._team:
            worker.forget_initial_params()

    def client_ids(self) -> Sequence[int]:
        """0 … clients − 1."""
        return range(len(self._running.population))

    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """Train the cohort; sum its updates in cohort order as they arrive."""
        if is_split(self._running.strategy):
            return self._collect_split(broadcast, cohort, key)
        session, failures = self._session(broadcast, cohort, key), []
        # Such a sampler excludes an aggregation, so that contributions are updates.
        reports, losses = getattr(self._running.sampler, "needs_losses", False), {}

        def train(client: int) -> tuple[Any, list[np.ndarray]]:
            own = key.derive("client", client)
            update, kept = self._borrow(lambda worker: self._train(worker, broadcast, client, own))
            if isinstance(update, Failure):
                return update, kept
            return session.contribute(client, update, own.derive("aggregation")), kept

        for client, (contribution, kept) in zip(cohort, self._in_order(train, cohort), strict=True):
            if isinstance(contribution, Failure):
                failures.append(contribution)
                continue
            if kept:
                self._memory.write(client, kept)
            session.add(client, contribution)
            if reports and "loss" in contribution.metrics:
                losses[client] = contribution.metrics["loss"].mean()
            crash_point("mid-training", broadcast.round)
        down = len(cohort) * (broadcast.params.nbytes + broadcast.extra.nbytes)
        return RoundResult(session.total(), failures, session.bytes_up, down, losses if reports else None)

    def _collect_split(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """A round whose clients hold the first half of the model alone."""
        halves = self._team[0].halves
        assert halves is not None

        def train(given: Broadcast, client: int) -> tuple[Any, list[np.ndarray]]:
            return self._borrow(lambda worker: self._train(worker, given, client, key.derive("client", client)))

        memory, on_client = self._memory, halves.on_client
        return collect_split(self._running, memory, on_client, broadcast, cohort, key, train, self._in_order)

    def train_each(self, assignments: Sequence[Assignment]) -> Iterator[ClientUpdate | Failure]:
        """Train distinct clients side by side, each from its own broadcast; their updates, in order."""

        def train(one: Assignment) -> tuple[ClientUpdate | Failure, list[np.ndarray]]:
            own = one.key.derive("client", one.client)
            return self._borrow(lambda worker: self._train(worker, one.broadcast, one.client, own))

        for one, (update, kept) in zip(assignments, self._in_order(train, assignments), strict=True):
            if kept and not isinstance(update, Failure):
                self._memory.write(one.client, kept)
            yield update
            crash_point("mid-training", one.broadcast.round)

    def evaluate(self, params: Vector, examples: Examples) -> dict[str, Any]:
        """Central evaluation, in chunks over the workers."""
        tensors = self._resident(examples)
        chunks = [np.arange(start, min(start + CHUNK, examples.count)) for start in range(0, examples.count, CHUNK)]
        results = self._in_order(
            lambda rows: self._borrow(lambda worker: worker.evaluate(params, tensors(worker), rows)), chunks
        )
        total: dict[str, Any] = {}
        for sums in results:
            total = add_metrics(total, sums)
        return total

    def evaluate_clients(self, params: Vector, clients: Sequence[int], extra: Vector = NOTHING) -> ClientMetrics:
        """Each client's own validation examples, with what it keeps at home, or with the model that it chooses."""
        population = self._running.validation
        if population is None:
            raise ConfigError("the experiment has no validation population to evaluate clients on")
        sizes = population.sizes()
        # A fold of other clients has its own numbering: what training clients keep at home is not theirs.
        remembers = not hasattr(population, "members")
        clients = [client for client in clients if sizes[client]]
        broadcast = Broadcast(0, params, extra, (), None)

        def evaluate(client: int) -> dict[str, Any]:
            def with_worker(worker: Worker) -> dict[str, Any]:
                held_out = self._examples(worker, population, client)
                memory = self._memory.read(client) if remembers else None
                training = partial(self._examples, worker, self._running.population, client)
                return evaluate_client(worker, broadcast, client, held_out, memory, training)

            return self._borrow(with_worker)

        total: dict[str, Any] = {}
        values: dict[str, list[float]] = {}
        for sums in self._in_order(evaluate, clients):
            total = add_metrics(total, sums)
            for name, value in sums.items():
                values.setdefault(name, []).append(value.mean())
        return ClientMetrics(total, {name: np.array(column) for name, column in values.items()})

    def close(self) -> None:
        """Stop the threads and let the models go."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._team, self._experiment = None, [], None
        self._idle = queue.SimpleQueue()
        self._tensors = {}

    @property
    def _running(self) -> Experiment:
        if self._experiment is None:
            raise ConfigError("this Simulation has no experiment yet; hand it to run(experiment, simulation)")
        return self._experiment

    def _build(self, experiment: Experiment, compiled: str | None) -> None:
        prepare(experiment)
        from ..clients.building import check_test
        from ..clients.choice import choose_xla
        from ..clients.devices import configure_tensorflow, default_workers, pick_devices, shared_out
        from ..clients.dispatch import Library
        from ..clients.worker import Worker

        configure_tensorflow()
        devices = pick_devices(self.device_names)
        groups = shared_out(devices, self.replicas)
        usual = default_workers(devices) if self.replicas == 1 else len(groups)
        count = 1 if self.debug else self.workers or usual
        library, mode = Library(), compiled or self.compile
        use_xla = mode == "xla"
        require(self.replicas == 1 or not use_xla, "a run that was compiled with XLA goes on with replicas=1 only")
        turns = [groups[i % len(groups)] for i in range(count)]
        self._team = [
            Worker(experiment, own[0], debug=self.debug, library=library, replicas=own if self.replicas > 1 else ())
            for own in turns
        ]
        if (examples := experiment.test_examples()) is not None:
            check_test(self._team[0].model, examples)
        if mode == "auto" and not self.debug and self.replicas == 1:
            data, rows = zip(*(self._examples(worker, experiment.population, 0) for worker in self._team), strict=True)
            use_xla = choose_xla(self._team, data, rows[0])
        for worker in self._team:
            worker.use_xla(use_xla)
            self._idle.put(worker)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="umbel-worker")

    def _session(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> AggregationSession:
        experiment = self._running
        if experiment.aggregation is None or not cohort:
            size = experiment.encoded_shape(broadcast).delta
            return InTheOpen(fold_of(experiment), size, experiment.codec)
        shape, is_real = experiment.encoded_shape(broadcast), self._hiding == "protocol"
        return experiment.aggregation.session(shape, cohort, broadcast.round, key.derive("aggregation"), is_real)

    def _train(self, worker: Worker, broadcast: Broadcast, client: int, key: Key):
        data, rows = self._examples(worker, self._running.population, client)
        return worker.train(broadcast, client, key, data, rows, self._memory.read(client))

    def _examples(self, worker: Worker, population: Population, client: int) -> tuple[Examples, np.ndarray]:
        """The arrays this client indexes into, on worker's device, and its rows of them."""
        resident = population.resident()
        if resident is not None:
            return self._resident(resident)(worker), population.indices(client)
        own = population.examples(client)
        return own, np.arange(own.count, dtype=np.int32)

    def _resident(self, examples: Examples) -> Callable[[Worker], Examples]:
        """examples as tensors, put on each device once and kept there."""

        def on(worker: Worker) -> Examples:
            place = (*map(id, examples), worker.device)  # the same inputs may have other targets elsewhere
            if place not in self._tensors:
                self._tensors[place] = examples, worker.put(examples)
            return self._tensors[place][1]

        return on

    def _borrow(self, work: Callable[[Worker], T]) -> T:
        worker = self._idle.get()
        try:
            return work(worker)
        finally:
            self._idle.put(worker)

    def _in_order(self, work: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """work(item) for every item, side by side; results in the items' order, few of them waiting at any time."""
        assert self._pool is not None
        if len(self._team) == 1:
            yield from map(work, items)  # errors keep their traceback, debuggers stop where they should
            return
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item))
                if len(waiting) > AHEAD * len(self._team):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def prepare(experiment: Experiment) -> None:
    """What experiment needs to be loaded before TensorFlow is: an aggregation's `prepare`, where it has one."""
    getattr(experiment.aggregation, "prepare", lambda: None)()


def workers_of(experiment: Experiment) -> tuple:
    """What workers are built from: equal values mean they can be used again."""
    local = dataclasses.replace(experiment.local, learning_rate=None, shuffle=True)
    resident = experiment.population.resident()
    return (
        experiment.model,
        experiment.seed,
        experiment.personal,
        local,
        experiment.local.learning_rate is None,
        experiment.client_rule,
        getattr(experiment.strategy, "cut", None),
        # The arrays: the same data set divided otherwise has examples in a tuple of its own.
        () if resident is None else tuple(map(id, leaves(tuple(resident)))),
    )
