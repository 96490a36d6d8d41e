"""One client on several devices: its batches are divided among copies of its model, `tf.distribute.MirroredStrategy`'s.

    batch ─► a share for each device ─► outputs ─► loss of the whole batch (first device) ─► its gradient, in shares
                                                                                                    │
    the same step on every copy ◄─ optimizer, on the sum ◄─ summed over devices ◄─ gradients ◄──────┘

The loss is of all outputs together, so that it is the one that a single device would compute: whatever it averages
over, with weights of examples, and where a last batch is smaller or does not divide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ...core.errors import ConfigError, IncompatibleError
from ...core.examples import Examples, leaves, map_arrays
from ...core.parts.algorithms import SplitStrategy
from ...core.random import Key
from ...core.recipe import Recipe
from ..keras.building import fresh_names, make_model, seeded_initializers
from ..keras.slots import BEGIN_AS_WEIGHTS, is_averaging
from ..optimizers import DeltaSGD


class BatchShare(NamedTuple):
    """A device's part of a batch, and how its gradients are found.

    There is an example in it even where it has none: an empty batch has no mean.
    """

    begin: tf.Tensor  # place in the batch of its first row
    count: tf.Tensor  # number of its rows that count; one is computed where none does
    outputs: Any
    penalties: list[tf.Tensor]
    tape: tf.GradientTape


class Mirrored:
    """A model's copies on several devices. Metrics, and the loss, are the model's own."""

    counters: Sequence[keras.Variable] = ()

    def __init__(self, model: keras.Model, make: Callable[[], Any], one: Examples, key: Key, devices: Sequence[str]):
        """Copy model to every device.

        model: built by make() with weights from key, on the first of devices. one: an example. Errors: ConfigError for
        a model that would not train on several devices as it does on one.
        """
        check_divisible(model)
        self.model, self.device, self.copies = model, devices[0], len(devices)
        # Without NCCL, which needs as many graphics processors as there are copies.
        on_host = all(device.startswith("CPU") for device in devices)
        reduction = tf.distribute.ReductionToOneDevice() if on_host else None
        self._strategy = tf.distribute.MirroredStrategy(list(devices), cross_device_ops=reduction)
        with fresh_names(), seeded_initializers(key), self._strategy.scope():
            self._mirrored = make_model(make)
            if not self._mirrored.built:
                self._mirrored(one.x)
            self._mirrored.optimizer.build(self._mirrored.trainable_variables)
        # Keras sums each device's gradients after it has clipped them. Here they are summed before: it gets the sum.
        self._mirrored.optimizer._all_reduce_sum_gradients = lambda pairs: pairs
        self.weights, self.optimizers = self._mirrored.weights, [self._mirrored.optimizer]

    def train_step(self, batch: tuple) -> dict[str, Any]:
        """Take the same step as the model's own `train_step`, to rounding."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        count, shares = tf.shape(next(leaves(x)))[0], dict[int, BatchShare]()

        def forward() -> None:
            copy = self._copy()
            shares[copy] = self._forward(x, count, copy)

        self._strategy.run(forward)
        parts = [shares[copy] for copy in range(self.copies)]
        with tf.GradientTape() as tape:
            outputs = keras.tree.map_structure(
                lambda *own: tf.concat([all_of[: share.count] for all_of, share in zip(own, parts, strict=True)], 0),
                *(share.outputs for share in parts),
            )
            tape.watch(outputs)
            loss = self.model._compile_loss(y, outputs, sample_weight)
        at_outputs = tape.gradient(loss, outputs, unconnected_gradients="zero")
        penalties = [tf.cast(tf.reduce_sum(one), loss.dtype) * weight(share, count, loss.dtype)
                     for share in parts for one in share.penalties]  # fmt: skip
        self.model._loss_tracker.update_state(tf.add_n([loss, *penalties]), sample_weight=count)

        def backward() -> None:
            self._backward(shares[self._copy()], at_outputs, count)

        self._strategy.run(backward)
        return self.model.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    @staticmethod
    def _copy() -> int:
        """Return the number of the copy that this code runs for."""
        return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))

    def _forward(self, x: Any, count: tf.Tensor, copy: int) -> BatchShare:
        """Compute a copy's outputs for its part of a batch of `count` examples."""
        begin, end = count * copy // self.copies, count * (copy + 1) // self.copies
        first, last = tf.minimum(begin, count - 1), tf.maximum(end, tf.minimum(begin, count - 1) + 1)
        with tf.device(self.device):  # where the batch lies: only a copy's own part travels
            own = map_arrays(lambda array: array[first:last], x)
        with tf.GradientTape() as tape:
            outputs = self._mirrored(own, training=True)
            penalties = list(self._mirrored.losses)
        if any(getattr(output, "_keras_mask", None) is not None for output in leaves(outputs)):
            raise ConfigError("the model's outputs carry a mask, which replicas do not share; use replicas=1")
        return BatchShare(begin, end - begin, outputs, penalties, tape)

    def _backward(self, share: BatchShare, at_outputs: Any, count: tf.Tensor) -> None:
        """Compute a copy's part of the gradients; then, with the sum of all parts, take its step."""
        arriving = []
        for output, gradient in zip(leaves(share.outputs), leaves(at_outputs), strict=True):
            own = gradient[share.begin : share.begin + share.count]
            spare = tf.shape(output)[0] - share.count
            arriving.append(tf.concat([own, tf.zeros_like(output[:spare], own.dtype)], 0))
        arriving += [tf.fill(tf.shape(one), weight(share, count, one.dtype)) for one in share.penalties]
        targets, weights = [*leaves(share.outputs), *share.penalties], self._mirrored.trainable_variables
        found = share.tape.gradient(targets, weights, output_gradients=arriving)
        pairs = [(gradient, one) for gradient, one in zip(found, weights, strict=True) if gradient is not None]
        sums = tf.distribute.get_replica_context().all_reduce("sum", [gradient for gradient, _ in pairs])
        self._mirrored.optimizer.apply(sums, [one for _, one in pairs])


