"""Width of a block: how many clients take their steps in one call."""

from __future__ import annotations

import math

from ...core.recipe import Recipe
from ..draws import width_for as width_of_batches
from .private import chunk_for

CACHE_BYTES = 16 << 20  # on a CPU: beyond it a block is slower than its clients one after another
COPIES = 3  # of each parameter in a step: value, gradient, and what is written


def width_for(recipe: Recipe, size: int) -> int:
    """Return the width of an experiment's blocks, for a vector of `size` numbers: the cohort in equal parts.

    It follows from the settings alone: a client's last bits depend on it.
    """
    cohort = max(1, round(recipe.sampler.expected_cohort(len(recipe.population))))
    copies = COPIES
    if recipe.local.per_example is not None:
        copies += chunk_for(size, width_of_batches(0, recipe.local.batch_size))
    most = max(1, CACHE_BYTES // (4 * copies * size))
    return math.ceil(cohort / math.ceil(cohort / most))
