"""Batches and noise of a client's DP-SGD: drawn on the host, the same whatever computes.

Each step takes every example of the client on its own with probability q = batch_size/n. A batch has the size that it
has: none is cut to a cap, so that the sampling is exactly what accounting prices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..core.parts.local import Local
from ..core.parts.private import PerExamplePrivacy
from ..core.random import Key
from ..core.types import Vector
from .engine import TrainTask

SIGMAS = 4.0  # deviations of a batch's size that the first width has room for
ROUNDING = 2.0**-10  # relative bound on how far norms and sums in float32 can be off
FINEST = 2.0**-160  # step of a grid on which every float32 number lies


class Draws(NamedTuple):
    """The batches of a client's round."""

    rows: np.ndarray  # rows of the data: int32, shape (steps, largest batch); padded with rows of the client's own
    sizes: np.ndarray  # number of rows of each step that count: int32, shape (steps,)


class PrivateTask(NamedTuple):
    """One client's round, besides the broadcast and the data."""

    personal: list[np.ndarray]  # values of the variables that stay at home
    draws: Draws
    expected_batch: float
    learning_rate: float
    key: Key  # key that the model's random numbers follow from
    offset: np.ndarray  # vector added to every gradient: shape (d,), or empty for nothing
    noise: Callable[[np.ndarray], None]
    grid: float  # the step of what a noisy sum is rounded to


def draw_batches(rows: np.ndarray, local: Local, key: Key) -> Draws:
    """Draw every step's Poisson batch of rows."""
    count, steps = len(rows), local.steps_of(len(rows))
    generator, rate = key.generator(), sampling_rate(local, count)
    sizes = generator.binomial(count, rate, steps) if count else np.zeros(steps, np.int64)
    drawn = np.full((steps, max(int(sizes.max(initial=0)), 1)), rows[0] if count else 0, np.int32)
    for step, size in enumerate(sizes):
        drawn[step, :size] = rows[generator.choice(count, size, replace=False, shuffle=False)]
    return Draws(drawn, sizes.astype(np.int32))


def width_for(largest: int, batch_size: int | None) -> int:
    """Return the first of a few widths, multiples of 8, that has room for the largest batch."""
    usual = batch_size or 16
    width = multiple_of_8(usual + SIGMAS * math.sqrt(usual))
    while width < largest:
        width = multiple_of_8(1.25 * width)
    return width


def multiple_of_8(number: float) -> int:
    """Return the smallest multiple of 8 that is at least number."""
    return 8 * math.ceil(number / 8)


def sampling_rate(local: Local, examples: int) -> float:
    """Return each example's probability of being in a step's batch."""
    return 1.0 if not local.batch_size or local.batch_size >= examples else local.batch_size / examples


def expected_batch(local: Local, examples: int) -> float:
    """Return the public divisor of every step's sum."""
    return max(sampling_rate(local, examples) * examples, 1.0)


def private_task(task: TrainTask, privacy: PerExamplePrivacy, local: Local) -> PrivateTask:
    """Draw the batches and the noise of a client's round."""
    key = task.draws
    assert key is not None
    draws = draw_batches(task.order[0], local, key.derive("batches"))
    expected = expected_batch(local, task.examples)
    noise = privacy.noise(key.derive("noise"), expected)
    grid = privacy.grid_step(expected) or FINEST
    return PrivateTask(list(task.personal), draws, expected, task.learning_rate, task.key, task.offset, noise, grid)


def release(mean: Vector, noise: Vector, grid: float) -> Vector:
    """mean + noise: float32, added in float64 and rounded once, to multiples of grid.

    A float32 sum would be exact where the two nearly cancel, and a multiple of the noise's own spacing: its low bits
    would tell whether a coordinate is the one guessed (Mironov 2012).
    """
    exact = mean.astype(np.float64) + noise
    rounded: Vector = (np.round(exact / grid) * grid).astype(np.float32)
    return rounded
