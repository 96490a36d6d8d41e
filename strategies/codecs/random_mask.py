"""The random mask: a cohort sends the same few coordinates, which sums can be taken of without seeing anyone's.

Konečný, McMahan, Yu, Richtárik, Suresh, Bacon 2016: Federated Learning: Strategies for Improving Communication
Efficiency, section 2 (random mask) and section 3 (unbiased subsampling). https://arxiv.org/abs/1610.05492
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ...core.bases import TRANSFORM_NEEDS, UpdateTransform
from ...core.random import Key, derive
from ...core.spec import ModelSpec
from ...core.traits import Trait
from ...core.types import ClientUpdate, State, Total
from ...core.validation import require, require_count, require_real
from .payloads import coordinates, kept


class Mask(NamedTuple):
    """State of the random mask: which mask is next."""

    rounds: int  # number of rounds done so far
    size: int  # length d of delta


@dataclass(frozen=True)
class RandomMask(UpdateTransform):
    """A transform by which k = ⌈fraction·d⌉ coordinates of delta leave each client, the same for all of a round.

    Linear, so that it works where only sums are seen: under secure aggregation, homomorphic encryption, and before the
    transform of a privacy plan, whose noise is then on k numbers. The server scales the sum by d/k, which makes it
    unbiased over masks, and puts it in place; in the other coordinates a round's sum is 0. All clients leave out the
    same, so that no cohort, however large, averages that out: lower server_lr with the fraction. What is left out is
    lost; extra travels whole.

    Parameters
    ----------
    seed
        Seed of the masks. Clients learn a round's mask from the transform's state, which counts rounds.
    """

    fraction: float
    seed: int = 0

    needs: ClassVar[Trait] = TRANSFORM_NEEDS | Trait.SAME_ROUND
    hides: ClassVar[Trait] = Trait.WHOLE_UPDATE

    def __post_init__(self) -> None:
        require_real("fraction", self.fraction, above=0, at_most=1)
        require_count("seed", self.seed, at_least=0)

    def init(self, spec: ModelSpec) -> State:
        """Return the state for the first mask."""
        return Mask(0, spec.size)

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Send the mask's coordinates alone, on the client. Errors: ConfigError for a delta of another length."""
        require(len(update.delta) == state.size, f"expected a delta of {state.size} numbers, got {len(update.delta)}")
        return update._replace(delta=update.delta[self.mask(state)])

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Put the sum back in place, scaled, on the server; the next round has another mask."""
        mask = self.mask(state)
        require(len(total.delta) == len(mask), f"expected a sum of {len(mask)} numbers, got {len(total.delta)}")
        delta = np.zeros(state.size, np.float32)
        delta[mask] = total.delta * np.float32(state.size / len(mask))
        return state._replace(rounds=state.rounds + 1), total._replace(delta=delta)

    def mask(self, state: State) -> np.ndarray:
        """Draw the round's coordinates, ascending."""
        return coordinates(derive(self.seed, "random mask", state.rounds), state.size, kept(self.fraction, state.size))
