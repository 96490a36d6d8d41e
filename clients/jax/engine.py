"""The JAX engine: many clients in one step, each with a state of its own, over Keras's own `train_step`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ...core.errors import ClientError, ConfigError
from ...core.examples import Examples, map_arrays
from ...core.experiment import Experiment
from ...core.frozen import Base
from ...core.parts.private import PerExamplePrivacy
from ...core.random import derive
from ...core.reading.directions import Measures
from ...core.recipe import Recipe
from ...core.spec import ModelSpec
from ...core.types import ClientMetrics, Join, Metrics, Value, Vector
from ..draws import PrivateTask, private_task
from ..engine import EvaluateTask, Measured, StepName, Task, Trained, TrainTask
from ..keras.agreed import Agreement
from ..keras.building import (
    BUILDING,
    as_keras,
    batch_of,
    build_model,
    check_labels,
    describe_model,
    for_batches,
    origin_now,
    reason,
    shapes,
)
from ..keras.checks import check_batches, check_rates, check_rule
from ..keras.directions import measures_of
from ..keras.lookups import check_lookups, fault_of_client
from ..keras.meter import Meter
from ..keras.one_by_one import check_model
from ..keras.per_client import ClientTable, gathered
from ..keras.samples import sample_of
from .blocks import Block, batches_of, powers, whole
from .debug import Watched
from .eager import assigned_by, check_numbers, convolves, create_variables, explained, fetched, fixed_batch, traced_step
from .grouping import alike, blocks_of, filled, len_of, nothing_alike, visited_of
from .lanes import Lanes
from .lookups import tables_of
from .private import PrivateSteps, room_for, take_private_steps
from .programs import Programs, StepKind
from .refusals import check_supported
from .totals import BlockSums
from .variables import ModelVariables
from .width import at_once, block_for

log = logging.getLogger(__name__)
EVALUATION_BATCH = 512
T = TypeVar("T")


class JaxEngine:
    """A model on one device, whose clients train in blocks."""

    is_live = False
    on_client = None

    def __init__(
        self,
        experiment: Experiment | Recipe,
        block: int | None = None,
        agreement: Agreement | None = None,
        debug: bool = False,
        lanes: int | None = None,
    ):
        """Build experiment's model. block: number of clients in a block; None: what a cache has room for.

        agreement: how metrics travel, as another engine of this experiment found; None: find it. debug: take each
        client's steps alone and uncompiled, as for a model with run_eagerly=True. lanes: see `Lanes`. Errors:
        ConfigError for a model that is not compiled or does not fit the clients' examples; IncompatibleError for what
        JAX does not carry yet.
        """
        self.experiment = recipe = experiment.resolved
        self.device = "CPU:0" if jax.default_backend() == "cpu" else "GPU:0"
        check_supported(recipe)
        sample = as_keras(sample_of(recipe.population))
        with BUILDING:
            key = derive(recipe.seed, "model")
            self.model, moved, self._origin = build_model(recipe.model, sample, key, create_variables)
            if recipe.start is not None:
                recipe.start.load_into(self.model)
            traced = traced_step(self.model, batch_of(for_batches(self.model, sample)))
            spec = ModelSpec.of(self.model, recipe.personal, moved)
            pairs = zip(self.model.weights, spec.variables, strict=True)
            self.base = Base(tuple(np.array(weight.value) for weight, variable in pairs if variable.is_frozen))
            self.spec = spec.on(self.base)
            self.meter = Meter.of(self.model, sample, agreement)
            if recipe.local.per_example is not None:
                check_model(self.model, sample)
            self.variables = ModelVariables(self.model, self.spec, self.meter, assigned_by(self.model, traced))
        self._tables = tables_of(self.model, sample.x)
        check_lookups(self._tables, sample, "training")
        self.fixed_batch = fixed_batch(self.model, sample)
        self.evaluation_batch = self.fixed_batch or EVALUATION_BATCH
        check_batches(recipe, self.fixed_batch)
        check_rates(recipe, self.variables)
        if recipe.rule is not None:
            check_rule(recipe.rule, self.variables)
        self.is_debugged = debug or bool(self.model.run_eagerly)
        self.has_convolutions = convolves(traced)
        self.loops = not (self.has_convolutions or self.is_debugged)
        self._full = recipe.local.batch_size if self.loops else None
        self.lanes = Lanes(1 if self.is_debugged else lanes)
        self.use_block(1 if self.is_debugged else block or block_for(recipe, self.spec.size))
        self.initial_memory = [np.array(weight.value) for weight in self.variables.personal]
        rate = self.variables.rate
        self.default_rate = math.nan if rate is None else float(np.array(rate.value))
        self._description = {"model.base": self.spec.base[:16]} if self.spec.base else {}
        self._description |= {"model.variables": self.spec.digest[:16], "model.config": describe_model(self.model)}
        self._initial_params: Vector = self.spec.flatten(self.model.get_weights())
        self._table = ClientTable(self.meter)
        self._programs = Programs(self.variables, self.lanes, self.is_debugged, self.loops)
        self._sent: tuple[Vector, Any] | None = None
        self.summing = None if self.is_debugged else BlockSums(self)

    def use_block(self, block: int) -> None:
        """Let so many clients take their steps in one call."""
        self.block, self.width = block, 1 if self.is_debugged else at_once(block, self.spec.size)

    def is_current(self, experiment: Recipe) -> bool:
        """Return whether experiment's builder still makes the model that this engine was built with."""
        return origin_now(experiment.model, derive(experiment.seed, "model")) == self._origin

    def train(self, tasks: Sequence[TrainTask]) -> list[Trained]:
        """Train clients, a block at a time. Errors: ClientError for what JAX cannot compute of the examples."""
        if self.experiment.local.per_example is not None:
            return self._train_privately(tasks, self.experiment.local.per_example)

        def trained(places: list[int], found: Any) -> list[Trained]:
            return self._told("train", [tasks[place] for place in places], fetched(found))

        results: dict[int, Trained] = {}
        for places, block in self.trained_blocks(tasks, trained):
            results |= zip(places, block, strict=True)
        return [results[place] for place in range(len(tasks))]

    def trained_blocks(
        self, tasks: Sequence[TrainTask], finish: Callable[[list[int], Any], T]
    ) -> list[tuple[list[int], T]]:
        """Train clients, blocks side by side; return the places of each block's, and what finish makes of it.

        finish(places, found): deltas, personal variables and metrics of a block, on the device.
        """
        self._look_at(tasks)
        self._sent_vector(tasks[0].params)

        def trained(places: list[int]) -> tuple[list[int], T]:
            return places, finish(places, self._train_block([tasks[place] for place in places]))

        return self.lanes.map(trained, list(blocks_of(tasks, self.block, alike)))

    def evaluate(self, tasks: Sequence[EvaluateTask]) -> list[Measured]:
        """Return the metrics' states over the rows of each task."""
        self._look_at(tasks)
        width = 1 if len(tasks) == 1 else self.block
        self._sent_vector(tasks[0].params)
        blocks = list(blocks_of(tasks, self.block, nothing_alike))
        measured = self.lanes.map(
            lambda places: self._evaluate_block([tasks[place] for place in places], width), blocks
        )
        results: dict[int, Measured] = {}
        for places, block in zip(blocks, measured, strict=True):
            results |= zip(places, block, strict=True)
        return [results[place] for place in range(len(tasks))]

    def check(self, examples: Examples, kind: str) -> None:
        """Raise ConfigError for examples that cannot be evaluated, before a round is spent. kind: what they are for."""
        if not examples.count:
            return
        try:
            check_labels(self.model, examples)
            check_numbers(examples)
            check_lookups(self._tables, examples, kind)
        except ConfigError as error:
            raise ConfigError(f"{kind}: {error}") from error
        one = as_keras(for_batches(self.model, examples))
        groups = [[jnp.asarray(self.variables.initial[self.variables.numbers[id(variable)]]) for variable in group]
                  for group in self.variables.groups]  # fmt: skip
        state = groups[0], groups[1], groups[3]
        try:
            with BUILDING:
                jax.eval_shape(self.model.test_step, state, map_arrays(jnp.asarray, batch_of(one)))
        except Exception as error:
            raise ConfigError(f"the model does not fit a {kind} example of {shapes(one)}: {reason(error)}") from error

    def put(self, examples: Examples) -> Examples:
        """Return examples as arrays on the device."""
        return Examples(*(map_arrays(jnp.asarray, part) for part in as_keras(examples)))

    def describe(self) -> dict[str, str]:
        """Return what identifies the model: a digest of its variables, and one of its architecture and settings."""
        return self._description

    def measures(self) -> Measures:
        """Return the metrics that the model measures, and which way they are to go."""
        return measures_of(self.model)

    def terms(self) -> str:
        """Return the terms on which the model's metrics travel, as text."""
        return self.meter.terms.to_json()

    def joins(self, step: StepName) -> Mapping[str, tuple[tuple[Join, int], ...]]:
        """Return how the numbers of each metric's state join, by what it travels under; () for a mean."""
        return self.meter.joins(step)

    def results(self, step: StepName, metrics: Metrics) -> dict[str, Value]:
        """Return the values of joined states of "train" or "test", by the names that Keras logs them under."""
        return self.meter.results(step, metrics)

    def gathered(self, clients: Iterable[tuple[int, Metrics]]) -> ClientMetrics:
        """Return the sum of what clients' evaluations measured, and each one's own values."""
        return gathered(clients, self._table)

    @property
    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        return self._initial_params

    def forget_initial_params(self) -> None:
        """Do nothing: the model's variables are never written, so that its weights are held anyway."""

    def _train_block(self, tasks: Sequence[TrainTask]) -> Any:
        """Return what is left of a block's training, on the device: deltas, personal variables, metrics."""
        first, width, programs = tasks[0], self.block, self._programs
        course, is_one = first.course, all(task.params is first.params for task in tasks)
        orders = [task.order for task in tasks]
        block = Block([task.data for task in tasks], orders, [task.examples for task in tasks], width)
        params = self._vectors([task.params for task in tasks], is_one)
        rates = filled([np.float32(task.learning_rate) for task in tasks], width)
        state = self._begun(tasks, width, is_one, params, rates, True)
        offsets = filled([task.offset for task in tasks], width) if len(first.offset) else None
        last = np.array(filled([task.last for task in tasks], width))
        watched = Watched(first) if self.is_debugged else None
        # All passes but those of parts with a number of their own.
        usual, begun = block.passes - course.passes(0) * (block.passes > 0), np.zeros(width, np.int64)
        for part, (epochs, trains) in enumerate(course.parts):
            if part:
                state = programs.reset_optimizer(width, state, rates)
            passes = usual if epochs is None else np.full(width, epochs) * (block.passes > 0)
            towards = offsets if course.is_anchored else params
            offset = None if course.is_anchored else offsets
            kind = StepKind(trains, course.proximal, offset is not None, course.is_anchored)

            def step(state: Any, *stride: Any, kind=kind, towards=towards, offset=offset) -> Any:
                return programs.train(width, kind, is_one, block.is_resident, state, *stride, towards, offset)

            ends = last if epochs is None else block.examples
            batches = batches_of(begun, passes, block.examples, ends, self.experiment.local.batch_size)
            with explained(first.data):
                state = block.take(state, batches, watched.around(step) if watched else step, self._full)
            begun = begun + passes
        return programs.finish(width, "train", is_one, state, params)

    def _train_privately(self, tasks: Sequence[TrainTask], privacy: PerExamplePrivacy) -> list[Trained]:
        """Same as train, by DP-SGD; without metrics, which would be releases that nothing covers."""
        local = self.experiment.local
        results: dict[int, Trained] = {}
        drawn = {id(task): private_task(task, privacy, local) for task in tasks}
        rooms = {id(task): room_for(drawn[id(task)], local.batch_size) for task in tasks}
        blocks = list(blocks_of(tasks, self.block, lambda task: (alike(task), rooms[id(task)])))

        def train(places: list[int]) -> list[Trained]:
            block = [tasks[place] for place in places]
            return self._train_private_block(block, [drawn[id(task)] for task in block], rooms[id(block[0])], privacy)

        self._sent_vector(tasks[0].params)
        for places, trained in zip(blocks, self.lanes.map(train, blocks), strict=True):
            results |= zip(places, (one._replace(metrics={}) for one in trained), strict=True)
        return [results[place] for place in range(len(tasks))]

    def _train_private_block(
        self, tasks: Sequence[TrainTask], drawn: Sequence[PrivateTask], room: int, privacy: PerExamplePrivacy
    ) -> list[Trained]:
        first, width, programs, rule = tasks[0], self.block, self._programs, self.experiment.rule
        private, proximal = PrivateSteps(self.variables, privacy.clip_norm), 0.0 if rule is None else rule.proximal
        is_one = all(task.params is first.params for task in tasks)
        orders = [task.order for task in tasks]
        block = Block([task.data for task in tasks], orders, [task.examples for task in tasks], width)
        params = self._vectors([task.params for task in tasks], is_one)
        rates = filled([np.float32(task.learning_rate) for task in tasks], width)
        state = self._begun(tasks, width, is_one, params, rates, True)
        offsets = filled([task.offset for task in tasks], width) if len(first.offset) else None

        def clipped(state: Any, *arguments: Any) -> Any:
            return programs.clipped_sum(width, private, block.is_resident, state, *arguments)

        def step(state: Any, means: np.ndarray, counts: np.ndarray, active: np.ndarray) -> Any:
            return programs.private_step(
                width, private, proximal, is_one, state, means, counts, active, params, offsets
            )

        taken = Watched(first).around(step) if self.is_debugged else step
        with explained(first.data):
            state = take_private_steps(block, drawn, room, private.size, state, clipped, taken)
        return self._told("train", tasks, fetched(programs.finish(width, "train", is_one, state, params)))

    def _evaluate_block(self, tasks: Sequence[EvaluateTask], width: int) -> list[Measured]:
        first, programs = tasks[0], self._programs
        is_one = all(task.params is first.params for task in tasks)
        orders = [task.rows[None] for task in tasks]
        block = Block([task.data for task in tasks], orders, [len(task.rows) for task in tasks], width)
        params = self._vectors([task.params for task in tasks], is_one, width)
        state = self._begun(tasks, width, is_one, params, np.zeros(width, np.float32), False)

        def step(state: Any, *stride: Any) -> Any:
            return programs.test(width, block.is_resident, state, *stride)

        # Clients' validation sets have many sizes, and each would be compiled.
        is_bound = self.meter.agreement.by_batch or self.fixed_batch is not None
        pieces = whole if is_bound or width == 1 else powers
        none, once = np.zeros(width, np.int64), block.passes
        batches = batches_of(none, once, block.examples, block.examples, self.evaluation_batch, pieces)
        with explained(first.data):
            state = block.take(state, batches, step)
        found = fetched(programs.finish(width, "test", is_one, state, params))
        return [one.metrics for one in self._told("test", tasks, found)]

    def _look_at(self, tasks: Sequence[Task]) -> None:
        """Raise ClientError for labels that are no class, and numbers without a row: JAX would go on without a word."""
        for task in {id(task.data): task for task in reversed(tasks)}.values():
            fault = fault_of_client(self.model, self._tables, task.data)
            if fault is not None:
                where = {"round": task.round, "client": task.client} if isinstance(task, TrainTask) else {}
                raise ClientError(fault, **where)

    def _vectors(self, params: Sequence[Vector], is_one: bool, width: int | None = None) -> Any:
        """Return the vectors that a block starts from: one, which is copied once per broadcast, or each its own."""
        if not is_one:
            return jnp.asarray(filled(params, width or self.block))
        return self._sent_vector(params[0])

    def _sent_vector(self, params: Vector) -> Any:
        """Return a vector on the device, where it lies from the last call if it was the same."""
        sent = self._sent
        if sent is None or sent[0] is not params:
            self._sent = sent = params, jnp.asarray(params)
        return sent[1]

    def _begun(self, tasks: Sequence[Any], width: int, is_one: bool, params: Any, rates: Any, is_training: bool) -> Any:
        seeds: list[np.ndarray] = []
        if generators := self.variables.seeds:
            words = filled([task.key.words(2 * len(generators)).reshape(-1, 2) for task in tasks], width)
            seeds = [words[:, number].astype(variable.dtype) for number, variable in enumerate(generators)]
        personal = [
            filled([np.asarray(task.personal[number]) for task in tasks], width)
            for number in range(len(self.variables.personal))
        ]
        return self._programs.begin(width, is_training, is_one, params, personal, rates, seeds)

    def _told(self, step: StepName, tasks: Sequence[Any], found: Any) -> list[Trained]:
        """Return what is left of a block's states, client by client."""
        delta, personal, read = found
        results = []
        for place, task in enumerate(tasks):
            count = len_of(task)
            visited = visited_of(task) if isinstance(task, TrainTask) else count
            states = self.meter.states(step, [array[place] for array in read], visited)
            own = [np.array(values[place]) for values in personal]
            results.append(Trained(delta[place], own, self.meter.with_loss(step, states, count)))
        return results
