"""BatchNorm's variance over the examples of all clients, from each client's own.

The mean of the clients' variances lacks the variance between their means. By the law of total variance, for weights p_k
that sum to 1 and any c,

    v = Σ p_k·(v_k + (m_k − c)²) − (m − c)²,   m = Σ p_k·m_k

Chan, Golub, LeVeque 1983: Algorithms for Computing the Sample Variance: Analysis and Recommendations, The American
Statistician 37(3), which recommends a c near m: far from it, the two terms cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.bases import TRANSFORM_NEEDS, UpdateTransform
from ..core.errors import ConfigError
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.traits import Trait
from ..core.types import ClientUpdate, State, Total


@dataclass(frozen=True)
class PooledVariance(UpdateTransform):
    """A transform, the first of a chain: moving variances become those of all clients' examples together.

    A client sends, for each BatchNorm layer, its second moment about the broadcast's mean, c, in place of its variance;
    the server takes the square of the mean's own way from c off again. On the client that is delta_v + delta_m², which
    is linear from there on: it works under secure sums, homomorphic encryption and a plan's clipping and noise.

    Guarantees: where clients send the mean and variance of their examples, and weigh as many, the model gets mean and
    variance of all; to float32's rounding, relative to the variance and the squares of the clients' way. Clipping makes
    it the variance of a mixture with the statistics before. Refused with what treats each number of an update on its
    own (Median, TrimmedMean, Bulyan, ClipPerLayer, RandomMask), with codecs, and in asynchronous rounds, whose clients
    began from different means. Errors: ConfigError for a model that shares no moving mean and variance.
    """

    pools_statistics: ClassVar[bool] = True
    needs: ClassVar[Trait] = TRANSFORM_NEEDS | Trait.SAME_ROUND | Trait.WHOLE_UPDATE

    def init(self, spec: ModelSpec) -> State:
        """Return where means and variances lie in the vector: int64, shape (layers, 3), of offsets and a size."""
        if not spec.moments:
            raise ConfigError(
                f"{self!r} is for a model that shares moving_mean and moving_variance (BatchNormalization), and this "
                "has none; drop it from transforms, or from personal what keeps them at home"
            )
        return np.array([(mean.start, variance.start, mean.stop - mean.start) for mean, variance in spec.moments])

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Replace delta_v by delta_v + delta_m², on the client."""
        delta = update.delta.copy()
        for mean, variance in _places(state):
            delta[variance] += delta[mean] ** 2
        return update._replace(delta=delta)

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Replace the mean's delta_s by delta_s − delta_m², on the server."""
        delta = total.delta.copy()
        for mean, variance in _places(state):
            moved = delta[mean].astype(np.float64)
            delta[variance] -= (moved * (moved / total.weight)).astype(np.float32)
        return state, total._replace(delta=delta)


def _places(state: State) -> list[tuple[slice, slice]]:
    """Return the slices of each layer's mean and variance."""
    return [(slice(mean, mean + size), slice(variance, variance + size)) for mean, variance, size in state.tolist()]
