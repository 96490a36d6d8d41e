"""A model's variables, sorted by what happens to them in a client's round, and what a traced step assigns of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from ...core.errors import ConfigError
from ...core.random import Key
from ...core.spec import ModelSpec
from ...core.types import Trains
from ..keras.meter import Meter
from ..keras.slots import copies_of, is_averaging, sets_own_rate
from . import compat
from .averages import finish
from .calls import FlatCall, Start
from .randomness import Seeder, seeded_by
from .split import CROSSING, Halves


class Parts(Protocol):
    """The parts of a model that trains in several places, as far as they lie here."""

    @property
    def weights(self) -> list[keras.Variable]:
        """The weights that lie here, in the whole model's order."""

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The optimizers that lie here."""

    @property
    def counters(self) -> Sequence[keras.Variable]:
        """Variables that start at 0 with each client."""

    def train_step(self, batch: tuple) -> dict[str, Any]:
        """Take a step in place of the model's own."""


log = logging.getLogger(__name__)
CONTROL_SCOPES = ("while", "cond", "body", "PartitionedCall", "StatefulPartitionedCall")  # parts of operations' names


class ModelState:
    """A model's variables, sorted by what happens to them in a client's round, and a step of training."""

    def __init__(self, model: keras.Model, spec: ModelSpec, meter: Meter, parts: Parts | None = None):
        """Sort the variables of a model. meter: the model's.

        parts: those of a model that trains in several places, with optimizers and a step of their own.
        """
        self.model, self.spec, self.meter = model, spec, meter
        self.optimizers = [model.optimizer] if parts is None else parts.optimizers
        self.train_step = model.train_step if parts is None else parts.train_step
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if parts is None and hasattr(optimizer, "looking_back"):  # it needs each batch's gradient at two places
            self.train_step = optimizer.looking_back(model)
        pairs = list(zip((model if parts is None else parts).weights, spec.variables, strict=True))
        self.shared = [weight for weight, variable in pairs if variable.offset is not None]
        self.personal = [weight for weight, variable in pairs if variable.is_at_home]
        self.frozen = [weight for weight, variable in pairs if variable.is_frozen]
        moved = {id(weight) for weight in (*self.shared, *self.personal)}
        # A trainable weight that no gradient reaches is not among them: it is frozen.
        self.trained = [weight for weight in model.trainable_variables if id(weight) in moved]
        self.seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
        own = [variable for optimizer in self.optimizers for variable in optimizer.variables]
        own += [] if parts is None else parts.counters
        self._optimizer = [(variable, _initial(variable)) for variable in own]
        metrics = meter.variables
        self._metrics = [(variable, reset if reset.any() else None) for variable, reset in metrics]
        self.counters = [] if parts is None else list(parts.counters)  # counted in a round, and reported
        self._halves = parts if isinstance(parts, Halves) else None
        self.start = Start()
        self.seeder = Seeder()
        self._named: set[tuple[str, str]] = set()
        self.has_own_schedule = sets_own_rate(model.optimizer)
        self._copies = copies_of(self.optimizers)  # slots that begin as the weights that a client receives

    def trace(self, step: Callable[..., Any], signature: Sequence[Any], xla: bool = False) -> Step:
        """Trace step, and find what it assigns: what has to be put back before each client, and what it draws from."""
        with seeded_by(self.seeder):
            call = FlatCall.trace(step, signature, xla)
        self._name_what_is_not_seeded(call.concrete.graph)
        names = compat.variable_names(call.concrete)
        weights = {id(weight.value.handle) for weight in (*self.shared, *self.personal)}
        seeds = [variable.value.handle for variable in self.seeds]
        moved = [handle for handle in self.start.of(call.concrete) if id(handle) not in weights]
        known = {id(handle) for handle in seeds}
        seeds += [h for h in moved if id(h) not in known and is_generator(names.get(id(h), ""))]
        return Step(call, moved, seeds)

    def check_moved(self, step: Step) -> None:
        """Raise ConfigError where a loop of steps assigns a variable that counts as frozen: it would be lost.

        The roles were read off a single step, which does not assign it.
        """
        frozen = {id(weight.value.handle): weight.path for weight in self.frozen if not weight.trainable}
        lost = [frozen[id(handle)] for handle in step.moved if id(handle) in frozen]
        if lost:
            raise ConfigError(
                f"the model's train_step assigns {lost[0]!r} for batches of some shapes only, so that it counts as "
                "frozen; assign it in every step, under tf.cond where a condition has to hold"
            )

    def _name_what_is_not_seeded(self, graph: Any) -> None:
        for operation in compat.stateful_operations(graph):
            if operation.name.rpartition("/")[2].startswith(CROSSING):  # what the server computes is the seed's, too
                continue
            scopes = [part for part in operation.name.split("/")[:-1] if not part.startswith(CONTROL_SCOPES)]
            what = operation.type, "/".join(scopes) or "a step"
            if what not in self._named:
                self._named.add(what)
                log.warning(
                    "%s in %s depends on more than the seed: results may change with workers, and from run to run; use "
                    "keras.random or tf.random in its place",
                    *what,
                )

    def begin(
        self, step: Step, params: tf.Tensor, personal: Sequence[tf.Tensor], learning_rate: tf.Tensor | None, seeds: Any
    ) -> None:
        """Assign everything that a client's step starts from; nothing of the client before it is left.

        learning_rate: None in an evaluation. seeds: int64, shape (generators of the step, 2).
        """
        self.start.put_back(step.moved)
        self.load(params, personal)
        if learning_rate is not None:
            self._begin_optimizer(learning_rate)
        for position, handle in enumerate(step.generators):
            compat.assign(handle, seed_state(handle, seeds[position]))

    def begin_eagerly(
        self, params: tf.Tensor, personal: Sequence[tf.Tensor], learning_rate: float | None, key: Key
    ) -> None:
        """Same as begin, on the model's own variables: what was seen to be assigned before, and what Keras knows."""
        self.start.put_everything_back()
        self.load(params, personal)
        self.reset_metrics()
        if learning_rate is not None:
            self.reset_optimizer(tf.constant(learning_rate, tf.float32))
        seeds = tf.constant(words_for(key, len(self.seeds)))
        for position, variable in enumerate(self.seeds):
            variable.assign(tf.cast(seeds[position], variable.dtype))

    def reset_metrics(self) -> None:
        """Reset metrics to where nothing has been measured."""
        _reset(self._metrics)

    def reset_optimizer(self, learning_rate: tf.Tensor) -> None:
        """Reset the optimizer as compiled, but for the rate; its own schedule begins again."""
        _reset(self._optimizer)
        self._begin_optimizer(learning_rate)

    def _begin_optimizer(self, learning_rate: tf.Tensor) -> None:
        """Give the optimizer this round's rate, and the weights that it begins with."""
        self.set_rate(learning_rate)
        for slot, weight in self._copies:
            slot.assign(weight)

    def finish_optimizer(self) -> None:
        """Leave in the weights what `fit` leaves at its end: their average, with `use_ema`."""
        finish(self.optimizers)

    @property
    def is_averaging(self) -> bool:
        """Return whether `finish_optimizer` changes the weights."""
        return any(map(is_averaging, self.optimizers))

    def set_rate(self, learning_rate: tf.Tensor) -> None:
        """Assign the rate of this round, unless the optimizer has a schedule of its own."""
        if not self.has_own_schedule:
            for optimizer in self.optimizers:
                optimizer.learning_rate.assign(learning_rate)

    def load(self, params: tf.Tensor, personal: Sequence[tf.Tensor]) -> None:
        """Assign the vector, and the variables that stay at home."""
        for weight, variable in zip(self.shared, self.spec.shared, strict=True):
            part = tf.slice(params, [variable.offset], [variable.size])
            weight.assign(tf.cast(tf.reshape(part, variable.shape), weight.dtype))
        for weight, value in zip(self.personal, personal, strict=True):
            weight.assign(value)

    def delta(self, params: tf.Tensor) -> tf.Tensor:
        """Compute local − global: float32, shape (d,)."""
        parts = [tf.reshape(tf.cast(tf.convert_to_tensor(weight), tf.float32), [-1]) for weight in self.shared]
        return tf.concat(parts, 0) - params

    @contextlib.contextmanager
    def corrected(self, proximal: float, params: tf.Tensor, offset: tf.Tensor | None) -> Iterator[None]:
        """Let every step inside take gradient + proximal·(w − params) + offset in place of the gradient.

        params, offset: shape (d,); offset None for nothing. The optimizer's `apply` is where every custom `train_step`
        ends as well; statistics and personal variables are not corrected.
        """
        if not proximal and offset is None:  # sparse gradients stay what they are: Adam treats them otherwise
            yield
            return
        optimizer = self.optimizers[0]
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # a loss scale is divided out before
        places = {id(one): v for one, v in zip(self.shared, self.spec.shared, strict=True)}
        apply = optimizer.apply

        def correct(gradient: Any, weight: keras.Variable) -> Any:
            place = places.get(id(weight))
            if gradient is None or place is None:
                return gradient
            gradient = tf.convert_to_tensor(gradient)  # embeddings give sparse ones
            if proximal:
                start = tf.reshape(tf.slice(params, [place.offset], [place.size]), place.shape)
                drift = tf.convert_to_tensor(weight.value) - tf.cast(start, gradient.dtype)
                gradient += tf.cast(proximal, gradient.dtype) * drift
            if offset is not None:
                own = tf.reshape(tf.slice(offset, [place.offset], [place.size]), place.shape)
                gradient += tf.cast(own, gradient.dtype)
            return gradient

        def corrected_apply(gradients: Any, trainable_variables: Any = None) -> Any:
            weights = optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
            return apply([correct(g, w) for g, w in zip(gradients, weights, strict=True)], trainable_variables)

        optimizer.apply = corrected_apply
        try:
            yield
        finally:
            del optimizer.apply

    @contextlib.contextmanager
    def only(self, trains: Trains) -> Iterator[None]:
        """Let a step inside change no weights but those named; compiled, gradients of the others are not even computed.

        Goes inside `corrected`. Statistics move all the same.
        """
        if trains == "all":
            yield
            return
        optimizer = self.optimizers[0]
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        kept = {id(weight) for weight in (self.shared if trains == "shared" else self.personal)}
        before, apply = vars(optimizer).get("apply"), optimizer.apply

        def filtered_apply(gradients: Any, trainable_variables: Any = None) -> Any:
            weights = optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
            pairs = [(g, w) for g, w in zip(gradients, weights, strict=True) if id(w) in kept]
            return apply([gradient for gradient, _ in pairs], [weight for _, weight in pairs])

        optimizer.apply = filtered_apply
        try:
            yield
        finally:
            if before is None:
                del optimizer.apply
            else:
                optimizer.apply = before

    def traffic(self, counted: list[np.ndarray]) -> tuple[int, int] | None:
        """Return the bytes up and down of a client's round, of a model that is cut; None for a whole one.

        counted: values of the counters after the client's steps.
        """
        return None if self._halves is None else self._halves.traffic(counted)

    def personal_specs(self) -> list[tf.TensorSpec]:
        """Return shapes and types of the variables that stay at home."""
        return [tf.TensorSpec(weight.shape, weight.dtype) for weight in self.personal]


