"""Simulation: every client on this machine, in this process, at hardware speed."""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np

from ..clients.choices import TeamSettings
from ..clients.engine import Asking, Engine, play_together
from ..clients.personal import evaluation
from ..clients.round import Played, client_round, train_client
from ..clients.tasks import chunk_of, evaluate
from ..clients.teams import choose, hire
from ..clients.together import is_summed, play_summed
from ..core.bases import Population
from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.experiment import Experiment
from ..core.parts.private import SecureAggregation
from ..core.protocols import Memory
from ..core.reading.directions import Measures
from ..core.recipe import Recipe
from ..core.runtime import WAIT, Arrival, Assignment, Opened, Parties
from ..core.summation import Summation, summation_of
from ..core.sums import ClientSum, Meeting, ServerSum
from ..core.system.backend import require_backend
from ..core.types import NOTHING, Broadcast, ClientMetrics, Metrics, Value, Vector, add_metrics
from ..core.validation import require, require_count
from .runs import in_blocks, in_runs
from .team import digests_of, held_out, workers_of

if TYPE_CHECKING:  # TensorFlow is imported with a team of its
    from ..clients.tensorflow.engine import TensorFlowEngine
    from ..clients.tensorflow.second import SecondProgram

log = logging.getLogger(__name__)
T = TypeVar("T")

LARGE_BYTES = 1 << 29  # size of a data set on a CPU from which a client's examples are copied when they are needed
AHEAD = 2  # number of clients per worker that may be finished and wait for their turn in the sum


