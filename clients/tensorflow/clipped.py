"""The sum of a batch's gradients, each example's clipped on its own: two ways to the same numbers.

`ghost_sum` takes one backward pass, and has to know every layer; `looped_sum` takes one for each example, of any model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from ...core.examples import map_arrays
from ..draws import FINEST, ROUNDING
from ..keras.one_by_one import batch_loss, is_seed, penalised
from .ghost import contributions, uses_of

log = logging.getLogger(__name__)  # the client's own log, which is not sent


class Rule(NamedTuple):
    """Clipping and scaling of a batch's gradients in their sum."""

    counted: tf.Tensor  # which examples are in the sum: bool, shape (batch,)
    clip_norm: float
    divisor: tf.Tensor  # what the sum is divided by
    grid: tf.Tensor | float = FINEST  # step, a power of two, of what is released of a sum and its noise

    def factors(self, squared_norms: tf.Tensor) -> tf.Tensor:
        """Return the factor of each example's gradient; see clip_factors. Scaling them scales the sum."""
        return clip_factors(squared_norms, self.counted, self.clip_norm) / self.divisor


def clip_factors(squared_norms: tf.Tensor, counted: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Return clip_norm over each example's norm, at most 1; 0 where it is not counted or has no finite norm.

    An example without a finite gradient adds nothing. If it made its client fail, the failure would tell that it is
    there, whatever the noise. A factor of 0 stands for zeros even where a gradient is NaN: `contributions.cleared`.
    """
    norms = tf.sqrt(squared_norms)
    factors = tf.minimum(1.0, clip_norm * (1 - ROUNDING) / norms)
    return tf.where(counted & tf.math.is_finite(norms), factors, tf.zeros_like(factors))


def ghost_sum(model: keras.Model, batch: tuple, rule: Rule) -> list[tf.Tensor]:
    """Compute the sum of clipped gradients, for each trainable variable, by one backward pass."""
    with uses_of(model) as uses, tf.GradientTape() as tape:
        loss = batch_loss(model, batch)
        total = loss * tf.cast(tf.shape(rule.counted)[0], loss.dtype)  # the examples' own losses, added up
    gradients = tape.gradient(total, [use.output for use in uses])
    trainable = {id(variable) for variable in model.trainable_variables}
    found = {one: part for one, part in contributions(uses, gradients).items() if one in trainable}
    factors = rule.factors(tf.add_n([part.squared_norms() for part in found.values()]))
    return [
        found[id(variable)].weighted(factors) if id(variable) in found else tf.zeros(variable.shape)
        for variable in model.trainable_variables
    ]


def looped_sum(model: keras.Model, batch: tuple, rule: Rule) -> list[tf.Tensor]:
    """Same as ghost_sum, for any model: each example goes through it alone, as a batch of one. One gradient at a time.

    Not by tf.vectorized_map: TensorFlow 2.21 with oneDNN corrupts its memory on a mapped attention layer.
    """
    size = tf.shape(rule.counted)[0]
    with each_example(model, batch, rule) as clipped:

        def add(place: tf.Tensor, *sums: tf.Tensor) -> tuple:
            return place + 1, *(total + one for total, one in zip(sums, clipped(place), strict=True))

        nothing = [tf.zeros(variable.shape) for variable in model.trainable_variables]
        start = (tf.constant(0), *nothing)
        return tf.while_loop(lambda place, *_: place < size, add, start, parallel_iterations=1)[1:]


def sound_sum(model: keras.Model, batch: tuple, rule: Rule) -> list[tf.Tensor]:
    """Same as looped_sum, run eagerly; an example that the model cannot take (a label out of range) adds nothing."""
    sums = [tf.zeros(variable.shape) for variable in model.trainable_variables]
    with each_example(model, batch, rule) as clipped:
        for place in range(int(tf.shape(rule.counted)[0])):
            try:
                sums = [total + one for total, one in zip(sums, clipped(tf.constant(place)), strict=True)]
            except Exception as error:
                log.warning("an example adds nothing to its step: %s", error)
    return sums


@contextlib.contextmanager
def each_example(model: keras.Model, batch: tuple, rule: Rule) -> Iterator[Callable[[tf.Tensor], list[tf.Tensor]]]:
    """Yield a function from an example's place in the batch to its clipped gradient, for each trainable variable.

    Each example has random numbers of its own; at the end the model's generators have moved on by a batch.
    """
    seeds = [variable for variable in model.variables if is_seed(variable)]
    states = [tf.convert_to_tensor(variable.value) for variable in seeds]

    def clipped(place: tf.Tensor) -> list[tf.Tensor]:
        example = map_arrays(lambda array: tf.gather(array, place[None]), batch)
        own = [state + tf.cast(tf.stack([place, 0]), state.dtype) for state in states]
        gradients = example_gradients(model, example, list(zip(seeds, own, strict=True)))
        norm = tf.add_n([tf.reduce_sum(tf.square(one)) for one in gradients])
        factor = Rule(rule.counted[place], rule.clip_norm, rule.divisor).factors(norm)
        return [tf.math.multiply_no_nan(one, factor) for one in gradients]

    yield clipped
    for variable, state in zip(seeds, states, strict=True):
        variable.assign(state + tf.cast(tf.stack([tf.shape(rule.counted)[0], 0]), state.dtype))


def example_gradients(model: keras.Model, example: tuple, seeds: list[tuple]) -> list[tf.Tensor]:
    """Compute a lone example's gradient, for each trainable variable: float32.

    seeds: states of the model's generators.
    """
    variables = model.trainable_variables
    values = [tf.convert_to_tensor(variable.value) for variable in variables]
    known = [*zip(variables, values, strict=True), *seeds]
    with tf.GradientTape() as tape, keras.StatelessScope(known, collect_losses=True):  # what layers add to the loss
        tape.watch(values)
        loss = batch_loss(model, example) - penalty(model)
    found = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in found]


def penalty(model: keras.Model) -> tf.Tensor:
    """Sum the weights' regularizers' part of the loss: it depends on no example, and needs neither clip nor noise."""
    parts = [variable.regularizer(variable) for variable in penalised(model)]
    return tf.add_n([tf.cast(part, tf.float32) for part in parts]) if parts else tf.constant(0.0)


def penalty_gradients(model: keras.Model) -> list[tf.Tensor]:
    """Compute the gradients of the regularizers, for each variable that has one."""
    variables = [variable.value for variable in penalised(model)]
    if not variables:
        return []
    with tf.GradientTape() as tape:
        total = penalty(model)
    return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in tape.gradient(total, variables)]
