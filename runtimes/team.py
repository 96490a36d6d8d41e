"""Team: what the workers of a simulation are built from; where it is equal, the next run uses them again."""

from __future__ import annotations

from typing import Any

from ..core.examples import Examples, leaves
from ..core.experiment import Experiment
from ..core.parts.algorithms import SplitStrategy
from ..core.reading.fingerprints import digest_of, fingerprint
from ..core.recipe import Recipe


def held_out(experiment: Experiment) -> tuple[int, int]:
    """Return the identities of what an experiment evaluates on."""
    return id(experiment.test), id(experiment.validation)


def workers_of(experiment: Recipe) -> tuple:
    """Return what workers are built from: equal values mean they can be used again."""
    local = experiment.local
    resident = experiment.population.resident()
    return (
        fingerprint(experiment.model),
        None if experiment.start is None else experiment.start.describe(),
        experiment.seed,
        experiment.personal,
        (local.is_partial or local.epochs, local.batch_size, local.per_example),  # however many steps: one program
        local.learning_rate is None,
        experiment.rule,
        experiment.strategy.cut if isinstance(experiment.strategy, SplitStrategy) else None,
        # What the model was checked with: all labels, and an example's shapes and types.
        () if resident is None else (resident.count, layout_of(resident.x), digests_of(resident._replace(x=None))),
    )


def layout_of(arrays: Any) -> tuple:
    """Return shapes, less the first axis, and types of nested arrays."""
    return tuple((array.shape[1:], array.dtype.str) for array in leaves(arrays))


def digests_of(examples: Examples) -> tuple:
    """Digest all arrays."""
    return tuple(digest_of(array) for array in leaves(tuple(examples)))
