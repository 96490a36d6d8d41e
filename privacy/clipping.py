"""Clipping: bounding how far one client can move the model.

Source: McMahan, Ramage, Talwar, Zhang 2018: Learning Differentially Private Recurrent Language Models.
https://arxiv.org/abs/1710.06963
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.bases import TRANSFORM_NEEDS, UpdateTransform
from ..core.errors import ClientError
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.traits import Trait
from ..core.types import ClientUpdate, State, Total, Vector
from ..core.validation import require, require_real

ROW = 256  # squares added up in float32, before float64 takes over
ROUNDING = 2.0**-16  # relative bound on how far such sums, and scaling in float32, can be off: (ROW + 3)·2⁻²⁴
SMALLEST_FACTOR = 2.0**-126  # least factor that float32 holds with all its digits
NOT_FINITE = "an update to clip has numbers that are not finite; lower the client's learning rate"
SMALLEST_SUM = 1e-24  # least sum of squares in float32: below, many of them may have vanished


@dataclass(frozen=True)
class Clip(UpdateTransform):
    """Scale each update, delta and extra together, to L2 norm at most clip_norm.

    On its own it bounds a client's influence; it becomes differential privacy only with noise in proportion.
    """

    clip_norm: float

    needs: ClassVar[Trait] = TRANSFORM_NEEDS | Trait.NORM_BOUND

    def __post_init__(self) -> None:
        require_real("clip_norm", self.clip_norm, above=0)

    def init(self, spec: ModelSpec) -> State:
        """Return (): there is no state."""
        return ()

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Clip the update, on the client. Errors: ClientError for an update that is not finite."""
        return clip_update(update, self.clip_norm)[0]

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Return state and total as they are: there is nothing to undo."""
        return state, total


@dataclass(frozen=True)
class ClipPerLayer(UpdateTransform):
    """Scale each variable's part of an update, and extra as one more part, to L2 norm at most clip_norm/√parts.

    The whole is then of norm at most clip_norm: before a plan with that clip norm its own clipping changes nothing but
    what float32 rounds, and no layer with large gradients takes the others' share. (McMahan et al. 2018, §3.)
    """

    clip_norm: float

    needs: ClassVar[Trait] = TRANSFORM_NEEDS | Trait.NORM_BOUND
    hides: ClassVar[Trait] = Trait.WHOLE_UPDATE

    def __post_init__(self) -> None:
        require_real("clip_norm", self.clip_norm, above=0)

    def init(self, spec: ModelSpec) -> State:
        """Return where each variable ends in the vector: int64, shape (variables,)."""
        return np.cumsum([variable.size for variable in spec.shared])

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Clip each variable's part, on the client. Errors: ClientError for an update that is not finite."""
        parts = [*np.split(update.delta, state[:-1]), *([update.extra] if len(update.extra) else [])]
        norms = [norm_of(part) for part in parts]
        if not all(map(math.isfinite, norms)):
            raise ClientError(NOT_FINITE)
        share = self.clip_norm / math.sqrt(len(parts))
        clipped = np.concatenate([scaled(part, norm, share) for part, norm in zip(parts, norms, strict=True)])
        size = len(update.delta)
        return update._replace(delta=clipped[:size], extra=clipped[size:])

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Return state and total as they are: there is nothing to undo."""
        return state, total


def clip(delta: Vector, clip_norm: float) -> tuple[Vector, float]:
    """Scale delta to L2 norm at most clip_norm; also return the norm it had.

    Guarantees: output norm ≤ clip_norm, what float32 rounds included. Edge cases: zero delta → unchanged; NaN or
    infinity anywhere → all zeros and a non-finite norm, so the caller can reject it.
    """
    norm = norm_of(delta)
    if not math.isfinite(norm):
        return np.zeros_like(delta), norm
    return scaled(delta, norm, clip_norm), norm


def clip_update(update: ClientUpdate, clip_norm: float) -> tuple[ClientUpdate, float]:
    """Scale an update's delta and extra together to norm at most clip_norm; also return the norm they had.

    Errors: ClientError where a number is not finite: it has no norm to clip, and must not reach a sum.
    """
    norm = norm_of(update.delta, update.extra)
    if not math.isfinite(norm):
        raise ClientError(NOT_FINITE)
    delta, extra = (scaled(vector, norm, clip_norm) for vector in (update.delta, update.extra))
    return update._replace(delta=delta, extra=extra), norm


def as_private(update: ClientUpdate) -> ClientUpdate:
    """Return the update without its metrics, which would be another release of the client's data.

    Errors: ConfigError for a weight that is not 1: noise in proportion to the clip norm would not cover it.
    """
    remedy = 'differential privacy bounds each client alike; use weighting="uniform"'
    require(update.weight == 1, f"expected weight={update.weight!r} to be 1: {remedy}")
    return update._replace(weight=1.0, metrics={})


def norm_of(*vectors: Vector) -> float:
    """Compute the L2 norm of vectors joined, to a relative 1e-5; NaN or infinite where a number is."""
    return math.sqrt(sum(map(sum_of_squares, vectors)))


def sum_of_squares(vector: Vector) -> float:
    """Compute Σ x² in one pass without a copy.

    It is no dot product, whose BLAS threads would crowd out the workers'.
    """
    whole = len(vector) // ROW * ROW
    rows = vector[:whole].reshape(-1, ROW)
    with np.errstate(over="ignore"):
        total = float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64))
    if not SMALLEST_SUM < total < math.inf:
        whole, total = 0, 0.0  # the squares left float32's range, or there were none
    rest = vector[whole:].astype(np.float64)
    return total + float(np.einsum("i,i->", rest, rest))


def scaled(vector: Vector, norm: float, clip_norm: float) -> Vector:
    """Return vector · clip_norm/norm, less what rounding could add.

    Where norm is surely within clip_norm, it is vector itself.
    """
    within = clip_norm * (1 - ROUNDING)
    if norm <= within:
        return vector
    if within / norm < SMALLEST_FACTOR:  # as float32 it would be off by more than ROUNDING allows for
        return (vector.astype(np.float64) * (within / norm)).astype(np.float32)
    return vector * np.float32(within / norm)
