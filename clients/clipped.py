"""The sum of a batch's gradients, each example's clipped on its own: two ways to the same numbers.

`ghost_sum` takes one backward pass, and has to know every layer; `looped_sum` takes one for each example, of any model.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ..core.examples import map_arrays
from .ghost import contributions, uses_of

ROUNDING = 2.0**-10  # more than norms and sums in float32 can be off


class Rule(NamedTuple):
    """How a batch's gradients are summed."""

    counted: tf.Tensor  # which examples are in the sum: bool, shape (batch,)
    clip_norm: float
    divisor: tf.Tensor  # of the sum

    def factors(self, squared_norms: tf.Tensor) -> tf.Tensor:
        """What each example's gradient is multiplied by; see clip_factors. Scaling them scales the sum."""
        return clip_factors(squared_norms, self.counted, self.clip_norm) / self.divisor


def clip_factors(squared_norms: tf.Tensor, counted: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """clip_norm over each example's norm, at most 1; 0 where it is not counted, NaN where it has no norm.

    NaN, so that it reaches the update, which is then refused; a comparison would let it pass as small.
    """
    norms = tf.sqrt(squared_norms)
    factors = tf.minimum(1.0, clip_norm * (1 - ROUNDING) / norms)
    factors = tf.where(tf.math.is_finite(norms), factors, tf.constant(math.nan, tf.float32))
    return tf.where(counted, factors, tf.zeros_like(factors))


def ghost_sum(model: keras.Model, batch: tuple, rule: Rule) -> list[tf.Tensor]:
    """The sum of clipped gradients, for each trainable variable: by one backward pass."""
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
    """As ghost_sum, for any model: each example goes through it alone, as a batch of one. One gradient at a time.

    Not by tf.vectorized_map: TensorFlow 2.21 with oneDNN corrupts its memory on a mapped attention layer.
    """
    size = tf.shape(rule.counted)[0]
    seeds = [variable for variable in model.variables if is_seed(variable)]
    states = [tf.convert_to_tensor(variable.value) for variable in seeds]

    def add(place: tf.Tensor, *sums: tf.Tensor) -> tuple:
        example = map_arrays(lambda array: tf.gather(array, place[None]), batch)
        own = [state + tf.cast(tf.stack([place, 0]), state.dtype) for state in states]
        gradients = example_gradients(model, example, list(zip(seeds, own, strict=True)))
        norm = tf.add_n([tf.reduce_sum(tf.square(one)) for one in gradients])
        here = Rule(rule.counted[place], rule.clip_norm, rule.divisor)
        factor = here.factors(norm)
        return place + 1, *(total + factor * one for total, one in zip(sums, gradients, strict=True))

    nothing = [tf.zeros(variable.shape) for variable in model.trainable_variables]
    _, *sums = tf.while_loop(lambda place, *_: place < size, add, (tf.constant(0), *nothing), parallel_iterations=1)
    for variable, state in zip(seeds, states, strict=True):
        variable.assign(state + tf.cast(tf.stack([size, 0]), state.dtype))
    return sums


def example_gradients(model: keras.Model, example: tuple, seeds: list[tuple]) -> list[tf.Tensor]:
    """A lone example's gradient, for each trainable variable: float32. seeds: states of the model's generators."""
    variables = model.trainable_variables
    values = [tf.convert_to_tensor(variable.value) for variable in variables]
    known = [*zip(variables, values, strict=True), *seeds]
    with tf.GradientTape() as tape, keras.StatelessScope(known, collect_losses=True):  # what layers add to the loss
        tape.watch(values)
        loss = batch_loss(model, example) - penalty(model)
    found = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in found]


def batch_loss(model: keras.Model, batch: tuple) -> tf.Tensor:
    """The loss that Keras's train_step differentiates."""
    x, y, weight = (*batch, None, None)[:3]
    predicted = model(x, training=True) if model._call_has_training_arg else model(x)
    return model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weight, training=True)


def penalty(model: keras.Model) -> tf.Tensor:
    """What the weights' regularizers add to the loss: it depends on no example, and needs neither clip nor noise."""
    parts = [variable.regularizer(variable) for variable in penalised(model)]
    return tf.add_n([tf.cast(part, tf.float32) for part in parts]) if parts else tf.constant(0.0)


def penalised(model: keras.Model) -> list[Any]:
    """Trainable variables that have a regularizer."""
    return [variable for variable in model.trainable_variables if getattr(variable, "regularizer", None) is not None]


def penalty_gradients(model: keras.Model) -> list[tf.Tensor]:
    """Of the regularizers, for each variable that has one."""
    variables = [variable.value for variable in penalised(model)]
    if not variables:
        return []
    with tf.GradientTape() as tape:
        total = penalty(model)
    return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in tape.gradient(total, variables)]


def is_seed(variable: Any) -> bool:
    """Whether it is the state of a layer's random generator."""
    return variable.name == "seed_generator_state"
