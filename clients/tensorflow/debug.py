"""The slow twin of the compiled client: the same work, eagerly, with client, round and batch in every error."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from ...core.errors import ClientError
from ...core.examples import Examples
from ...core.random import Key
from ...core.types import MetricState, Weighted
from ..engine import Trained, TrainTask
from ..keras.building import batch_of
from .program import gather
from .state import ModelState


def train_eagerly(state: ModelState, task: TrainTask, batch_size: int | None) -> Trained:
    """Compute what TrainProgram computes, to rounding. Errors: ClientError naming client, round and batch.

    Besides Keras's own errors, a loss that is not finite is one: it is raised at the batch where it first appears.
    """
    params, order, course = tf.constant(task.params, tf.float32), task.order, task.course
    offset = tf.constant(task.offset) if len(task.offset) else None
    state.begin_eagerly(params, list(task.personal), task.learning_rate, task.key)
    epochs, count = order.shape
    step = batch_size or count
    usual = epochs - course.passes(0)
    parts = [part for part, (own, _) in enumerate(course.parts) for _ in range(usual if own is None else own)]
    governed = [epoch for epoch, part in enumerate(parts) if course.parts[part][0] is None]
    sizes = [task.last if governed and epoch == governed[-1] else count for epoch in range(epochs)]
    starts = [(epoch, start) for epoch in range(epochs) for start in range(0, sizes[epoch], step)]
    for batch, (epoch, start) in enumerate(starts):
        if epoch and not start and parts[epoch] != parts[epoch - 1]:
            state.finish_optimizer()
            state.reset_optimizer(task.learning_rate)
        rows = tf.constant(order[epoch, start : min(start + step, sizes[epoch])])
        try:
            own = state.only(course.parts[parts[epoch]][1])
            with state.start.watched(), state.corrected(*course.correction(params, offset)), own:
                results = state.train_step(gather(batch_of(task.data), rows))
                state.meter.track("train", results, len(rows))
        except Exception as error:
            raise ClientError(
                f"{type(error).__name__}: {error}", round=task.round, client=task.client, batch=batch
            ) from error
        loss = float(results.get("loss", 0.0))
        if not np.isfinite(loss):
            raise ClientError(f"the loss is {loss}", round=task.round, client=task.client, batch=batch)
    state.finish_optimizer()
    states = state.meter.states("train", state.meter.read("train"), sum(sizes))
    kept = [keras.ops.convert_to_numpy(weight) for weight in state.personal]
    counters = [keras.ops.convert_to_numpy(counter) for counter in state.counters]
    return Trained(state.delta(params).numpy(), kept, states, state.traffic(counters))


def evaluate_eagerly(
    state: ModelState, params: tf.Tensor, personal: list, data: Examples, rows: np.ndarray, batch_size: int, key: Key
) -> dict[str, Weighted | MetricState]:
    """Compute what EvaluateProgram computes, to rounding, for models that only run eagerly."""
    state.begin_eagerly(params, personal, None, key)
    with state.start.watched():
        for start in range(0, len(rows), batch_size):
            batch = tf.constant(rows[start : start + batch_size])
            state.meter.track("test", state.model.test_step(gather(batch_of(data), batch)), len(batch))
    return state.meter.states("test", state.meter.read("test"), len(rows))


def first_line(error: Exception) -> str:
    """Return what an exception says, in one line.

    TensorFlow's begin with where in the graph, and what comes last says why.
    """
    noise = ("Graph execution error", "Detected at node", "File ", "[[", "[Op:", '("', "<stack traces")
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(noise)]
    return telling[0] if telling else type(error).__name__
