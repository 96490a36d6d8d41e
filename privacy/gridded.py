"""Updates as the integers that ciphertexts add up, and their sum as a Total.

The numbers of metrics' states have 64 bits, more than a slot holds. Each is encrypted as digits, which add up one by
one; who decrypts a sum puts them together again before it says anything, so that the server learns the sum alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from ..core.errors import ClientError
from ..core.random import Key
from ..core.types import ClientUpdate, Total
from ..core.validation import require
from .encoder import nothing_like
from .layout import Layout
from .schemes import Scheme, quantize, whole_weight
from .states import integers_of, length, summed_states

log = logging.getLogger(__name__)

WORD_BITS = 64
CHECKS = 8  # zeros that are encrypted last: a sum of anything else than was named decrypts to other numbers there


@dataclass(frozen=True)
class Gridded:
    """Conversion between updates and integers: the vector's, the weight where it can be other than 1, the states'.

    Parameters
    ----------
    clients
        The most that are summed.
    """

    scheme: Scheme
    layout: Layout
    clients: int

    @property
    def narrow(self) -> int:
        """Number of integers before those of the metrics' states; each is at most levels · max_weight."""
        return self.layout.size + (self.scheme.max_weight > 1)

    @property
    def size(self) -> int:
        """Number of integers of an update, or of a sum."""
        return self.narrow + length(self.layout.states)

    @property
    def encrypted_size(self) -> int:
        """Number of integers that are encrypted: the states' as digits, and the zeros at the end."""
        return self.narrow + length(self.layout.states) * len(self._shifts) + CHECKS

    def encode(self, update: ClientUpdate, key: Key) -> np.ndarray:
        """Encode an update as integers: int64, shape (size,); one that is not finite adds nothing.

        key: source of the update's rounding. Errors: ConfigError for a weight that is no integer or above max_weight,
        and for a metric that the model does not report.
        """
        weight = whole_weight(update.weight, self.scheme.max_weight)
        try:
            packed, states = self.layout.pack(update), integers_of(update, self.layout.states, self.clients)
        except ClientError as error:
            log.warning("this client adds nothing to the sum: %s", error)  # in its own log: nothing of it is sent
            nothing = nothing_like(update)
            packed, states, weight = self.layout.pack(nothing), np.zeros(length(self.layout.states), np.int64), 0
        # A key of 128 bits for the cipher, and its counter from 0: no two updates have the same key.
        seed = key.derive("rounding").digest + bytes(16)
        # Where all weigh 1, the layout says whether an update counts.
        factor = weight if self.scheme.max_weight > 1 else 1
        return np.concatenate([quantize(self.scheme, packed, self.layout.limit, factor, seed), states])

    def decode(self, integers: np.ndarray, clients: int) -> Total:
        """Return the Total of the sum of so many clients' integers."""
        vector, weight = integers[: self.layout.size], clients
        if self.scheme.max_weight > 1:
            weight = int(integers[self.layout.size])
        total = self.layout.unpack(vector * (self.layout.limit / self.scheme.levels), weight, clients)
        states = summed_states(integers[self.narrow :], self.layout.states)
        return total._replace(metrics={**states, **total.metrics})

    def spread(self, integers: np.ndarray) -> np.ndarray:
        """Return an update's integers as they are encrypted: int64, shape (encrypted_size,)."""
        words = integers[self.narrow :].view(np.uint64)[:, np.newaxis]
        digits = (words >> self._shifts) & np.uint64((1 << self._digit_bits) - 1)
        return np.concatenate([integers[: self.narrow], digits.astype(np.int64).ravel(), np.zeros(CHECKS, np.int64)])

    def joined(self, spread: np.ndarray) -> np.ndarray:
        """Return the integers of a sum from those that were decrypted: int64, shape (size,).

        Errors: ConfigError for a sum of another length, or of others than it was said to be of.
        """
        expected = self.encrypted_size
        require(len(spread) == expected, f"expected a sum of {expected} integers, got {len(spread)}")
        require(
            not spread[-CHECKS:].any(),
            "expected a sum of this run and round, and of the clients that the server names; it is of something else",
        )
        digits = spread[self.narrow : -CHECKS].reshape(-1, len(self._shifts)).astype(np.uint64)
        words = (digits << self._shifts).sum(axis=1, dtype=np.uint64)  # modulo 2⁶⁴, where a sum of states stays
        return np.concatenate([spread[: self.narrow], words.view(np.int64)])

    @property
    def _digit_bits(self) -> int:
        """Bits of the largest digits that are all at most levels · max_weight, as whatever is encrypted has to be."""
        return (self.scheme.levels * self.scheme.max_weight + 1).bit_length() - 1

    @property
    def _shifts(self) -> np.ndarray:
        return np.arange(0, WORD_BITS, self._digit_bits, dtype=np.uint64)
