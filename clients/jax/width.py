"""Width of a block: how many clients take their steps in one call, and how many are asked for at once."""

from __future__ import annotations

import math

from ...core.recipe import Recipe
from ...core.tree import LEAF
from ..draws import width_for as width_of_batches
from .private import chunk_for

CACHE_BYTES = 4 << 20  # on a CPU: beyond it a block is slower than its clients one after another
COPIES = 3  # of each parameter in a step: value, gradient, and what is written
BLOCKS = 2  # at least so many of a cohort, which are computed side by side
WAITING_BYTES = 64 << 20  # of the deltas that wait for the last of those that were asked for together


def block_for(recipe: Recipe, size: int) -> int:
    """Return the number of clients in an experiment's blocks, for a vector of `size` numbers: equal parts of a cohort.

    It follows from the settings alone: a client's last bits depend on it.
    """
    cohort = max(1, round(recipe.sampler.expected_cohort(len(recipe.population))))
    copies = COPIES
    if recipe.local.per_example is not None:
        copies += chunk_for(size, width_of_batches(0, recipe.local.batch_size))
    most = max(1, CACHE_BYTES // (4 * copies * size))
    return math.ceil(cohort / max(math.ceil(cohort / most), min(BLOCKS, cohort)))


def at_once(block: int, size: int) -> int:
    """Return the number of clients to ask for together: runs of the sum's tree, each of several blocks."""
    run = LEAF
    while run < BLOCKS * block or 2 * run * 4 * size <= WAITING_BYTES:
        run *= 2
    return run
