"""Local differential privacy: each client's update is noisy when it leaves, so that nobody has to be trusted.

Source of the noise's size: Balle, Wang 2018: Improving the Gaussian Mechanism for Differential Privacy.
https://arxiv.org/abs/1805.06530
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, SupportsFloat

from ..core.bases import TRANSFORM_NEEDS, UpdateTransform
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.traits import Trait
from ..core.types import ClientUpdate, State, Total
from ..core.validation import require_real
from .clipping import as_private, clip_update
from .events import LocalRelease, require_noise
from .noise import NoiseStream


@dataclass(frozen=True)
class LocalGaussian(UpdateTransform):
    """Each client clips its update to clip_norm and adds N(0, (noise_multiplier·clip_norm)²) to each number of it.

    Any two updates lie up to 2·clip_norm apart, and that is what the noise has to hide: `local_noise` gives the
    multiplier for an (ε, δ). Sampling amplifies nothing, since the server sees who sends; a client pays for each of its
    rounds. That it took part is not hidden. Metrics stay with the client.

    In simulation the noise repeats with the seed; a real device draws the key from its operating system's entropy.

    Parameters
    ----------
    noise_multiplier
        A number; or what turns into one when first needed, a plan's calibration.
    """

    clip_norm: float
    noise_multiplier: float | SupportsFloat

    needs: ClassVar[Trait] = TRANSFORM_NEEDS | Trait.NORM_BOUND
    adds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("clip_norm", self.clip_norm, above=0)
        require_noise(self.noise_multiplier)

    @property
    def event(self) -> LocalRelease:
        """Privacy event of one round, for each client in it."""
        return LocalRelease(float(self.noise_multiplier))

    def init(self, spec: ModelSpec) -> State:
        """Return (): there is no state.

        Errors: ConfigError for a budget that no noise keeps, where the noise is yet to be calibrated.
        """
        float(self.noise_multiplier)
        return ()

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Clip the update and add noise, on the client: weight 1, without metrics.

        Errors: ConfigError for another weight, ClientError for an update that is not finite.
        """
        clipped, _ = clip_update(as_private(update), self.clip_norm)
        noise, scale = NoiseStream.simulated(key.derive("local")), float(self.noise_multiplier) * self.clip_norm
        return clipped._replace(delta=noise.add_to(clipped.delta, scale), extra=noise.add_to(clipped.extra, scale))

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Return the sum as it is. A sum of nobody is 0, and so is its mean: nothing was released."""
        return state, total._replace(weight=total.weight if total.clients else 1.0, metrics={})
