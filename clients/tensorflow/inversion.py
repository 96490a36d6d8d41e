"""Gradient inversion: an example from the update that was computed on it. An attack, to prove protection by.

Source: Geiping, Bauermeister, Dröge, Moeller 2020: Inverting Gradients: How easy is it to break privacy in federated
learning?, https://arxiv.org/abs/2003.14053: the input whose gradient points the same way, found by signed descent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from ...core.random import Key
from ...core.types import Vector
from .engine import TensorFlowEngine

FIRST_RATE, LAST_RATE = 0.1, 0.001  # rates of the descent, in units of the inputs' range


def invert(
    engine: TensorFlowEngine,
    params: Vector,
    update: Vector,
    target: Any,
    bounds: tuple[np.ndarray, np.ndarray],
    key: Key,
    steps: int = 400,
) -> np.ndarray:
    """Find the input that, with `target`, most plausibly gave update = local − global after one step from params.

    engine: owns the model. target: the example's own, known to the attacker, as a batch of one. bounds: the least and
    the largest input, each float32 of an input's shape. Returns float32 of that shape, within the bounds.
    """
    model, spec = engine.model, engine.spec
    pairs = zip(engine.state.shared, spec.shared, strict=True)
    weights = [(weight, variable) for weight, variable in pairs if variable.trainable]
    parts = [update[v.offset : v.offset + v.size].reshape(v.shape) for _, v in weights if v.offset is not None]
    length = math.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)) or 1.0
    wanted = [tf.constant(-part / np.float32(length)) for part in parts]
    trainable = [weight.value for weight, _ in weights]

    @tf.function(autograph=False)
    def direction(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as outer:
            outer.watch(image)
            with tf.GradientTape() as inner:
                inner.watch(trainable)
                loss = model.compute_loss(image, target, model(image, training=False))
            gradients = inner.gradient(loss, trainable, unconnected_gradients="zero")
            product = tf.add_n([tf.reduce_sum(g * w) for g, w in zip(gradients, wanted, strict=True)])
            norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g)) for g in gradients]) + 1e-20)
            distance = 1 - product / norm
        return distance, outer.gradient(distance, image)

    with tf.device(engine.device):
        engine.state.load(tf.constant(params), engine.initial_memory)
        return _descend(direction, bounds, key.generator(), steps)


def _descend(
    direction: Any, bounds: tuple[np.ndarray, np.ndarray], generator: np.random.Generator, steps: int
) -> np.ndarray:
    """Descend by Adam on the gradient's sign, its rate falling as a cosine; return the best input met on the way."""
    low, high = (bound[None].astype(np.float32) for bound in bounds)
    image = low + (high - low) * generator.random(low.shape, np.float32)
    best, least = image[0], math.inf
    first, second = np.zeros_like(image), np.zeros_like(image)
    for step in range(1, steps + 1):
        distance, slope = (part.numpy() for part in direction(tf.constant(image)))
        if float(distance) < least:
            least, best = float(distance), image[0].copy()
        slope = np.sign(slope)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        rate = LAST_RATE + (FIRST_RATE - LAST_RATE) * (1 + math.cos(math.pi * step / steps)) / 2
        move = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        image = np.clip(image - (high - low) * np.float32(rate) * move.astype(np.float32), low, high)
    return best
