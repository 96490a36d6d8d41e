"""The slow twin of the compiled client: the same work, eagerly, with client, round and batch in every error."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from ..core.errors import ClientError
from ..core.examples import Examples
from ..core.phases import Course
from ..core.types import Broadcast, Weighted
from .building import batch_of
from .measures import metric_sums, named_sums
from .program import ModelState, Task, gather


def train_eagerly(
    state: ModelState,
    broadcast: Broadcast,
    client: int,
    data: Examples,
    task: Task,
    batch_size: int | None,
    course: Course,
) -> tuple[np.ndarray, list[np.ndarray], dict[str, Weighted]]:
    """What TrainProgram computes, to rounding. Errors: ClientError naming client, round and batch.

    Besides Keras's own errors, a loss that is not finite is one: it is raised at the batch where it first appears.
    """
    params, order = tf.constant(broadcast.params, tf.float32), task.order
    offset = tf.constant(task.offset) if len(task.offset) else None
    seeds = tf.constant(task.seeds, tf.int64, shape=(len(state.seeds), 2))
    state.begin(params, list(task.personal), task.learning_rate, seeds)
    epochs, count = order.shape
    step = batch_size or count
    usual = epochs - course.passes(0)
    parts = [part for part, (own, _) in enumerate(course.parts) for _ in range(usual if own is None else own)]
    starts = [(epoch, start) for epoch in range(epochs) for start in range(0, count, step)]
    for batch, (epoch, start) in enumerate(starts):
        if epoch and not start and parts[epoch] != parts[epoch - 1]:
            state.reset_optimizer(task.learning_rate)
        rows = tf.constant(order[epoch, start : start + step])
        try:
            with state.corrected(*course.correction(params, offset)), state.only(course.parts[parts[epoch]][1]):
                results = state.train_step(gather(batch_of(data), rows))
        except Exception as error:
            raise ClientError(
                f"{type(error).__name__}: {error}", round=broadcast.round, client=client, batch=batch
            ) from error
        loss = float(results.get("loss", 0.0))
        if not np.isfinite(loss):
            raise ClientError(f"the loss is {loss}", round=broadcast.round, client=client, batch=batch)
    names, sums = metric_sums(state.model, tf.constant(count * epochs))
    kept = [keras.ops.convert_to_numpy(weight) for weight in state.personal]
    return state.delta(params).numpy(), kept, named_sums(names, sums)
