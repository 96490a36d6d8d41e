"""Tasks for an engine: which examples in which order, at which rate, with which random numbers."""

from __future__ import annotations

import threading

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.parts.phases import Course
from ..core.random import Dealer, Key, derive
from ..core.recipe import Recipe
from ..core.types import NOTHING, Broadcast, Vector
from .engine import Engine, EvaluateTask, Measured, TrainTask

CHUNK = 4096  # number of examples in an evaluation call


class _OfThread(threading.local):
    """Holdings of a thread that it shares with none."""

    def __init__(self) -> None:
        self.dealer = Dealer()


_OWN = _OfThread()


def train_task(
    engine: Engine,
    broadcast: Broadcast,
    client: int,
    key: Key,
    data: Examples,
    rows: np.ndarray,
    personal: list[np.ndarray],
    course: Course,
    passes: int,
    offset: Vector | None = None,
    last: int | None = None,
    draws: Key | None = None,
) -> TrainTask:
    """Return a client's training from broadcast.params; the order of examples and the model's numbers follow from key.

    passes: of all phases. last: examples of the last pass that Local governs; None: all. draws: the key that DP-SGD's
    batches and noise are derived from; None: `key`.
    """
    local, rows = engine.experiment.local, whole_batches(engine, rows)
    order = epoch_orders(rows, passes, key.derive("shuffle") if local.shuffle else None)
    rate = engine.default_rate if broadcast.learning_rate is None else broadcast.learning_rate
    noise = None
    if local.per_example is not None:
        # Neither batches nor noise of a real device may follow from a key that the server knows.
        noise = Key.fresh() if engine.is_live else (draws or key).derive("per example")
    return TrainTask(
        broadcast.round,
        client,
        broadcast.params,
        data,
        personal,
        order,
        len(rows),
        len(rows) if last is None else last,
        rate,
        course,
        NOTHING if offset is None else offset,
        key.derive("layers"),
        noise,
    )


def evaluate_task(
    engine: Engine,
    params: Vector,
    data: Examples,
    rows: np.ndarray,
    personal: list[np.ndarray] | None = None,
    client: int = -1,
) -> EvaluateTask:
    """Return the evaluation of a vector over rows of data, with a client's personal variables; None: as built.

    Random numbers that the model draws (a sampled latent, Dropout at test time) follow from the seed, the client and
    the first of the rows, so that neither workers nor their order count. client: −1 for the server's examples. Errors:
    ConfigError for rows that do not fill the batches of a model with a fixed batch size.
    """
    batch = engine.evaluation_batch
    if engine.fixed_batch is not None and len(rows) % batch:
        raise ConfigError(
            f"the model takes batches of {batch} alone, and {len(rows)} examples are no multiple of it; "
            f"evaluate {len(rows) // batch * batch} of them"
        )
    key = derive(engine.experiment.seed, "evaluate", client, int(rows[0]) if len(rows) else 0)
    return EvaluateTask(params, data, engine.initial_memory if personal is None else personal, rows, key)


def evaluate(
    engine: Engine, params: Vector, data: Examples, rows: np.ndarray, personal: list[np.ndarray] | None = None
) -> Measured:
    """Return the metrics' states of a vector over rows of the server's examples; see `evaluate_task`."""
    return engine.evaluate([evaluate_task(engine, params, data, rows, personal)])[0]


def chunk_of(engine: Engine) -> int:
    """Return the most examples in one evaluation call; fixed, so that sums do not depend on the workers."""
    return max(CHUNK // engine.evaluation_batch, 1) * engine.evaluation_batch


def whole_batches(engine: Engine, rows: np.ndarray) -> np.ndarray:
    """Return rows without the last that do not fill a batch, where the model takes batches of one size alone."""
    return rows if engine.fixed_batch is None else rows[: len(rows) // engine.fixed_batch * engine.fixed_batch]


def step_sizes(recipe: Recipe, fixed_batch: int | None, client: int, round: int, examples: int) -> list[int]:
    """Return the numbers of examples in the steps that a client takes in a round, in order.

    fixed_batch: the only batch size that the model takes; None: any. examples: the client's own.
    """
    local, count = recipe.local, examples if fixed_batch is None else examples // fixed_batch * fixed_batch
    passes = local.passes(count, local.epochs_of(np.array([client]), round, recipe.seed)[0].item())
    sizes: list[int] = []
    for number in range(passes.begun):
        seen = passes.last if number == passes.begun - 1 else count
        batch = local.batch_size or max(seen, 1)
        sizes += [batch] * (seen // batch) + ([seen % batch] if seen % batch else [])
    return sizes


def epoch_orders(rows: np.ndarray, epochs: int, key: Key | None) -> np.ndarray:
    """Return the order in which rows are visited: int32, shape (epochs, len(rows)); with a key shuffled per epoch."""
    rows = np.asarray(rows, np.int32)
    if key is None:
        return np.tile(rows, (epochs, 1))
    orders, generator = np.tile(rows, (epochs, 1)), _OWN.dealer.at(key)
    for order in orders:
        generator.shuffle(order)
    return orders
