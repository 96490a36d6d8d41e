"""A client's round, in the order of the papers.

    choose a model ─► train it ─► finish the rule ─► train a model of its own ─► transforms ─► codec ─► what is sent

A round is a generator: it yields a task for an engine, and goes on with the answer. So it may ask more than once (IFCA
evaluates first, Ditto trains twice), and an engine may be handed what many clients ask for at the same time. What lies
between is NumPy, and the same whatever computes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from ..core.bases import Codec
from ..core.errors import ClientError
from ..core.examples import Examples
from ..core.parts.algorithms import Correction, SplitStrategy
from ..core.parts.discretion import is_discreet
from ..core.parts.local import Passes
from ..core.random import Key
from ..core.recipe import course_of, own_course
from ..core.spec import ModelSpec
from ..core.types import NOTHING, Broadcast, ClientUpdate, CodedUpdate, Failure, Vector, loss_of
from .discreet import check_client, tell_of_nothing, trained_or_nothing, zero_update
from .engine import Asking, Engine, Trained, TrainTask, play
from .memory import ClientMemory
from .personal import choose_model, train_own
from .tasks import train_task, whole_batches

OWN_MODEL = "its own model is not finite; lower the learning rate"


class Played(NamedTuple):
    """Result of a client's round."""

    content: ClientUpdate | CodedUpdate | Failure  # what leaves the client, or why nothing does
    memory: list[np.ndarray]  # what it keeps at home, if its update counts
    traffic: tuple[int, int] | None = None  # bytes up and down of a model that is cut; None for a whole one


class AskedClient(NamedTuple):
    """A client as it begins its round."""

    number: int
    key: Key
    data: Examples  # arrays, where the engine computes
    rows: np.ndarray  # the client's own rows of them
    memory: ClientMemory


def train_client(
    engine: Engine,
    broadcast: Broadcast,
    client: int,
    key: Key,
    data: Examples,
    rows: np.ndarray,
    memory: list[np.ndarray] | None = None,
) -> Played:
    """Play a client's round on an engine: train, then transforms, then the codec.

    data: arrays as `Engine.put` returns them, or the client's own; rows: the client's own rows of them. memory: what
    the client kept from its last round, None at first.
    """
    return play(engine, client_round(engine, broadcast, client, key, data, rows, memory))


def client_round(
    engine: Engine,
    broadcast: Broadcast,
    client: int,
    key: Key,
    data: Examples,
    rows: np.ndarray,
    memory: list[np.ndarray] | None,
) -> Asking[Played]:
    """Same as `train_client`, as work that asks an engine."""
    recipe, rows = engine.experiment, whole_batches(engine, rows)
    check_client(recipe.plan, len(rows))
    kept = ClientMemory.read(memory, engine.initial_memory)
    openly = trained_openly(engine, broadcast, AskedClient(client, key, data, rows, kept))
    if not is_discreet(recipe):
        return (yield from openly)
    nothing = partial(abstain, engine, broadcast, key)
    as_before = engine.initial_memory if memory is None else memory
    update, kept_after = yield from trained_or_nothing(
        broadcast, client, as_before, without_traffic(openly), nothing, engine.is_debugged
    )
    return Played(update, kept_after)


def trained_openly(engine: Engine, broadcast: Broadcast, client: AskedClient) -> Asking[Played]:
    """Same as `client_round`, where what goes wrong is a Failure or an error.

    A discreet client whose update is not finite goes the same way to the end, so that neither what it asks of the
    engine nor what it sends tells it from the others; what it sends then is the update that adds nothing.
    """
    recipe, memory, data = engine.experiment, client.memory, (client.data, client.rows)
    broadcast, member = yield from choose_model(engine, broadcast, data, memory)

    local, count = recipe.local, len(client.rows)
    epochs = local.epochs_of(np.array([client.number]), broadcast.round, recipe.seed)[0].item()
    passes = local.passes(count, epochs)
    task = prepared(engine, broadcast, client, passes)
    trained = yield task
    failure = not_finite(engine, client.number, trained)
    if failure is not None:
        if not is_discreet(recipe):
            return Played(failure, memory.arrays, trained.traffic)
        trained = trained._replace(delta=np.zeros_like(trained.delta))

    delta, extra, remembered = finished(engine, broadcast, memory, task, trained, epochs)

    own = own_course(recipe)
    if own is not None:
        model = yield from train_own(engine, own, broadcast, client.number, client.key, data, passes, remembered)
        if np.isfinite(model.sum()):
            remembered = model
        elif not is_discreet(recipe):
            return Played(Failure(client.number, "non_finite", OWN_MODEL), memory.arrays)

    if failure is not None:
        tell_of_nothing(broadcast, client.number, failure.detail)
        return Played(abstain(engine, broadcast, client.key), memory.arrays)
    weight = float(count) if recipe.weighting == "examples" else 1.0
    update = ClientUpdate(delta, extra, weight, {**trained.metrics, **member})
    if isinstance(recipe.strategy, SplitStrategy):
        return Played(update, trained.personal, trained.traffic)
    try:
        sent, residual = encoded(engine, broadcast, update, memory.residual, client.key)
    except ClientError as error:  # what the rule made of it is not finite: the round goes on without this client
        return Played(Failure(client.number, "non_finite", str(error)), memory.arrays)
    return Played(sent, ClientMemory(trained.personal, remembered, residual).arrays)


