"""Memory of a client: what it keeps at home from one round to the next, and how that is written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..core.types import NOTHING, Vector


class ClientMemory(NamedTuple):
    """Values that a client keeps at home between rounds. A runtime stores them as a list of arrays, and reads none."""

    personal: list[np.ndarray]  # values of the variables that stay at home
    remembered: Vector | None = None  # vector of the client's rule; None at first, and for a rule that keeps none
    residual: Vector | None = None  # what the codec left out of the last update; None without error feedback

    @staticmethod
    def read(arrays: Sequence[np.ndarray] | None, initial: list[np.ndarray]) -> ClientMemory:
        """Take apart what `arrays` wrote. arrays: None before a client's first round.

        initial: the personal variables as the model was built.
        """
        if arrays is None:
            return ClientMemory(initial)
        count = len(initial)
        remembered = arrays[count] if len(arrays) > count and len(arrays[count]) else None
        residual = arrays[count + 1] if len(arrays) > count + 1 else None
        return ClientMemory(list(arrays[:count]), remembered, residual)

    @property
    def arrays(self) -> list[np.ndarray]:
        """All of it, as a list: the personal variables, then what the rule remembers, then the residual."""
        if self.residual is not None:
            return [*self.personal, NOTHING if self.remembered is None else self.remembered, self.residual]
        return list(self.personal) if self.remembered is None else [*self.personal, self.remembered]