class Step(NamedTuple):
    """A traced loop of steps."""

    call: FlatCall
    moved: list[tf.Tensor]  # handles of all that it assigns besides weights: optimizers, metrics, whatever it reaches
    generators: list[tf.Tensor]  # handles of the states of random generators; the model's own first


def words_for(key: Key, generators: int) -> np.ndarray:
    """Derive two words for each generator: int64, shape (generators, 2)."""
    return key.words(2 * generators).reshape(-1, 2)


def is_generator(name: str) -> bool:
    """Return whether a variable of that name is the state of a random generator, Keras's or TensorFlow's."""
    last = name.rpartition("/")[2]
    return last.startswith(("seed_generator_state", "StateVar"))


def seed_state(handle: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
    """Return a generator's state that follows from two derived words."""
    kind = compat.variable_type(handle)
    assert kind is not None
    if kind.shape.num_elements() == 2:  # a SeedGenerator's
        return tf.cast(words, kind.dtype)
    # A counter, from 0, and a key: for tf.random.Generator.
    zeros = tf.zeros([kind.shape.num_elements() - 1], kind.dtype)
    return tf.concat([zeros, tf.cast(words[:1] * 2**31 + words[1:], kind.dtype)], 0)


def _reset(variables: Sequence[tuple[keras.Variable, np.ndarray | None]]) -> None:
    """Assign each variable what it began with."""
    for variable, initial in variables:
        # Zeros by an op: as a constant, Adam's moments would sit in the graph.
        variable.assign(tf.zeros(variable.shape, variable.dtype) if initial is None else initial)


def _initial(variable: keras.Variable) -> np.ndarray | None:
    """Return the variable's value now, or None for zeros."""
    value = keras.ops.convert_to_numpy(variable)
    return value if value.any() else None
