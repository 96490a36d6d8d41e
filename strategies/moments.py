"""The step of FedAdagrad, FedAdam and FedYogi: Algorithm 2 of Reddi et al. 2021, all but the second moment's rule.

    m ← β1·m + (1 − β1)·Δ
    v ← (FedAdagrad's, FedAdam's or FedYogi's rule)(v, Δ²)
    w ← w + η·m / (√v + τ)

Δ is the mean delta. m and v begin with 0. The paper's analysis asks for v ≥ τ² at the start; 0 is what Flower does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..core.types import Vector
from ..core.validation import require, require_real

BLOCK = 1 << 14  # numbers per step: a block of every operand stays in the processor's cache


class Moments(NamedTuple):
    """The state of an adaptive server optimizer."""

    rounds: int  # number of rounds done so far
    m: Vector  # first moment, shape (d,)
    v: Vector  # second moment, shape (d,), ≥ 0


def no_moments(params: Vector) -> Moments:
    """Return the state before the first round."""
    return Moments(0, np.zeros_like(params), np.zeros_like(params))


def step(
    state: Moments,
    params: Vector,
    delta: Vector,
    second_moment: Callable[[np.ndarray, np.ndarray], np.ndarray],
    beta_1: float,
    rate: float,
    tau: float,
) -> tuple[Moments, Vector]:
    """Take one step of Algorithm 2 with v ← second_moment(v, Δ²); block by block, nothing passed in is changed."""
    m, v, stepped = np.empty_like(params), np.empty_like(params), np.empty_like(params)
    for start in range(0, len(params), BLOCK):
        block = slice(start, start + BLOCK)
        moved = delta[block]
        m[block] = beta_1 * state.m[block] + (1 - beta_1) * moved
        v[block] = second_moment(state.v[block], moved * moved)
        stepped[block] = params[block] + rate * m[block] / (np.sqrt(v[block]) + tau)
    return Moments(state.rounds + 1, m, v), stepped


def require_moments(tau: float, **betas: float) -> None:
    """Raise ConfigError unless τ > 0 and each β is in [0, 1)."""
    require_real("tau", tau, above=0)
    for name, beta in betas.items():
        require_real(name, beta, at_least=0)
        require(beta < 1, f"expected {name}={beta!r} < 1")
