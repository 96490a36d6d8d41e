"""The server's half of a cut model, a step at a time, for clients whose halves are on other machines.

A training of one client's is a `Standing`: it begins from the vector of the server's half, takes the client's steps,
and ends with what they moved. Its operations are those of a simulation's round, cut where the machines are, so that
the bits are the same. Several clients train at the same time over one trace, each with variables of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ...core.errors import ClientError, ConfigError
from ...core.examples import map_arrays
from ...core.random import Key
from ...core.types import Vector
from ..engine import Measured
from ..keras.building import BUILDING
from . import compat
from .calls import FlatCall, Twins
from .debug import first_line
from .engine import TensorFlowEngine
from .program import data_specs, host
from .prototype import Prototype
from .split import Halves, SecondHalf
from .state import ModelState, Step, words_for


class ArraySpec(NamedTuple):
    """The form of an array that crosses the cut. None in the shape: any length."""

    shape: tuple[int | None, ...]
    dtype: np.dtype


class ServerParts:
    """The server's half of a model, as `ModelState` sorts the variables of a model in parts."""

    counters: Sequence[keras.Variable] = ()

    def __init__(self, whole: keras.Model, half: SecondHalf):
        held = {id(weight) for weight in half.model.weights}
        self.places = [at for at, weight in enumerate(whole.weights) if id(weight) in held]
        self.weights = [whole.weights[at] for at in self.places]
        self.optimizers = [half.optimizer]

    def train_step(self, batch: tuple) -> dict[str, Any]:
        """Raise: this half takes its steps with a client."""
        raise NotImplementedError


class SecondProgram:
    """The server's half of an engine's cut model, traced once for all clients.

    sent: the forms of the arrays that a client sends in a step, the first axis the batch's but for the penalties, which
    come second: activations, penalties, labels, weights. Errors: ConfigError for what draws random numbers in a way of
    its own, or runs eagerly.
    """

    def __init__(self, engine: TensorFlowEngine):
        self.engine = engine
        prototype = engine.prototype
        with BUILDING, tf.device(engine.device):
            self._trace(prototype)

    def begin(self, params: Vector, learning_rate: float | None, key: Key) -> Standing:
        """Begin a client's training.

        params: those of this half. learning_rate: None for the optimizer's own. key: key that the model's random
        numbers follow from.
        """
        rate = self.engine.default_rate if learning_rate is None else learning_rate
        seeds = words_for(key, len(self._step_of.generators))
        twins = Twins()
        with tf.device(self.engine.device):
            self._begin(twins, params, np.float32(rate), seeds)
        return Standing(self, twins, params)

    def _trace(self, prototype: Prototype) -> None:
        halves, sample = prototype.halves, data_specs(prototype.sample)
        check_steps(prototype)
        assert halves is not None
        second = halves.server
        assert isinstance(second, SecondHalf)
        parts = ServerParts(prototype.model, second)
        self.state = state = ModelState(prototype.model, prototype.spec.within(parts.places), prototype.meter, parts)
        crossing, labels = specs_of(halves, sample)
        self.sent = [form_of(spec) for spec in [*crossing, *flat(labels)]]
        self._fixed = prototype.fixed_batch or self.engine.experiment.local.batch_size
        # As in a client's round: full batches of a known size, the last one of an epoch of any. What TensorFlow knows
        # of a shape is in its arithmetic.
        traces = {size: self._traced(second, crossing, labels, size) for size in dict.fromkeys((self._fixed, None))}
        self._steps = {size: one.call for size, one in traces.items()}
        moved = {id(handle): handle for one in traces.values() for handle in one.moved}
        self._step_of = traces[None]._replace(moved=list(moved.values()))
        check_generators(state, self._step_of.generators)
        vector, rate = tf.TensorSpec([state.spec.size], tf.float32), tf.TensorSpec([], tf.float32)
        seeds = tf.TensorSpec([len(self._step_of.generators), 2], tf.int64)
        self._begin = FlatCall.trace(self._begun, [vector, rate, seeds])
        self._end = FlatCall.trace(self._ended, [vector])
        FlatCall.join([self._begin, *self._steps.values(), self._end])

    def _traced(self, second: SecondHalf, crossing: Any, labels: tuple, size: int | None) -> Step:
        """Trace a step of `size` examples; None: of any number."""
        state = self.state

        def step(activations, penalties, labels, count):
            y, sample_weight = (*labels, None, None)[:2]
            examples = count if size is None else tf.constant(size, tf.int32)
            gradient, results = second.step(activations, penalties, y, sample_weight, examples)
            state.meter.track("train", results, examples)
            return gradient

        activations, penalties = crossing
        signature = [sized(activations, size), penalties, map_arrays(lambda spec: sized(spec, size), labels)]
        with state.meter.tracing("train"):
            return state.trace(step, [*signature, tf.TensorSpec([], tf.int32)])

    def _begun(self, params, learning_rate, seeds):
        self.state.begin(self._step_of, params, [], learning_rate, seeds)
        return tf.constant(0)

    def _ended(self, params):
        self.state.finish_optimizer()
        return self.state.delta(params), self.state.meter.read("train")

    def step(self, twins: Twins, count: int, sent: Sequence[np.ndarray]) -> np.ndarray:
        """Take a client's step; see `Standing.step`."""
        call = self._steps[count if count == self._fixed else None]
        with tf.device(self.engine.device):
            tensors = [*map(tf.convert_to_tensor, sent), tf.constant(count, tf.int32)]
            gradient = compat.call_flat(call.concrete, tensors, twins.captured_by(call))
        return np.asarray(gradient)

    def end(self, twins: Twins, params: Vector, examples: int, visited: int) -> tuple[Vector, Measured]:
        """End a client's training; see `Standing.end`."""
        with tf.device(self.engine.device):
            delta, measured = self._end(twins, params)
            metrics = self.state.meter.states("train", measured, visited)
            return host(delta), self.state.meter.with_loss("train", metrics, examples)


