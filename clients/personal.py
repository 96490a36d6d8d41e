"""A client's own models: one that it keeps beside the round's, one that it chooses, one that is tuned to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.parts.algorithms import ClusteredStrategy
from ..core.parts.clusters import first_best, membership
from ..core.parts.local import Passes
from ..core.parts.phases import PERSONAL, Course, FineTune, tuning_course
from ..core.random import Key, derive
from ..core.recipe import own_course
from ..core.types import NOTHING, Broadcast, Metrics, Vector, loss_of
from .engine import Asking, Engine, Measured, play
from .memory import ClientMemory
from .tasks import evaluate_task, train_task

Data = tuple[Examples, np.ndarray]  # (arrays or tensors where the engine computes, the client's rows of them)


def train_own(
    engine: Engine,
    course: Course,
    broadcast: Broadcast,
    client: int,
    key: Key,
    data: Data,
    passes: Passes,
    own: Vector | None,
) -> Asking[Vector]:
    """Return the client's own model after its round. own: the one before it, None at first. passes: as Local says."""
    own = broadcast.params if own is None else own
    anchor = broadcast.params if course.is_anchored else None
    # Only what is not float is at home beside a whole model of one's own: counters, which begin anew.
    count, personal = course.passes(passes.begun), engine.initial_memory
    start, own_key = broadcast._replace(params=own), key.derive("own")
    trained = yield train_task(
        engine, start, client, own_key, *data, personal, course, count, anchor, passes.last, draws=key
    )
    return own + trained.delta


def evaluate_client(
    engine: Engine,
    broadcast: Broadcast,
    client: int,
    held_out: Data,
    memory: list[np.ndarray] | None,
    training: Callable[[], Data],
) -> Measured:
    """Return the metrics' states over a client's held-out examples; as personal_… those of its own model, if any.

    memory: what the client keeps at home, None at first. training: its training examples.
    """
    return play(engine, evaluation(engine, broadcast, client, held_out, memory, training))


def evaluation(
    engine: Engine,
    broadcast: Broadcast,
    client: int,
    held_out: Data,
    memory: list[np.ndarray] | None,
    training: Callable[[], Data],
) -> Asking[Measured]:
    """Same as `evaluate_client`, as work that asks an engine."""
    experiment, kept = engine.experiment, ClientMemory.read(memory, engine.initial_memory)
    if isinstance(experiment.strategy, ClusteredStrategy):
        broadcast, _ = yield from choose_model(engine, broadcast, training(), kept)
    params = broadcast.params
    found = yield evaluate_task(engine, params, *held_out, kept.personal, client)
    if own_course(experiment) is not None:
        own = params if kept.remembered is None else kept.remembered
        personal = yield evaluate_task(engine, own, *held_out, None, client)
    elif experiment.fine_tune is not None:
        tuned, at_home = yield from fine_tune(engine, experiment.fine_tune, params, client, kept, training())
        personal = yield evaluate_task(engine, tuned, *held_out, at_home, client)
    else:
        return found
    return found | {PERSONAL + name: value for name, value in personal.items()}


def fine_tune(
    engine: Engine, tune: FineTune, params: Vector, client: int, memory: ClientMemory, training: Data
) -> Asking[tuple[Vector, list[np.ndarray]]]:
    """Return the vector, and the variables at home, after a client trained on its own examples. Nothing is remembered.

    The same order of examples in every evaluation: what changes is the model.
    """
    experiment, course = engine.experiment, tuning_course(tune)
    rate = tune.learning_rate or experiment.local.learning_rate
    broadcast = Broadcast(0, params, NOTHING, (), rate)  # type: ignore[arg-type]  # checked to be no schedule
    key = derive(experiment.seed, "fine tune", "client", client)
    trained = yield train_task(engine, broadcast, client, key, *training, memory.personal, course, tune.epochs)
    return params + trained.delta, trained.personal


def choose_model(
    engine: Engine, broadcast: Broadcast, data: Data, memory: ClientMemory
) -> Asking[tuple[Broadcast, Metrics]]:
    """Return broadcast with the model that the client trains, where it has several to choose from, and which that is.

    The first of the smallest losses over its training examples. Errors: ConfigError for a model that reports no loss.
    """
    strategy = engine.experiment.strategy
    if not isinstance(strategy, ClusteredStrategy):
        return broadcast, {}
    models, losses = strategy.candidates(broadcast), []
    for model in models if len(models) > 1 else ():
        found = yield evaluate_task(engine, model, *data, memory.personal)
        loss = loss_of(found)
        if loss is None:
            raise ConfigError(f"{strategy!r} needs the model's test_step to report a loss; it reports {sorted(found)}")
        losses.append(loss)
    number = first_best(losses) if losses else 0
    return broadcast._replace(params=models[number]), membership(number, len(models))
