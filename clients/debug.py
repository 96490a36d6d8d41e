"""The slow twin of the compiled client: the same work, eagerly, with client, round and batch in every error."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from ..core.errors import ClientError
from ..core.examples import Examples
from ..core.types import Broadcast, Weighted
from .building import batch_of
from .program import ModelState, gather, metric_sums, named_sums


def train_eagerly(
    state: ModelState,
    broadcast: Broadcast,
    client: int,
    memory: Sequence[np.ndarray],
    data: Examples,
    order: np.ndarray,
    batch_size: int | None,
    learning_rate: float,
    seeds: np.ndarray,
) -> tuple[np.ndarray, list[np.ndarray], dict[str, Weighted]]:
    """What TrainProgram computes, to rounding. Errors: ClientError naming client, round and batch.

    Besides Keras's own errors, a loss that is not finite is one: it is raised at the batch where it first appears.
    """
    params = tf.constant(broadcast.params, tf.float32)
    state.begin(params, list(memory), learning_rate, tf.constant(seeds, tf.int64, shape=(len(state.seeds), 2)))
    epochs, count = order.shape
    step = batch_size or count
    starts = [(epoch, start) for epoch in range(epochs) for start in range(0, count, step)]
    for batch, (epoch, start) in enumerate(starts):
        try:
            results = state.model.train_step(gather(batch_of(data), tf.constant(order[epoch, start : start + step])))
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