def weight(share: BatchShare, count: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Return a share's part of a batch of `count` examples."""
    return tf.cast(share.count / count, dtype)


def check_replicas(experiment: Recipe) -> None:
    """Raise IncompatibleError for what trains in a way of its own."""
    for part in (
        experiment.local.per_example,
        experiment.strategy if isinstance(experiment.strategy, SplitStrategy) else None,
    ):
        if part is not None:
            raise IncompatibleError(f"{part!r} trains on one device; use replicas=1")


def check_divisible(model: keras.Model) -> None:
    """Raise ConfigError for a model whose training is not a sum over examples, or has code of its own."""
    name = type(model).__name__
    for method in ("train_step", "compute_loss", "compute_metrics"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            raise ConfigError(f"{name} has a {method} of its own, which replicas cannot divide; use replicas=1")
    if model.loss is None:
        raise ConfigError(
            f"{name} is compiled without a loss; replicas divide one: model.compile(loss=…), or replicas=1"
        )
    if isinstance(model.optimizer, DeltaSGD):
        raise ConfigError("DeltaSGD is for one device; use replicas=1")
    if hasattr(model.optimizer, "inner_optimizer"):
        raise ConfigError("replicas do not scale losses; use the dtype policy mixed_bfloat16")
    if is_averaging(model.optimizer) or isinstance(model.optimizer, BEGIN_AS_WEIGHTS):
        raise ConfigError("replicas do not average the way of an optimizer; drop use_ema=True, or use replicas=1")
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            raise ConfigError(
                f"{layer.name!r} would normalise by each device's part of a batch; use GroupNormalization or replicas=1"
            )
    if any(variable.name == "seed_generator_state" for variable in model.variables):
        raise ConfigError("the model draws random numbers (Dropout), others on each device; use replicas=1")
