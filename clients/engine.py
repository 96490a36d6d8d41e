"""The engine: what computes. Everything else about a client is NumPy, and the same for every engine.

    prepare ─► a task ─► engine ─► its answer ─► conclude          (a round may ask more than once)

An engine is a model on a device, compiled. It trains from a vector and evaluates one, and knows no algorithm: which
vector, which examples in which order, which correction, which random numbers are all in the task.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from ..core.examples import Examples
from ..core.frozen import Base
from ..core.parts.phases import Course
from ..core.random import Key
from ..core.reading.directions import Measures
from ..core.recipe import Recipe
from ..core.spec import ModelSpec
from ..core.types import ClientMetrics, Join, Metrics, MetricState, Value, Vector, Weighted

StepName = Literal["train", "test"]
T = TypeVar("T")


class TrainTask(NamedTuple):
    """One training of a client's, from a vector, over its own examples."""

    round: int
    client: int
    params: Vector  # vector that it begins with: float32, shape (d,)
    data: Examples  # arrays, where the engine computes, that `order` names rows of
    personal: Sequence[Any]  # values of the variables that stay at home
    order: np.ndarray  # rows of the data per epoch, shape (epochs, at least `examples`), of which the first count
    examples: int
    last: int  # number of examples in the last epoch that Local governs: fewer where Local ends it early
    learning_rate: float
    course: Course  # which variables, for how long
    offset: Vector  # vector added to every gradient: shape (d,), or empty for nothing
    key: Key  # key that the model's random numbers follow from
    draws: Key | None  # key that DP-SGD's batches and noise follow from; None: no DP-SGD


class EvaluateTask(NamedTuple):
    """One evaluation of a vector, over rows of data."""

    params: Vector
    data: Examples
    personal: Sequence[Any]
    rows: np.ndarray
    key: Key


class Trained(NamedTuple):
    """Result of a client's training."""

    delta: Vector  # local − global: shape (d,)
    personal: list[np.ndarray]  # values of the variables that stay at home
    metrics: Measured
    traffic: tuple[int, int] | None = None  # bytes up and down of a model that is cut; None for a whole one


Measured = dict[str, Weighted | MetricState]  # the states of metrics, by the names that they travel under
Task = TrainTask | EvaluateTask
Asking = Generator[Task, Any, T]  # work that yields tasks, and is sent a Trained, or metrics, for each


class Summed(NamedTuple):
    """Result of the trainings of several clients, of which nobody sees a single one."""

    delta: Vector  # Σ weight·(local − global) over the clients that count, added in the order of `core.tree`
    metrics: Measured  # Σ metrics, likewise
    losses: np.ndarray | None  # each client's mean loss: float64; None where the model reports none
    counted: np.ndarray  # which clients' deltas are finite; no other is in the sum: bool


class Summing(Protocol):
    """The part of an engine that adds deltas up where they are."""

    def total(self, tasks: Sequence[TrainTask], weights: np.ndarray) -> Summed:
        """Train clients, none of which has variables that stay at home, and add up. weights: float64, one for each."""


class Engine(Protocol):
    """A model on one device, with variables of its own. Threads must not share an engine."""

    experiment: Recipe
    device: str
    spec: ModelSpec
    base: Base  # values of the frozen variables
    is_live: bool  # whether this is a real device, whose noise must not follow from a key that the server knows
    is_debugged: bool  # whether what is wrong with an example ends its client's training in words
    on_client: np.ndarray | None  # which numbers of a model that is cut lie with clients: bool, shape (d,)
    initial_memory: list[np.ndarray]  # values of the variables that stay at home, before any round
    default_rate: float  # the optimizer's own learning rate, as compiled
    fixed_batch: int | None  # the only batch size that the model takes; None: any
    evaluation_batch: int  # number of examples in a step of an evaluation

    width: int  # number of clients whose tasks are best asked for at once
    summing: Summing | None  # what adds deltas up where they are; None: it does not

    def train(self, tasks: Sequence[TrainTask]) -> list[Trained]:
        """Train clients. Errors: ClientError for what the backend cannot compute of a client's examples."""

    def evaluate(self, tasks: Sequence[EvaluateTask]) -> list[Measured]:
        """Return the metrics' states over the rows of each task."""

    def check(self, examples: Examples, kind: str) -> None:
        """Raise ConfigError for examples that cannot be evaluated. kind: what they are for, "test" or "validation"."""

    def put(self, examples: Examples) -> Examples:
        """Return examples as they lie where this engine computes."""

    def describe(self) -> dict[str, str]:
        """Return what identifies the model: a digest of its variables, and one of its architecture and settings."""

    def is_current(self, experiment: Recipe) -> bool:
        """Return whether experiment's builder still makes the model that this engine was built with."""

    def measures(self) -> Measures:
        """Return the metrics that the model measures, and which way they are to go."""

    def terms(self) -> str:
        """Return the terms on which the model's metrics travel, as text."""

    def joins(self, step: StepName) -> Mapping[str, tuple[tuple[Join, int], ...]]:
        """Return how the numbers of each metric's state join, by what it travels under; () for a mean."""

    def results(self, step: StepName, metrics: Metrics) -> dict[str, Value]:
        """Return the values of joined states, by the names that Keras logs them under."""

    def gathered(self, clients: Iterable[tuple[int, Metrics]]) -> ClientMetrics:
        """Return the sum of what clients' evaluations measured, and each one's own values."""

    @property
    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""

    def forget_initial_params(self) -> None:
        """Hold the initial weights no longer than they are asked for: as much memory as the model."""


def play(engine: Engine, work: Asking[T]) -> T:
    """Let engine answer what work asks for; return work's result. What the engine raises is raised inside work."""
    return play_together(engine, [work])[0]


def play_together(engine: Engine, works: Sequence[Asking[T]]) -> list[T]:
    """Same as `play`, for several: what they ask for at the same time is one call of the engine."""
    results: dict[int, T] = {}
    asked: dict[int, Task] = {}

    def go_on(number: int, step: Callable[[], Task]) -> None:
        try:
            asked[number] = step()
        except StopIteration as done:
            results[number] = done.value

    for number, work in enumerate(works):
        go_on(number, partial(next, work))
    while asked:
        tasks = dict(asked)
        asked.clear()
        for number, answer in answers(engine, tasks).items():
            raises = isinstance(answer, Exception)
            go_on(number, partial(works[number].throw if raises else works[number].send, answer))
    return [results[number] for number in range(len(works))]


def answers(engine: Engine, tasks: Mapping[int, Task]) -> dict[int, Any]:
    """Return the engine's answer to each task; the exception that it raised for all of one kind."""
    trainings = {number: task for number, task in tasks.items() if isinstance(task, TrainTask)}
    evaluations = {number: task for number, task in tasks.items() if isinstance(task, EvaluateTask)}
    found: dict[int, Any] = {}
    calls: list[tuple[dict[int, Any], Callable[..., list]]] = [
        (trainings, engine.train),
        (evaluations, engine.evaluate),
    ]
    for kind, answer in calls:
        try:
            found |= zip(kind, answer(list(kind.values())), strict=True) if kind else {}
        except Exception as error:
            found |= dict.fromkeys(kind, error)
    return {number: found[number] for number in tasks}
