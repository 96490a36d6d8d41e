"""A client's own models: one that it keeps beside the round's, one that it chooses, one that is tuned to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.clusters import first_best, is_clustered, membership
from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.phases import PERSONAL, Course, FineTune, own_course, tuning_course
from ..core.random import Key, derive
from ..core.types import NOTHING, Broadcast, Metrics, Vector, Weighted

if TYPE_CHECKING:
    from .worker import Worker

Data = tuple[Examples, np.ndarray]  # arrays or tensors on the worker's device, and the client's rows of them


def train_own(
    worker: Worker,
    course: Course,
    broadcast: Broadcast,
    client: int,
    key: Key,
    data: Data,
    epochs: int,
    own: Vector | None,
) -> Vector:
    """The client's own model after its round. own: before it, None at first. epochs: as many as Local says."""
    own = broadcast.params if own is None else own
    anchor = broadcast.params if course.is_anchored else None
    # Only what is not float is at home beside a whole model of one's own: counters, which begin anew.
    task = worker.task(broadcast, key.derive("own"), data[1], course.passes(epochs), worker.initial_memory, anchor)
    delta, *_ = worker.run(broadcast._replace(params=own), client, data[0], task, key, course)
    return own + delta


def evaluate_client(
    worker: Worker,
    broadcast: Broadcast,
    client: int,
    held_out: Data,
    memory: list | None,
    training: Callable[[], Data],
) -> dict[str, Weighted]:
    """Metric sums over a client's held-out examples, and as personal_… those of its own model, where it has one.

    memory: what the client keeps at home, None at first. training: its training examples.
    """
    experiment, (data, rows) = worker.experiment, held_out
    if is_clustered(experiment.strategy):
        broadcast, _ = chosen(worker, broadcast, training(), memory)
    params = broadcast.params
    found = worker.evaluate(params, data, rows, memory)
    if own_course(experiment) is not None:
        own = worker.remembered(memory)
        personal = worker.evaluate(params if own is None else own, data, rows, None)
    elif experiment.fine_tune is not None:
        tuned, kept = fine_tuned(worker, experiment.fine_tune, params, client, memory, training())
        personal = worker.evaluate(tuned, data, rows, kept)
    else:
        return found
    return found | {PERSONAL + name: value for name, value in personal.items()}


def fine_tuned(
    worker: Worker, tune: FineTune, params: Vector, client: int, memory: list | None, training: Data
) -> tuple[Vector, list[np.ndarray]]:
    """The vector, and the variables at home, after a client's training on its own examples. Nothing is remembered.

    The same order of examples in every evaluation: what changes is the model.
    """
    experiment, course = worker.experiment, tuning_course(tune)
    rate = tune.learning_rate or experiment.local.learning_rate
    broadcast = Broadcast(0, params, NOTHING, (), rate)  # type: ignore[arg-type]  # checked to be no schedule
    key = derive(experiment.seed, "fine tune", "client", client)
    task = worker.task(broadcast, key, training[1], tune.epochs, worker.at_home(memory), None)
    delta, kept, _ = worker.run(broadcast, client, training[0], task, key, course)
    return params + delta, kept


def chosen(worker: Worker, broadcast: Broadcast, data: Data, memory: list | None) -> tuple[Broadcast, Metrics]:
    """broadcast with the model that the client trains, where it has several to choose from, and which that is.

    The first of the smallest losses over its training examples. Errors: ConfigError for a model that reports no loss.
    """
    strategy: Any = worker.experiment.strategy
    if not is_clustered(strategy):
        return broadcast, {}
    models, losses = strategy.candidates(broadcast), []
    for model in models if len(models) > 1 else ():
        found = worker.evaluate(model, *data, memory)
        if "loss" not in found:
            raise ConfigError(f"{strategy!r} needs the model's test_step to report a loss; it reports {sorted(found)}")
        losses.append(found["loss"].mean())
    number = first_best(losses) if losses else 0
    return broadcast._replace(params=models[number]), membership(number, len(models))
