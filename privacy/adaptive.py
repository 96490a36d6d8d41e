"""Adaptive clipping: the clip norm follows a quantile of the clients' update norms, itself found privately.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021: Differentially Private Learning with Adaptive Clipping.
https://arxiv.org/abs/1905.03871
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..core.errors import ConfigError
from ..core.validation import require, require_real

SMALLEST, LARGEST = 1e-8, 1e8  # bounds of clip norms: far from where noise in proportion would leave float32


class ClipState(NamedTuple):
    """Clip norm of the next round, as the server tells it to everyone: it is public, being made of noisy counts."""

    clip_norm: float


@dataclass(frozen=True)
class AdaptiveClip:
    """A clip norm that moves, geometrically, to where a share `quantile` of the updates is not clipped.

    Each client sends b = 1 if its update was not clipped, else 0; with b̃ the noisy mean of b, the server sets
    C ← C·exp(−learning_rate·(b̃ − quantile)). initial: the first C. count_noise: the standard deviation of the noise on
    Σ b; by default a twentieth of the expected cohort. It is paid for out of the same noise multiplier, which costs
    0.5 % more noise on the updates of 100 clients, and leaves nothing for those of 10: see `update_noise`.
    """

    initial: float = 0.1
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        require_real("initial", self.initial, at_least=SMALLEST, at_most=LARGEST)
        require_real("quantile", self.quantile, at_least=0, at_most=1)
        require_real("learning_rate", self.learning_rate, above=0)
        if self.count_noise is not None:
            require_real("count_noise", self.count_noise, above=0)

    def count_scale(self, expected_cohort: float) -> float:
        """Return the standard deviation of the noise on the count, σ_b."""
        return expected_cohort / 20 if self.count_noise is None else self.count_noise

    def update_noise(self, noise_multiplier: float, expected_cohort: float) -> float:
        """Return z_Δ: the updates' noise multiplier that costs, with the count's noise, what noise_multiplier does.

        The count moves by 1/2, since clients send b − 1/2; so z⁻² = z_Δ⁻² + (2σ_b)⁻². Errors: ConfigError where σ_b is
        too small for any z_Δ, as for a cohort of 10.
        """
        scale = self.count_scale(expected_cohort)
        left = noise_multiplier**-2 - (2 * scale) ** -2
        if not left > 0:
            remedy = (
                f"use a cohort above {10 * noise_multiplier:.4g} clients" if self.count_noise is None else "raise it"
            )
            raise ConfigError(
                f"adaptive clipping of {expected_cohort:.4g} clients has no noise left for their updates: expected "
                f"noise_multiplier={noise_multiplier:.4g} below twice the count's noise of {scale:.4g}; {remedy}, "
                "or a fixed clip norm"
            )
        return 1 / math.sqrt(left)

    def next(self, state: ClipState, unclipped: float) -> ClipState:
        """Return the state after a round in which a share `unclipped` was not clipped.

        The share is noisy, so perhaps outside 0…1.
        """
        require(math.isfinite(unclipped), f"expected a share of unclipped updates, got {unclipped!r}")
        # The share outside 0…1 is noise alone.
        step = self.learning_rate * (min(max(unclipped, 0.0), 1.0) - self.quantile)
        return ClipState(min(max(state.clip_norm * math.exp(-step), SMALLEST), LARGEST))
