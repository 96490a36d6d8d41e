"""A prototype: an experiment's model, built and traced once for all workers on a device."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ...core.bases import Population
from ...core.examples import Examples, map_arrays
from ...core.frozen import Base
from ...core.parts.algorithms import SplitStrategy
from ...core.parts.discretion import is_discreet
from ...core.parts.phases import Course
from ...core.random import derive
from ...core.recipe import Recipe, course_of
from ...core.spec import ModelSpec, settle
from ...core.types import Vector
from ..discreet import blank
from ..keras.agreed import Agreement
from ..keras.building import (
    BUILDING,
    as_keras,
    batch_of,
    build_model,
    describe_model,
    for_batches,
    is_one_object,
    origin_now,
    seeded_python,
)
from ..keras.checks import check_batches, check_rates, check_rule
from ..keras.lookups import check_lookups, fault_of_client
from ..keras.meter import Meter
from ..keras.one_by_one import check_model
from ..keras.per_client import ClientTable
from ..keras.samples import sample_of
from . import compat
from .building import create_variables, explained, fixed_batch, takes_any_length
from .lookups import tables_of
from .mirrored import Mirrored, check_replicas
from .per_example import PrivateProgram
from .program import EvaluateProgram, TrainProgram, data_specs, form_of, widened
from .roles import base_of, check_still_frozen, try_step, unmoved
from .rows import CompiledRows
from .split import Halves, RemoteHalf
from .state import ModelState

log = logging.getLogger(__name__)
EVALUATION_BATCH = 512


class Signature(NamedTuple):
    """Shapes and types of examples as a program takes them."""

    specs: tuple
    text: str  # the same, as part of a program's name


class Prototype:
    """An experiment's model, its spec and what was traced of it, for all workers on a device.

    Workers never write its variables: each has twins of its own.

    Several threads may ask for programs at once. is_exclusive: one worker alone trains it, eagerly or on several
    devices, and writes the model's own variables.
    """

    def __init__(
        self,
        experiment: Recipe,
        device: str = "CPU:0",
        debug: bool = False,
        replicas: Sequence[str] = (),
        is_live: bool = False,
        agreement: Agreement | None = None,
        base: Base | None = None,
        remote: RemoteHalf | None = None,
    ):
        """Build experiment's model on device. The others, but for base, are the same as for TensorFlowEngine.

        base: another build's frozen variables, which this one takes over; None: it keeps what its own begin with.

        Errors: ConfigError for a model that is not compiled or does not fit the clients' examples.
        """
        self.device = device
        self.is_mirrored = len(replicas) > 1
        with BUILDING, tf.device(device):
            self._build(experiment, debug, replicas, is_live, agreement, base, remote)
        check_rates(experiment, self.state)
        if experiment.rule is not None:
            check_rule(experiment.rule, self.state)
        self.is_exclusive = self.is_eager or self.is_mirrored
        self.initial_memory = [keras.ops.convert_to_numpy(weight) for weight in self.state.personal]
        self.default_rate = math.nan if self.state.has_own_schedule else float(self.model.optimizer.learning_rate)
        # Now: where it is trained itself, a round's rate would be in it.
        self.description = {"model.base": self.spec.base[:16]} if self.spec.base else {}
        self.description |= {"model.variables": self.spec.digest[:16], "model.config": describe_model(self.model)}
        self._initial_params: Vector | None = self._present_params()
        self._programs: dict[Hashable, Any] = {}
        self._layouts: dict[tuple[str, str], tuple] = {}
        self._forms: dict[Hashable, Signature] = {}  # of what was seen since the last of these changed
        self._measured: tuple[Population, tuple[int, int]] | None = None

    def _build(
        self,
        experiment: Recipe,
        debug: bool,
        replicas: Sequence[str],
        is_live: bool,
        agreement: Agreement | None,
        base: Base | None,
        remote: RemoteHalf | None,
    ) -> None:
        sample, key = as_keras(sample_of(experiment.population)), derive(experiment.seed, "model")
        if is_live and is_discreet(experiment):
            sample = blank(sample)  # whether there is a model is not for a single example to decide
        self.model, moved, self.origin = build_model(experiment.model, sample, key, create_variables)
        self.is_eager = debug or bool(self.model.run_eagerly)
        if self.is_eager and is_one_object(experiment.model, self.model):
            # Training would write the user's own variables: another one like it is built.
            self.model, moved, _ = build_model(self.model, sample, key, create_variables)
        if experiment.start is not None:
            experiment.start.load_into(self.model)
        self.sample = for_batches(self.model, sample)
        self._trace_key = derive(experiment.seed, "trace")
        self._is_warned = False
        self.fixed_batch = fixed_batch(self.model, sample)
        self._tables = {} if self.model.run_eagerly else tables_of(self.model, self.sample.x)
        check_lookups(self._tables, sample, "training")
        check_batches(experiment, self.fixed_batch)
        spec = ModelSpec.of(self.model, experiment.personal, moved)
        if base is not None:  # a builder that draws numbers of its own would give every device another
            spec.load_base(self.model.weights, base)
            settle(self.model)
        self.base = base_of(self.model, spec)
        self.spec = spec.on(self.base)
        cut = experiment.strategy.cut if isinstance(experiment.strategy, SplitStrategy) else None
        self.halves = None if cut is None else Halves(self.model, self.spec, cut, remote)
        if self.halves is not None:
            self.spec = self.spec.within(self.halves.places)
        # Before any variable's first value is noted: finding an agreement measures, and puts back what it moved.
        self.meter = Meter.of(self.model, sample, agreement)
        self.table = ClientTable(self.meter, CompiledRows)
        self.state = self.training = ModelState(self.model, self.spec, self.meter, self.halves)
        if self.is_mirrored:
            check_replicas(experiment)
            copies = Mirrored(self.model, experiment.model, self.sample, key, replicas)
            self.spec.load_base(copies.weights, self.base)
            self.training = ModelState(self.model, self.spec, self.meter, copies)
        if experiment.local.per_example is not None:
            check_model(self.model, self.sample)

    def is_current(self, experiment: Recipe) -> bool:
        """Return whether experiment's builder still makes the model that this prototype was built with."""
        with tf.device(self.device):
            return origin_now(experiment.model, derive(experiment.seed, "model")) == self.origin

    def check_lookups(self, examples: Examples, kind: str) -> None:
        """Raise ConfigError for a number of examples that has no row in a table of the model. kind: which they are."""
        check_lookups(self._tables, examples, kind)

    def fault_of_client(self, examples: Examples) -> str | None:
        """Say which of a client's labels is no class, or which number has no row in a table; None for none."""
        return fault_of_client(self.model, self._tables, examples)

    def check_still_frozen(self) -> None:
        """Raise ConfigError where a model that only runs eagerly has changed what counts as frozen."""
        if self.model.run_eagerly and not self.is_mirrored:
            check_still_frozen(self.model.weights, self.spec, self.base)

    @property
    def notes(self) -> list[str]:
        """Sentences about the model that its user should hear, once."""
        return [*self.meter.agreement.notes, *unmoved(self.spec)]

    @property
    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        if self._initial_params is None:
            self._initial_params = self._present_params()
        return self._initial_params

    def _present_params(self) -> Vector:
        weights = self.model.weights if self.halves is None else self.halves.weights
        return self.spec.flatten([keras.ops.convert_to_numpy(weight) for weight in weights])

    def forget_initial_params(self) -> None:
        """Drop the initial weights that are held beside the model's variables, where these stay as they were built."""
        if not self.is_exclusive:
            self._initial_params = None

    def train_program(
        self, experiment: Recipe, data: Examples, has_offset: bool, examples: int, course: Course, xla: bool
    ) -> TrainProgram:
        """Return the program that trains a client of `examples` examples along course.

        has_offset: whether its gradients are corrected.
        """
        local, (smallest, largest), layout = experiment.local, self.extremes(experiment.population), self._layout(data)
        epochs = local.epochs if isinstance(local.epochs, int) and not local.is_partial else None
        alike = examples if xla and epochs and smallest == largest == examples else None  # all hold as many
        # XLA would make room for full batches even where none ever comes.
        batch = None if xla and local.batch_size is not None and local.batch_size > largest else local.batch_size
        kind = "train", xla, has_offset, alike, course, epochs, batch, local.is_partial, layout.text
        settings = epochs, batch, xla, course, has_offset, alike, local.is_partial
        return self._take(kind, data, lambda: TrainProgram(self.training, layout.specs, *settings))

    def private_program(self, experiment: Recipe, data: Examples, has_offset: bool, xla: bool) -> PrivateProgram:
        """Return the program that trains a client by DP-SGD."""
        privacy, (specs, text), rule = experiment.local.per_example, self._layout(data), experiment.rule
        assert privacy is not None
        proximal = 0.0 if rule is None else rule.proximal
        kind = "private", xla, has_offset, proximal, privacy.clip_norm, text
        return self._take(kind, data, lambda: PrivateProgram(self.state, specs, privacy, xla, has_offset, proximal))

    def evaluate_program(self, data: Examples, does_not: str = "take examples") -> EvaluateProgram:
        """Return the program that evaluates examples like data. does_not: what an error says of the model."""
        specs, text = self._layout(data, "evaluate")
        return self._take(
            ("evaluate", text), data, lambda: EvaluateProgram(self.state, specs, self.evaluation_batch), does_not
        )

    def check_held_out(self, data: Examples, kind: str) -> None:
        """Raise ConfigError for examples that the model cannot evaluate; the program is there then, for later.

        kind: what they are for.
        """
        does_not = f"fit a {kind} example"
        if not self.is_eager:
            self.evaluate_program(data, does_not)
            return
        with BUILDING, tf.device(self.device), explained(data, does_not):
            try_step(self.model, self.model.test_step, batch_of(for_batches(self.model, data)))

    @property
    def evaluation_batch(self) -> int:
        """Number of examples in a step of an evaluation."""
        return self.fixed_batch or EVALUATION_BATCH

    def training_graph(self, experiment: Recipe) -> Any:
        """Return the graph of a client's round as it is traced, for whoever asks which operations it has."""
        if experiment.local.per_example is not None:
            return self.private_program(experiment, self.sample, False, False).graph
        course = course_of(experiment)
        return self.train_program(experiment, self.sample, False, self.sample.count, course, False).graph

    def lowering_error(self, experiment: Recipe) -> str | None:
        """Return why XLA cannot compile a full batch's step; None where it can, or nobody knows beforehand."""
        if experiment.local.per_example is not None:
            return None
        size = self.fixed_batch or experiment.local.batch_size or self.sample.count
        batch = batch_of(self.sample.take(np.zeros(size, np.intp)))
        specs = map_arrays(lambda array: tf.TensorSpec(array.shape, tf.as_dtype(array.dtype)), batch)

        def step(*batch: Any) -> tf.Tensor:
            self.state.train_step(batch)
            return tf.constant(0)

        with BUILDING, tf.device(self.device):
            return compat.lowering_error(step, list(specs))

    def extremes(self, population: Population) -> tuple[int, int]:
        """Return the numbers of examples of the smallest and of the largest client."""
        if self._measured is None or self._measured[0] is not population:
            sizes = population.sizes()
            self._measured = population, (int(sizes.min()), int(sizes.max()))
        return self._measured[1]

    def _take(self, kind: Hashable, data: Examples, make: Callable[[], Any], does_not: str = "take examples") -> Any:
        """Return the program of that kind; the first who asks traces it."""
        if kind not in self._programs:
            with BUILDING, tf.device(self.device), explained(data, does_not):
                if kind not in self._programs:
                    with seeded_python(self._trace_key) as has_drawn:
                        self._programs[kind] = make()
                        self._warn_of_constants(has_drawn())
        return self._programs[kind]

    def _warn_of_constants(self, has_drawn: bool) -> None:
        """Say, once, that a step which was traced drew numbers with NumPy. has_drawn: whether it did."""
        if has_drawn and not self._is_warned:
            self._is_warned = True
            log.warning(
                "a step of the model draws numbers from np.random, which compiled code keeps: the same ones in every "
                "batch, as in fit. Use keras.random, or run_eagerly=True"
            )

    def _layout(self, data: Examples, purpose: str = "train") -> Signature:
        """Return shapes and types of examples as a program for that purpose takes them.

        Exact while all that were seen are alike; an axis whose length two of them differ in has none from then on. Not
        so where the model's own inputs have a length there: Keras then says what is wrong with these.
        """
        form = purpose, form_of(data)
        if form not in self._forms:
            specs = self._widest(data, purpose)
            self._forms[form] = Signature(specs, str(specs))
        return self._forms[form]

    def _widest(self, data: Examples, purpose: str) -> tuple:
        """Return what `_layout` says of data of a form that was not seen since the last one changed something."""
        specs = data_specs(data)
        kind = purpose, str([(one.dtype, one.shape.rank) for one in tf.nest.flatten(specs)])
        before = self._layouts.get(kind, specs)
        wider = before if before == specs else widened(before, specs)
        if not takes_any_length(self.model, wider) and wider != specs:
            return specs
        if wider is not before:
            self._forms.clear()
        self._layouts[kind] = wider
        return wider