def prepared(engine: Engine, broadcast: Broadcast, client: AskedClient, passes: Passes) -> TrainTask:
    """Return the training of the round's model, with the rule's correction of its gradients."""
    rule, course = engine.experiment.rule, course_of(engine.experiment)
    offset = rule.offset(broadcast, client.memory.remembered) if isinstance(rule, Correction) else None
    number, key, data, rows, memory = client
    count = course.passes(passes.begun)
    return train_task(engine, broadcast, number, key, data, rows, memory.personal, course, count, offset, passes.last)


def not_finite(engine: Engine, client: int, trained: Trained) -> Failure | None:
    """Return the failure of a client whose delta is not finite; None for any other."""
    # One pass: NaN and infinity reach the sum. Not a dot product, whose BLAS threads would crowd out the workers'.
    if np.isfinite(trained.delta.sum()):
        return None
    return non_finite(engine, client, loss_of(trained.metrics))


def non_finite(engine: Engine, client: int, loss: float | None) -> Failure:
    """Return the failure of a client whose delta is not finite."""
    said = f" (training loss {math.nan if loss is None else loss:.4g})"
    told = "" if engine.experiment.plan is not None else said
    return Failure(client, "non_finite", f"its update is not finite{told}")


def finished(
    engine: Engine, broadcast: Broadcast, memory: ClientMemory, task: TrainTask, trained: Trained, epochs: float
) -> tuple[Vector, Vector, Vector | None]:
    """Return the delta and extra that the rule makes of a training of `epochs`, and what the client remembers."""
    rule, delta = engine.experiment.rule, trained.delta
    if not isinstance(rule, Correction):
        return delta, NOTHING, memory.remembered
    steps = engine.experiment.local.steps_of(task.examples, epochs)
    delta, extra, remembered = rule.finish(broadcast, memory.remembered, delta, steps, task.learning_rate)
    return with_statistics(delta, trained.delta, engine.spec), extra, remembered


def encoded(
    engine: Engine, broadcast: Broadcast, update: ClientUpdate, residual: Vector | None, key: Key
) -> tuple[ClientUpdate | CodedUpdate, Vector | None]:
    """Return what leaves the client of an update, and what the codec's next one has to make up for."""
    recipe = engine.experiment
    own_key = Key.fresh() if engine.is_live else key.derive("transforms")
    update = recipe.transforms.encode(broadcast.transforms, update, own_key)
    if recipe.codec is None:
        return update, None
    return coded(recipe.codec, update, residual, key.derive("codec"))


def abstain(engine: Engine, broadcast: Broadcast, key: Key) -> ClientUpdate | CodedUpdate:
    """Return the update of a client that adds nothing: of the kind and length of any other, noise included."""
    return encoded(engine, broadcast, zero_update(engine.experiment, broadcast), None, key)[0]


def without_traffic(work: Asking[Played]) -> Asking[tuple[ClientUpdate | CodedUpdate | Failure, list[np.ndarray]]]:
    """Return what leaves the client, and what it keeps."""
    played = yield from work
    return played.content, played.memory


def with_statistics(delta: Vector, trained: Vector, spec: ModelSpec) -> Vector:
    """Return what a rule made of a delta, with the statistics as they were trained: they are no sums of gradients."""
    if delta is trained or not spec.statistics:
        return delta
    delta = delta.copy()
    for place in spec.statistics:
        delta[place] = trained[place]
    return delta


def coded(codec: Codec, update: ClientUpdate, residual: Vector | None, key: Key) -> tuple[CodedUpdate, Vector | None]:
    """Return update as codec sends it, and what the client's next one has to make up for: None without error feedback.

    residual: from the update before. Guarantees, with error feedback: what is decoded, plus the new residual, is
    delta + residual, in each number to rounding. Errors: ClientError where a number is not finite.
    """
    delta, feedback = update.delta, codec.error_feedback
    if feedback and residual is not None:
        if len(residual) != len(delta):
            raise ClientError(f"expected a residual of {len(delta)} numbers, the client kept {len(residual)}")
        delta = delta + residual
    payload = codec.encode(delta, key)
    left = delta - codec.decode(payload, len(delta)) if feedback else None
    if left is not None and not np.isfinite(left.sum()):
        raise ClientError("what the codec left out is not finite; lower the client's learning rate")
    return CodedUpdate(payload, update.extra, update.weight, update.metrics), left
