"""Clipping: bounding how far one client can move the model.

Source: McMahan, Ramage, Talwar, Zhang 2018: Learning Differentially Private Recurrent Language Models.
https://arxiv.org/abs/1710.06963
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.types import ClientUpdate, State, Total, Vector
from ..core.validation import require_real


@dataclass(frozen=True)
class Clip:
    """Scale each update, delta and extra together, to L2 norm at most clip_norm.

    On its own it bounds a client's influence; it becomes differential privacy only with noise in proportion.
    """

    clip_norm: float

    def __post_init__(self) -> None:
        require_real("clip_norm", self.clip_norm, above=0)

    def init(self, spec: ModelSpec) -> State:
        """No state."""
        return ()

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """On the client."""
        joined, _ = clip(np.concatenate([update.delta, update.extra]), self.clip_norm)
        return update._replace(delta=joined[: len(update.delta)], extra=joined[len(update.delta) :])

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Nothing to undo."""
        return state, total


def clip(delta: Vector, clip_norm: float) -> tuple[Vector, float]:
    """Scale delta to L2 norm at most clip_norm; also return the norm it had.

    Guarantees: output norm ≤ clip_norm, to rounding. Edge cases: zero delta → unchanged; NaN or infinity anywhere → all
    zeros and a non-finite norm, so the caller can reject it.
    """
    # In float64, since the squares of finite float32 numbers overflow float32.
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    if not np.isfinite(norm):
        return np.zeros_like(delta), norm
    if norm <= clip_norm:
        return delta, norm
    return delta * np.float32(clip_norm / norm), norm
