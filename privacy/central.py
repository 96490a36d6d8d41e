"""Central differential privacy of whole clients (DP-FedAvg): clipped updates, and noise on their sum.

Source: McMahan, Ramage, Talwar, Zhang 2018: Learning Differentially Private Recurrent Language Models.
https://arxiv.org/abs/1710.06963
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, SupportsFloat

import numpy as np

from ..core.bases import TRANSFORM_NEEDS, UpdateTransform
from ..core.errors import ConfigError
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.traits import Trait
from ..core.types import ClientUpdate, State, Total
from ..core.validation import require, require_real
from .adaptive import AdaptiveClip, ClipState
from .clipping import as_private, clip_update
from .events import require_noise
from .noise import NoiseStream


@dataclass(frozen=True)
class CentralGaussian(UpdateTransform):
    """Each client clips its update to C; the server adds N(0, (noise_multiplier·C)²) to each number of the sum.

    Nothing else of a client leaves: it weighs 1, and its metrics, which would be releases too, stay where they are. The
    sum is divided by expected_cohort, which is public, whoever replied. An empty cohort releases the same noise.
    The last of a chain: what comes after it would change norms that were bounded.

    The noise is drawn by `key`: in simulation it repeats with the seed; on real devices the server derives the key from
    its operating system's entropy, and nobody can subtract it.

    Parameters
    ----------
    clip_norm
        C, for delta and extra together; an AdaptiveClip finds it, and its count travels as one more number of extra,
        noised for itself and apart from what is clipped.
    noise_multiplier
        A number; or what turns into one when first needed, a plan's calibration.
    rounding
        By how much the aggregation may round each number afterwards, 0 where it is exact. Clients clip to C −
        rounding·√d, so that what is summed keeps to C.

    Raises
    ------
    ConfigError
        For a value out of bounds, here or, where calibration comes later, in `init`.
    """

    clip_norm: float | AdaptiveClip
    noise_multiplier: float | SupportsFloat
    expected_cohort: float
    rounding: float = 0.0

    needs: ClassVar[Trait] = TRANSFORM_NEEDS | Trait.NORM_BOUND
    adds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.clip_norm, AdaptiveClip):
            require_real("clip_norm", self.clip_norm, above=0)
        require_real("expected_cohort", self.expected_cohort, above=0)
        require_real("rounding", self.rounding, at_least=0)
        require_noise(self.noise_multiplier)
        if isinstance(self.noise_multiplier, Real):
            self.scale_of_updates(1.0)
        if isinstance(self.clip_norm, AdaptiveClip):
            require(self.rounding < 0.25, f"expected rounding={self.rounding!r} < 0.25: a count's half must outlast it")

    def init(self, spec: ModelSpec) -> State:
        """Return () for a fixed clip norm, else a ClipState."""
        self.scale_of_updates(1.0)
        self.clip_before_rounding(self.first_norm, spec.size)
        return ClipState(float(self.clip_norm.initial)) if isinstance(self.clip_norm, AdaptiveClip) else ()

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Clip on the client: weight 1, no metrics, and b − 1/2 at the end of extra where the norm adapts.

        Errors: ConfigError for another weight, ClientError for an update that is not finite.
        """
        size = len(update.delta) + len(update.extra)
        bound = self.clip_before_rounding(self.norm_in(state), size)
        clipped, norm = clip_update(as_private(update), bound)
        if not isinstance(self.clip_norm, AdaptiveClip):
            return clipped
        indicator = np.float32(self.half if norm <= bound else -self.half)
        return clipped._replace(extra=np.append(clipped.extra, indicator))

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Add noise on the server: a public divisor, no metrics, and the next clip norm where it adapts.

        total.clients is left for the operator, and is no release.
        """
        noise, scale = NoiseStream.simulated(key.derive("central")), self.scale_of_updates(self.norm_in(state))
        delta, extra = noise.add_to(total.delta, scale), total.extra
        if isinstance(self.clip_norm, AdaptiveClip):
            require(len(extra) > 0, "expected the count of unclipped updates at the end of extra")
            extra, count = extra[:-1], extra[-1:]
            noisy = noise.add_to(count, self.clip_norm.count_scale(self.expected_cohort))[0]
            share = float(noisy) * (0.5 / self.half) / self.expected_cohort + 0.5
            state = self.clip_norm.next(state, share)
        extra = noise.add_to(extra, scale)
        return state, Total(delta, extra, float(self.expected_cohort), total.clients, {})

    @property
    def first_norm(self) -> float:
        """The clip norm of the first round."""
        return self.clip_norm.initial if isinstance(self.clip_norm, AdaptiveClip) else self.clip_norm

    @property
    def half(self) -> float:
        """Number that stands for 1/2 in the count: less, by what rounding may add."""
        return 0.5 - self.rounding

    def norm_in(self, state: State) -> float:
        """Return C in this round."""
        return state.clip_norm if isinstance(self.clip_norm, AdaptiveClip) else self.clip_norm

    def scale_of_updates(self, clip_norm: float) -> float:
        """Return the standard deviation of the noise on delta and extra."""
        noise = float(self.noise_multiplier)
        if isinstance(self.clip_norm, AdaptiveClip):
            noise = self.clip_norm.update_noise(noise, self.expected_cohort)
        return noise * clip_norm

    def clip_before_rounding(self, clip_norm: float, size: int) -> float:
        """Return the norm to clip `size` numbers to, so that they keep to clip_norm after rounding."""
        return norm_before_rounding(clip_norm, self.rounding, size)


def norm_before_rounding(clip_norm: float, rounding: float, size: int) -> float:
    """Return the norm of `size` numbers that stays within clip_norm if each then moves by up to rounding.

    Errors: ConfigError where there is none.
    """
    bound = clip_norm - rounding * math.sqrt(size)
    if not bound > 0:
        raise ConfigError(
            f"rounding={rounding:g} may move {size} numbers by {rounding * math.sqrt(size):.3g} together, beyond "
            f"clip_norm={clip_norm:g}; lower the aggregation's limit, or raise the clip norm"
        )
    return bound
