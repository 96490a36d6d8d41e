"""Distributed differential privacy: the clients' shares of noise make the sum private before anyone can see it.

Source: Agarwal, Kairouz, Liu 2021: The Skellam Mechanism for Differentially Private Federated Learning.
https://arxiv.org/abs/2110.04995
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, SupportsFloat

import numpy as np

from ..core.bases import TRANSFORM_NEEDS, UpdateTransform
from ..core.errors import ConfigError, RunStopped
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.traits import Trait
from ..core.types import ClientUpdate, State, Total
from ..core.validation import require, require_count, require_real
from . import skellam
from .central import norm_before_rounding
from .clipping import as_private, clip_update
from .events import SkellamSum, require_noise
from .secagg.encoding import BITS, require_limit

LEVELS = 2 ** (BITS - 1) - 1  # integer that stands for the limit on secure aggregation's grid


def grid_limit(magnitude: float) -> float:
    """Compute the smallest limit ≥ magnitude of secure aggregation whose step is a power of two.

    On such a grid float32 holds every point exactly, so that what a client sends is aggregated as it is.
    """
    require_real("magnitude", magnitude, at_least=1e-30, at_most=1e30)
    return LEVELS * 2.0 ** math.ceil(math.log2(magnitude / LEVELS) - 1e-12)


@dataclass(frozen=True)
class DistributedSkellam(UpdateTransform):
    """Clients clip, round to the grid of secure aggregation, and add Skellam noise in whole steps.

    Each adds a share of the noise, so large that the shares of survivors_floor clients have together the variance
    (noise_multiplier·clip_norm)². Shares of more clients add up to more noise. Count as survivors only clients that are
    honest: what others add does not count, and nothing here makes them add it.

    Two updates of a client, rounded, lie up to 2·clip_norm apart, which is what `event` is priced by. Sampling
    amplifies nothing, since the server sees who takes part; metrics stay with the clients.

    In simulation the noise repeats with the seed; a real device draws the key from its operating system's entropy.

    Parameters
    ----------
    noise_multiplier
        A number; or what turns into one when first needed, a plan's calibration.
    limit
        The limit of the SecureSum, as `grid_limit` gives it. Its ±limit has to hold a clipped update and a share of the
        noise together; `init` checks it.
    """

    clip_norm: float
    noise_multiplier: float | SupportsFloat
    survivors_floor: int
    limit: float

    needs: ClassVar[Trait] = TRANSFORM_NEEDS | Trait.NORM_BOUND
    adds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("clip_norm", self.clip_norm, above=0)
        require_noise(self.noise_multiplier)
        require_count("survivors_floor", self.survivors_floor)
        require_limit("limit", self.limit)
        fits = grid_limit(self.limit)
        require(self.limit == fits, f"expected limit={self.limit!r} with steps of a power of two; use {fits!r}")

    @property
    def step(self) -> float:
        """Step of the grid: a power of two."""
        return self.limit / LEVELS

    @property
    def norm(self) -> float:
        """Clip norm in steps of the grid."""
        return self.clip_norm / self.step

    @property
    def event(self) -> SkellamSum:
        """Privacy event of one round."""
        return SkellamSum(float(self.noise_multiplier), self.norm)

    @property
    def share_variance(self) -> float:
        """Variance of one client's noise, in steps squared."""
        # A little more than the claim, for this division's sake.
        return (float(self.noise_multiplier) * self.norm) ** 2 / self.survivors_floor * (1 + 1e-12)

    def init(self, spec: ModelSpec) -> State:
        """Return (): there is no state.

        Errors: ConfigError where the limit is too small for the noise, or the grid too coarse.
        """
        norm_before_rounding(self.clip_norm, self.step, spec.size)
        widest = self.norm + skellam.tail(self.share_variance)
        if widest > LEVELS:
            raise ConfigError(
                f"limit={self.limit:g} cannot hold an update of norm {self.clip_norm:g} and a share of the noise of "
                f"standard deviation {math.sqrt(self.share_variance) * self.step:.3g}; "
                f"use limit={grid_limit(widest * self.step)!r}"
            )
        skellam.guide_of(self.share_variance)  # once, before several workers ask for it at a time
        return ()

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Clip the update, round it to the grid and add noise, on the client: weight 1, without metrics.

        Errors: ConfigError for another weight, ClientError for an update that is not finite.
        """
        delta, extra = len(update.delta), len(update.extra)
        bound = norm_before_rounding(self.clip_norm, self.step, delta + extra)
        clipped, _ = clip_update(as_private(update), bound)
        # Up or down at random, by less than a step: the norm stays within clip_norm, and the mean is kept.
        whole = np.concatenate([clipped.delta, clipped.extra]).astype(np.float64)
        whole /= self.step
        whole += key.derive("rounding").generator().random(delta + extra)
        np.floor(whole, out=whole)
        whole += skellam.draw(delta + extra, self.share_variance, key.derive("distributed"))
        sent = (whole * self.step).astype(np.float32)
        return clipped._replace(delta=sent[:delta], extra=sent[delta:])

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Return the sum as it is: its noise came with it.

        Errors: RunStopped for fewer clients than the noise was sized for; aggregation has to reveal no such sum.
        """
        if total.clients < self.survivors_floor:
            raise RunStopped(
                f"{total.clients} clients added noise that was sized for at least survivors_floor="
                f"{self.survivors_floor}; lower it, or sample more clients"
            )
        return state, total._replace(metrics={})
