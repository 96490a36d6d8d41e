"""SplitFed: federated averaging of a model's first layers, split learning of the others.

Thapa, Chamikara Mahawaga Arachchige, Camtepe, Sun 2022: SplitFed: When Federated Learning Meets Split Learning,
Algorithms 1 and 2. https://arxiv.org/abs/2004.12088
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.parts.algorithms import SplitStrategy
from ..core.random import Key
from ..core.types import Mean, State, Total, Vector
from ..core.validation import require


@dataclass(frozen=True)
class SplitFed(SplitStrategy):
    """A model cut in two: clients hold its layers up to `cut`, W^C; the server holds those after it, W^S.

    In every step a client sends the activations at the cut, with the labels; the server computes the loss, takes a step
    of its own half, and answers with the loss's gradient at the activations, from which the client takes a step of its
    half. So clients compute and hold less, what travels grows with their examples, and the server's half never leaves
    the server. Activations and labels do tell the server about examples: what hides updates is refused.

    version 1: the server trains a copy of W^S with each client, all at once, and averages the copies, as it does the
        W^C: FedAvg on the whole model, but for who computes what.
    version 2: one W^S, trained by the clients of the cohort one after the other, in an order drawn anew each round.
        Only the W^C are averaged. A round takes as long as its clients together.

    Every client's round begins with fresh optimizers, on both sides. Statistics (BatchNorm) go with their half.

    Parameters
    ----------
    cut
        The name of a layer of a Sequential or functional model that everything passes through, such as "dense"; one
        that is not there, or passed by, is an error when the model is built.
    """

    cut: str
    version: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        require(isinstance(self.cut, str) and bool(self.cut), f"expected cut={self.cut!r} to be the name of a layer")
        is_known = self.version in (1, 2) and not isinstance(self.version, bool)
        require(is_known, f"expected version={self.version!r} to be 1 or 2")

    def init(self, params: Vector) -> State:
        """Return no state."""
        return ()

    @property
    def in_turn(self) -> bool:
        """Return whether clients train one after the other."""
        return self.version == 2

    def turns(self, cohort: Sequence[int], key: Key) -> list[int]:
        """Return the cohort in the order in which it trains."""
        return key.generator().permutation(np.asarray(cohort, np.int64)).tolist() if self.in_turn else list(cohort)

    def handed_on(self, params: Vector, moved: Vector, on_client: np.ndarray) -> Vector:
        """Return W^C of the round, and W^S as the clients before have left it."""
        return np.where(on_client, params, params + moved)

    def closed(self, total: Total, moved: Vector, on_client: np.ndarray) -> Total:
        """Return the round's total.

        Version 1's is the clients' own. In version 2 W^S has moved by all of `moved`, not by a mean.
        """
        if not self.in_turn:
            return total
        return total._replace(delta=np.where(on_client, total.delta, moved * np.float32(total.weight)))

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take one step along the mean."""
        return state, params + mean.delta