class Standing:
    """One client's training, as it stands on the server."""

    def __init__(self, program: SecondProgram, twins: Twins, params: Vector):
        self._program, self._twins, self._params = program, twins, params

    def step(self, count: int, sent: Sequence[np.ndarray]) -> np.ndarray:
        """Take a step of `count` examples; return the loss's gradient at the activations.

        sent: arrays as `SecondProgram.sent` has them. Errors: ClientError for what TensorFlow cannot compute of them.
        """
        try:
            return self._program.step(self._twins, count, sent)
        except tf.errors.OpError as error:
            raise ClientError(first_line(error)) from error

    def end(self, examples: int, visited: int) -> tuple[Vector, Measured]:
        """Return what the steps moved, and what was measured.

        examples: the client's; visited: number of examples that it computed gradients of.
        """
        return self._program.end(self._twins, self._params, examples, visited)


def specs_of(halves: Halves, sample: tuple) -> tuple[list[tf.TensorSpec], tuple]:
    """Return the specs of activations and penalties, and those of labels and weights. sample: specs of examples."""
    forward = compat.graph_function(lambda x: halves.client.forward(x)[:2], signature=[sample[0]])
    activations, penalties = forward.get_concrete_function().structured_outputs
    crossing = [
        tf.TensorSpec([None, *activations.shape[1:]], activations.dtype),
        tf.TensorSpec([len(penalties)], tf.float32),
    ]
    return crossing, sample[1:]


def flat(labels: tuple) -> list[tf.TensorSpec]:
    """Return the specs of labels and weights as they are sent: in TensorFlow's order, without those that are not."""
    return [spec for spec in tf.nest.flatten(labels) if spec is not None]


def sized(spec: tf.TensorSpec, size: int | None) -> tf.TensorSpec:
    """Return the spec of a batch of `size` examples; None: of any number."""
    return tf.TensorSpec([size, *spec.shape[1:]], spec.dtype)


def form_of(spec: tf.TensorSpec) -> ArraySpec:
    """Return the form of an array of a spec."""
    return ArraySpec(tuple(spec.shape.as_list()), np.dtype(spec.dtype.as_numpy_dtype))


def check_steps(prototype: Prototype) -> None:
    """Raise ConfigError for a cut model that runs eagerly: its steps are not those of a graph."""
    if prototype.is_eager:
        raise ConfigError(
            "a model that is cut over Flower trains in graphs; drop run_eagerly=True, or use Simulation()"
        )


def check_generators(state: ModelState, generators: Sequence[Any]) -> None:
    """Raise ConfigError for random numbers that no layer's own generator makes: each half would draw from another."""
    if len(generators) > len(state.seeds):
        raise ConfigError(
            "a step draws random numbers that no layer of Keras's keeps the state of (tf.random, or keras.random "
            "without a SeedGenerator): in two halves they would be others; give the layer a keras.random.SeedGenerator"
        )
