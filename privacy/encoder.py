"""Updates as elements of a secure sum's ring, and the ring's sum as a Total."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import ClientError, ConfigError
from ..core.random import Key
from ..core.types import ClientUpdate, Failure, Total
from .layout import Layout
from .secagg.encoding import FixedPoint


@dataclass(frozen=True)
class Encoder:
    """Between updates and ring elements."""

    layout: Layout
    encoding: FixedPoint

    def encode(self, update: ClientUpdate, key: Key) -> np.ndarray:
        """What a client hands in to be masked. key: that its rounding is drawn from.

        Errors: ConfigError for a weight that is no integer or above max_weight; ClientError where not all is finite.
        """
        weight, most = float(update.weight), self.encoding.max_weight
        if not weight.is_integer():
            raise ConfigError(f"expected weight={weight!r} of an update to be an integer: secure sums are of integers")
        if most == 1 and weight != 1:
            raise ConfigError(
                f"a client weighs {weight:g}, and max_weight=1 has all weigh 1; "
                "set weighting='uniform', or the largest client's number of examples as max_weight"
            )
        if weight > most:
            raise ConfigError(f"a client weighs {weight:g}, above max_weight={most}; raise max_weight")
        # A key of 128 bits for the cipher, and its counter from 0: no two updates have the same key.
        seed = key.derive("rounding").digest + bytes(16)
        return self.encoding.encode(self.layout.pack(update), int(weight), seed).values

    def decode(self, total: np.ndarray, clients: int) -> Total:
        """The Total of the sum of what `clients` clients handed in."""
        vector, weight = self.encoding.decode(total, clients)
        return self.layout.unpack(vector, weight, clients)


def encoded_or_failure(encoder: Encoder, client: int, update: ClientUpdate, key: Key) -> np.ndarray | Failure:
    """The update in the ring, or why this client's is left out of the round."""
    try:
        return encoder.encode(update, key)
    except ClientError as error:
        return Failure(client, "non_finite", str(error))
