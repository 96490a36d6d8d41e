"""A hidden sum's arithmetic alone: its integers, added up in the open, for simulations that have nobody to hide from.

The whole protocol gives the same sum: masks cancel, and ciphertexts add up exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..core.errors import RunStopped
from ..core.random import Key
from ..core.types import ClientUpdate, Failure, Total
from .secagg.masking import add_to

Encode = Callable[[ClientUpdate, Key], np.ndarray]  # (update, key) → the update's integers


class ArithmeticServer:
    """The server's half of a sum in the open: one stage. See `core.sums.ServerSum`."""

    def __init__(
        self,
        cohort: Sequence[int],
        zero: np.ndarray,
        least: int,
        decode: Callable[[np.ndarray, int], Total],
        price: Callable[[int], int],
        round: int,
        wide: int = 0,
    ):
        """Begin a sum over cohort at zero, the empty sum. decode: (sum, clients) → Total.

        wide: integers of 64 bits at its end; see `secagg.masking.rings_of`.

        least: clients that the protocol needs. price: (clients) → bytes that so many would have sent in the protocol.
        """
        self.counted: list[int] = []
        self.left_out: dict[int, Failure] = {}
        self.reply_bytes = zero.nbytes
        self._sum, self._missing, self._least, self._round = zero, set(cohort), least, round
        self._decode, self._price, self._wide = decode, price, wide
        self._messages = dict.fromkeys(cohort, b"")

    def advance(self) -> Mapping[int, bytes]:
        """Send an empty message to everybody, once."""
        messages, self._messages = self._messages, {}
        return messages

    def receive(self, client: int, reply: bytes) -> Failure | None:
        """Add a client's integers. A Failure for one that is not in the cohort, or was heard before."""
        if client not in self._missing:
            return Failure(client, "unexpected", "it sent a second reply, or is not in the cohort")
        self._missing.discard(client)
        add_to(self._sum, np.frombuffer(reply, self._sum.dtype), self._wide)
        self.counted.append(client)
        return None

    def total(self) -> Total:
        """Return the sum. Errors: RunStopped where the protocol would reveal none."""
        if len(self.counted) < self._least:
            raise RunStopped(
                f"round {self._round}: {len(self.counted)} clients are in the sum; at least {self._least} are needed "
                "to hide one another"
            )
        return self._decode(self._sum, len(self.counted))

    def stands_for(self, bytes_up: int) -> int:
        """Return the bytes that the clients would have sent in the protocol."""
        return self._price(len(self.counted))


class ArithmeticClient:
    """A client's half of a sum in the open: its integers, as they are. See `core.sums.ClientSum`."""

    def __init__(self, encode: Encode, client: int):
        self._encode, self._number = encode, client
        self._values: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"ArithmeticClient(client={self._number})"

    def check(self, message: bytes) -> Failure | None:
        """Return None: the server proposes nothing."""
        return None

    def provide(self, update: ClientUpdate, key: Key) -> Failure | None:
        """Take the update in; one that is not finite weighs 0."""
        self._values = self._encode(update, key)
        return None

    def answer(self, message: bytes) -> bytes | Failure:
        """Return the integers, once."""
        if self._values is None:
            return Failure(self._number, "out_of_order", "this client has answered, or left the round")
        values, self._values = self._values, None
        return values.tobytes()

    def abandon(self) -> None:
        """Answer nothing more."""
        self._values = None
