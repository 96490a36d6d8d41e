"""Checks of what a user's own sampler and strategy return, before it is used.

Ours are held to it by their tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.reading.fingerprint import is_users_own
from ..core.types import State, Vector
from ..core.validation import require, shown


def checked_cohort(sampler: Any, cohort: Any, candidates: Sequence[int]) -> list[int]:
    """Return the clients that a sampler chose, ascending.

    Errors: ConfigError for anything but distinct numbers of candidates.
    """
    if not is_users_own(type(sampler)):
        return cohort
    name = type(sampler).__name__
    try:
        chosen = sorted(index(client) for client in cohort)
    except TypeError as error:
        raise ConfigError(f"{name} chose {shown(cohort)}; expected a list of clients' numbers") from error
    strangers = sorted(set(chosen).difference(candidates))
    require(not strangers, f"{name} chose {shown(strangers)}, not among the {len(candidates)} clients there are")
    require(len(set(chosen)) == len(chosen), f"{name} chose a client twice: {shown(chosen)}")
    return chosen


def checked_step(strategy: Any, step: Any, params: Vector) -> tuple[State, Vector]:
    """Return what a strategy's `update` returned for params. Errors: ConfigError for anything but (state, params)."""
    if not is_users_own(type(strategy)):
        return step
    name = f"{type(strategy).__name__}.update()"
    require(isinstance(step, tuple) and len(step) == 2, f"{name} returned {shown(step)}; expected (state, params)")
    shape = np.shape(step[1])
    require(shape == params.shape, f"{name} returned params of shape {shape}; expected {params.shape}")
    return step