class Simulation:
    """Clients run side by side on worker threads, each with variables of its own; updates are added in cohort order.

    One Simulation can run several experiments in turn; workers are rebuilt only when the experiment changes.

    Parameters
    ----------
    workers
        Threads; by default one per processor, or one per accelerator. The result does not depend on it.
    compile
        "xla", "graph", or "auto": XLA for a long run of a model whose operations XLA is fast at, a graph for all else.
        No clock is asked: the same experiment is compiled in the same way everywhere. What XLA cannot compile runs as a
        graph. The choice and its reason are stored with a run, and the choice is kept when it is resumed. It changes
        results by rounding only, unless the model draws random numbers (Dropout): XLA draws others.
    aggregation
        For an experiment with secure aggregation or homomorphic encryption: its "arithmetic" alone, or the whole
        "protocol", keys and masks and all. Both give the same integers; the run says which it used.
    devices
        Logical devices ("GPU:0", "CPU:1"), shared out among the workers; by default every GPU, else the CPU.
    debug
        Run clients eagerly on one thread; errors name client, round and batch. So does a model that is compiled with
        run_eagerly=True.
    replicas
        Devices among which each client's batches are divided, every worker having as many to itself where there are
        enough: for clients too large for one. The result is that of one device, to rounding. Compiled as a graph.
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
        require(isinstance(debug, bool), f"expected debug={debug!r} to be True or False")
        self.workers, self.compile, self.device_names, self.debug = workers, compile, devices, debug
        require_count("replicas", replicas)
        require(replicas == 1 or compile != "xla", f"replicas={replicas} are compiled as a graph, not with XLA")
        self.aggregation, self.replicas = aggregation, replicas
        self._hiding: str = aggregation
        self._experiment: Experiment | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._parties = Parties()
        self._settings = TeamSettings(workers, compile, devices, debug, replicas)
        self._choices: dict[str, str] = {}
        self._team: list[Engine] = []
        self._idle: queue.SimpleQueue[Engine] = queue.SimpleQueue()
        self._tensors: dict[tuple[Any, ...], tuple[Examples, tuple, Examples]] = {}
        self._built_from: tuple = ()

    def __repr__(self) -> str:
        return f"Simulation(workers={self.workers}, compile={self.compile!r})"

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Build the workers, unless they already stand for this experiment, and choose how they compile."""
        self._memory = memory
        self._hiding = (choices or {}).get("aggregation", self.aggregation)
        # As it is now: what a builder reads, and arrays, may have changed since the team was built.
        built_from = workers_of(experiment.resolved)
        is_same = self._experiment is not None and built_from == self._built_from
        # What a builder reads elsewhere, in a file or the environment, is seen by building once more.
        if not is_same or not self._team[0].is_current(experiment.resolved):
            self.close()
            self._build(experiment)
            self._built_from = built_from
        elif self._experiment is not None and held_out(experiment) != held_out(self._experiment):
            self._check_held_out(experiment)
        self._let_go_of_data(experiment.resolved)
        joins = self.joins("train")
        if experiment.secure_aggregation is not None:
            experiment.secure_aggregation.check_joins(joins)
        for worker in self._team:
            worker.experiment = experiment.resolved
        self._choices = choose(self._team, self._settings, choices or {})
        self._experiment = experiment
        engine = self._team[0]
        summation = summation_of(self._running, engine.spec)
        return Opened(engine.spec, summation, engine.on_client, base=engine.base, joins=joins)

    @property
    def figures(self) -> Mapping[str, int]:
        """Return nothing: all is done in this process."""
        return {}

    def describe(self) -> Mapping[str, str]:
        """Return the model's digests, how it was compiled, and how updates were hidden, if they were."""
        described = self._team[0].describe() | self._choices
        hides = self._running.secure_aggregation is not None
        return described | ({"aggregation": self._hiding} if hides else {})

    def measures(self) -> Measures:
        """Return the metrics that the model measures, and which way they are to go."""
        return self._team[0].measures()

    def initial_params(self) -> Vector:
        """Return the model's own initial weights, drawn from the experiment's seed."""
        return self._team[0].initial_params

    def used_devices(self) -> tuple[str, ...]:
        """Return the device of each worker."""
        return tuple(engine.device for engine in self._team)

    def forget_initial_params(self) -> None:
        """Keep no copy of the initial weights: whoever asks again waits for another model."""
        for worker in self._team:
            worker.forget_initial_params()

    def second_half(self) -> SecondProgram:
        """Return the server's half of a model that is cut, for clients on other machines."""
        from ..clients.tensorflow.second import SecondProgram

        return SecondProgram(cast("TensorFlowEngine", self._team[0]))

    @property
    def on_client(self) -> np.ndarray:
        """Mark the numbers of a model that is cut which lie with clients: bool, shape (d,)."""
        on_client = self._team[0].on_client
        assert on_client is not None
        return on_client

    def client_ids(self) -> Sequence[int]:
        """Return the clients' numbers, 0 … clients − 1."""
        return range(len(self._running.population))

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Train clients side by side, each from its own broadcast; arrivals in the order of work."""
        self._parties = parties = Parties()
        engine = self._team[0]
        blocks = partial(in_blocks, engine.width, partial(self._play_block, parties))
        if engine.width == 1:
            yield from self._in_order(partial(self._play, parties), work)
        elif is_summed(engine, summation):
            yield from in_runs(work, engine.width, partial(self._sum_up, summation.losses), blocks)
        else:
            yield from blocks(work)

    def hidden_sum(
        self, aggregation: SecureAggregation, meeting: Meeting, cohort: Sequence[int]
    ) -> tuple[ServerSum, Callable[[int], ClientSum] | None]:
        """Return both halves: the arithmetic, or the whole protocol."""
        return aggregation.rehearse(meeting, cohort, self._hiding == "protocol")

    def ask(self, messages: Mapping[int, bytes], reply_bytes: int) -> Iterator[Arrival]:
        """Yield the replies of the clients' halves."""
        return self._parties.ask(messages)

    def evaluate(self, params: Vector, examples: Examples) -> dict[str, Any]:
        """Evaluate params centrally, in chunks over the workers."""
        total: dict[str, Any] = {}
        for sums in self.measured(params, examples, range(0, examples.count, self.chunk)):
            total = add_metrics(total, sums)
        return total

    @property
    def chunk(self) -> int:
        """Number of examples in a chunk of a central evaluation."""
        return chunk_of(self._team[0])

    def measured(self, params: Vector, examples: Examples, starts: Iterable[int]) -> Iterator[Metrics]:
        """Yield the metrics' states over the chunks of examples that begin at `starts`, in their order."""

        def measure(start: int) -> dict[str, Any]:
            rows = np.arange(start, min(start + self.chunk, examples.count))
            return self._borrow(lambda engine: evaluate(engine, params, *self._part(engine, examples, rows)))

        return self._in_order(measure, starts)

    def results(self, step: Literal["train", "test"], metrics: Metrics) -> Mapping[str, Value]:
        """Return the values of joined states, by the model of the first worker."""
        return self._team[0].results(step, metrics)

    def evaluate_clients(self, params: Vector, clients: Sequence[int], extra: Vector = NOTHING) -> ClientMetrics:
        """Evaluate params on each client's own validation examples.

        Each has what it keeps at home, or the model that it chooses.
        """
        return self.gathered(self.measured_clients(params, clients, extra))

    def measured_clients(
        self, params: Vector, clients: Sequence[int], extra: Vector = NOTHING
    ) -> Iterator[tuple[int, Metrics]]:
        """Yield each client that has validation examples, and its metrics' states. Arguments: see evaluate_clients."""
        population = self._running.validation_clients()
        if population is None:
            raise ConfigError("the experiment has no validation population to evaluate clients on")
        sizes = population.sizes()
        # A fold of other clients has its own numbering: what training clients keep at home is not theirs.
        remembers = not population.is_some_clients
        clients = [client for client in clients if sizes[client]]
        broadcast = Broadcast(0, params, extra, (), None)

        def asking(engine: Engine, client: int) -> Asking[dict[str, Any]]:
            held_out = self._examples(engine, population, client)
            memory = self._memory.read(client) if remembers else None
            training = partial(self._examples, engine, self._running.population, client)
            return evaluation(engine, broadcast, client, held_out, memory, training)

        def measure(block: Sequence[int]) -> list[dict[str, Any]]:
            return self._borrow(lambda engine: play_together(engine, [asking(engine, client) for client in block]))

        if self._team[0].width > 1:
            return zip(clients, in_blocks(self._team[0].width, measure, clients), strict=True)
        return zip(clients, self._in_order(lambda client: measure([client])[0], clients), strict=True)

    def terms(self) -> str:
        """Return the terms on which the model's metrics travel, for whoever builds it elsewhere."""
        return self._team[0].terms()

    def joins(self, step: Literal["train", "test"]) -> Mapping[str, tuple]:
        """Return how the numbers of each metric's state join, by what it travels under; () for a mean."""
        return self._team[0].joins(step)

    def gathered(self, clients: Iterable[tuple[int, Metrics]]) -> ClientMetrics:
        """Return the sum of what clients' evaluations measured, and each one's own values."""
        return self._team[0].gathered(clients)

    def close(self) -> None:
        """Stop the threads and let the models go."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._team, self._experiment = None, [], None
        self._idle = queue.SimpleQueue()
        self._tensors = {}

    @property
    def _running(self) -> Recipe:
        if self._experiment is None:
            raise ConfigError("this Simulation has no experiment yet; hand it to run(experiment, simulation)")
        return self._experiment.resolved

    def _build(self, experiment: Experiment) -> None:
        prepare(experiment.resolved)
        self._team = hire(experiment, self._settings)
        self._check_held_out(experiment)
        for worker in self._team:
            self._idle.put(worker)
        self._pool = ThreadPoolExecutor(len(self._team), thread_name_prefix="umbel-worker")

    def _check_held_out(self, experiment: Experiment) -> None:
        """Raise ConfigError for test or validation examples that do not fit the model."""
        engine, population = self._team[0], experiment.resolved.validation
        examples = experiment.resolved.test_examples()
        if examples is not None:
            engine.check(examples, "test")
        if population is not None:
            sizes = population.sizes()
            engine.check(population.resident() or population.examples(int(np.argmax(sizes > 0))), "validation")

    def _play(self, parties: Parties, assignment: Assignment) -> Arrival:
        """Return what comes back of an assignment."""
        broadcast, client = assignment.broadcast, assignment.client
        key = assignment.key.derive("client", client)

        def train(engine: Engine) -> Played:
            data, rows = self._examples(engine, self._running.population, client)
            return train_client(engine, broadcast, client, key, data, rows, self._memory.read(client))

        return parties.arrival(assignment, *self._borrow(train))

    def _play_block(self, parties: Parties, block: Sequence[Assignment]) -> list[Arrival]:
        """Return what comes back of assignments that are trained side by side."""

        def asking(engine: Engine, assignment: Assignment) -> Asking[Played]:
            client = assignment.client
            data, rows = self._examples(engine, self._running.population, client)
            key, memory = assignment.key.derive("client", client), self._memory.read(client)
            return client_round(engine, assignment.broadcast, client, key, data, rows, memory)

        def train(engine: Engine) -> list[Played]:
            return play_together(engine, [asking(engine, assignment) for assignment in block])

        return [parties.arrival(one, *played) for one, played in zip(block, self._borrow(train), strict=True)]

    def _sum_up(self, losses: bool, block: Sequence[Assignment]) -> Arrival:
        """Return the sum of what assignments come to."""
        population = self._running.population

        def train(engine: Engine) -> Arrival:
            held = [self._examples(engine, population, assignment.client) for assignment in block]
            return play_summed(engine, block, held, losses)

        return self._borrow(train)

    def _examples(self, engine: Engine, population: Population, client: int) -> tuple[Examples, np.ndarray]:
        """Return the arrays this client indexes into, on the engine's device, and its rows of them."""
        resident = population.resident()
        if resident is not None:
            return self._part(engine, resident, population.indices(client))
        own = population.examples(client)
        return own, np.arange(own.count, dtype=np.int32)

    def _part(self, engine: Engine, examples: Examples, rows: np.ndarray) -> tuple[Examples, np.ndarray]:
        """Return arrays on the engine's device, and rows of them that are examples at `rows`.

        examples are put on each device once and kept there; not so a large data set on a CPU, which lies in the
        processor's memory as it is, and would be held twice.
        """
        if engine.device.startswith("CPU") and examples.nbytes > LARGE_BYTES:
            return examples.take(rows), np.arange(len(rows), dtype=np.int32)
        place = (*map(id, examples), engine.device)  # the same inputs may have other targets elsewhere
        if place not in self._tensors:
            self._tensors[place] = examples, digests_of(examples), engine.put(examples)
        return self._tensors[place][2], rows

    def _let_go_of_data(self, experiment: Recipe) -> None:
        """Keep of the data on devices what experiment names and what has not been changed in place since."""
        sets = [one.resident() for one in (experiment.population, experiment.validation) if one is not None]
        named = {tuple(map(id, one)) for one in (*sets, experiment.test_examples()) if one is not None}
        self._tensors = {
            place: data
            for place, data in self._tensors.items()
            if place[:-1] in named and digests_of(data[0]) == data[1]
        }

    def _borrow(self, work: Callable[[Engine], T]) -> T:
        engine = self._idle.get()
        try:
            return work(engine)
        finally:
            self._idle.put(engine)

    def _in_order(self, work: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """Yield work(item) for every item, done side by side; in the items' order, few of them waiting at any time.

        WAIT among the items: another result is yielded before the next one is taken.
        """
        assert self._pool is not None
        if len(self._team) == 1:
            # On this thread: errors keep their traceback, debuggers stop where they should.
            yield from (work(item) for item in items if item is not WAIT)
            return
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                if item is WAIT:
                    yield waiting.popleft().result()
                    continue
                waiting.append(self._pool.submit(work, item))
                if len(waiting) > AHEAD * len(self._team):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def prepare(experiment: Recipe) -> None:
    """Load what experiment needs before the backend is: an aggregation's `prepare`, where it has one.

    Errors: ConfigError where Keras has a backend that Umbel does not train with.
    """
    require_backend()
    if experiment.secure_aggregation is not None:
        experiment.secure_aggregation.prepare()
