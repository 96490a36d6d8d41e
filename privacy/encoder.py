"""Updates as elements of a secure sum's ring, and the ring's sum as a Total."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from ..core.errors import ClientError, ConfigError
from ..core.random import Key
from ..core.types import ClientUpdate, Total
from .layout import Layout
from .secagg.encoding import FixedPoint
from .states import integers_of, summed_states

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """Conversion between updates and ring elements."""

    layout: Layout
    encoding: FixedPoint

    def encode(self, update: ClientUpdate, key: Key) -> np.ndarray:
        """Encode an update as ring elements, to be masked. key: source of the update's rounding.

        Errors: ConfigError for a weight that is no integer or above max_weight; ClientError where not all is finite.
        """
        weight, most = float(update.weight), self.encoding.max_weight
        if not weight.is_integer():
            raise ConfigError(f"expected weight={weight!r} of an update to be an integer: secure sums are of integers")
        if most == 1 and weight not in (0, 1):
            raise ConfigError(
                f"a client weighs {weight:g}, and max_weight=1 has all weigh 1; "
                "set weighting='uniform', or the largest client's number of examples as max_weight"
            )
        if weight > most:
            raise ConfigError(f"a client weighs {weight:g}, above max_weight={most}; raise max_weight")
        # A key of 128 bits for the cipher, and its counter from 0: no two updates have the same key.
        seed = key.derive("rounding").digest + bytes(16)
        factor = 1 if most == 1 else int(weight)  # where all weigh 1, the layout says whether an update counts
        values = self.encoding.encode(self.layout.pack(update), factor, seed).values
        self.encoding.wide_part(values)[:] = integers_of(update, self.layout.states, self.encoding.clients)
        return values

    def encode_or_nothing(self, update: ClientUpdate, key: Key) -> np.ndarray:
        """Same as `encode`, but an update that is not finite counts as nothing: its reply is like any other."""
        try:
            return self.encode(update, key)
        except ClientError as error:
            log.warning("this client adds nothing to the sum: %s", error)  # in its own log: nothing of it is sent
            return self.encode(nothing_like(update), key)

    def decode(self, total: np.ndarray, clients: int) -> Total:
        """Return the Total of the sum of what `clients` clients handed in."""
        vector, weight = self.encoding.decode(total, clients)
        summed = self.layout.unpack(vector, weight, clients)
        states = summed_states(self.encoding.wide_part(total), self.layout.states)
        return summed._replace(metrics={**states, **summed.metrics})


def nothing_like(update: ClientUpdate) -> ClientUpdate:
    """Return an update of the same lengths that adds nothing, of weight 0."""
    return ClientUpdate(np.zeros_like(update.delta), np.zeros_like(update.extra), 0.0, {})
