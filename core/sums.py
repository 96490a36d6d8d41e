"""The hidden sum of a round: the two halves that a SecureAggregation brings, so that a runtime can carry its messages.

The runtime moves bytes, and knows neither keys nor masks. Each side is a state machine, made anew for every round; in
simulation and among real devices they are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from .random import Key
from .serial import dumps, memory_of
from .types import Broadcast, ClientUpdate, Failure, Join, Shape, Total

Joins = Mapping[str, tuple[tuple[Join, int], ...]]  # how the numbers of metrics' states join, by name; () for a mean


class Meeting(NamedTuple):
    """A round's hidden sum, as server and clients each know it for themselves."""

    run: str  # the server's name for the rounds that it plays without a restart
    round: int
    cohort: int  # number of clients that were asked
    shape: Shape  # lengths of an update as it leaves the client
    model: (
        bytes  # `digest_of` what the cohort is to have received; zeros where nobody could have received anything else
    )
    # The fewest clients that may form the sum, by this party's own experiment (`sampling.least_cohort`); None: unknown.
    least: int | None = None
    # How the states of the metrics that the model measures in training join; None: none of them travels.
    joins: Joins | None = None


class ServerSum(Protocol):
    """The server's half of a round's sum: stages, each a message to clients and their replies. Bytes in and out."""

    @property
    def reply_bytes(self) -> int:
        """The most bytes that a reply to the stage under way has."""

    @property
    def counted(self) -> Sequence[int]:
        """The clients in the sum, once it is known."""

    @property
    def left_out(self) -> Mapping[int, Failure]:
        """Clients that the server itself has left out for what they sent, and why."""

    def advance(self) -> Mapping[int, bytes]:
        """Close the stage under way and open the next: return what to send, by client; nothing after the last.

        Errors: RunStopped when too few are left; no sum is formed then.
        """

    def receive(self, client: int, reply: bytes) -> Failure | None:
        """Take in a client's reply, once a stage. A Failure says why the rest goes on without that client."""

    def total(self) -> Total:
        """Return the sum, after the last stage. Errors: RunStopped when it may not be revealed.

        It is that of nobody where somebody spoiled it, and it cannot be tried again: the round counts for nothing.
        """

    def stands_for(self, bytes_up: int) -> int:
        """Return the bytes that clients have sent: bytes_up, or what the whole protocol would have taken instead."""


class ClientSum(Protocol):
    """A client's half of a round's sum. Once it has returned a Failure it answers nothing more."""

    def check(self, message: bytes) -> Failure | None:
        """Return why this client has no part in what the first message proposes, or None; asked before it trains."""

    def provide(self, update: ClientUpdate, key: Key) -> Failure | None:
        """Take in the update, before the first answer. key: source of its rounding, which nobody else may know."""

    def answer(self, message: bytes) -> bytes | Failure:
        """Return the reply to the server's next message. Errors: ConfigError for an update that cannot be summed."""

    def abandon(self) -> None:
        """Erase what is secret, and answer nothing more."""


def digest_of(broadcast: Broadcast, experiment: str) -> bytes:
    """Hash all that a client receives, and its experiment's digest (SHA-256): what a cohort has to have in common."""
    rate = None if broadcast.learning_rate is None else float(broadcast.learning_rate)
    shared = dumps(("umbel broadcast", experiment, broadcast.round, rate, broadcast.transforms))
    hasher = hashlib.sha256(len(shared).to_bytes(8, "little") + shared)
    for vector in (broadcast.params, broadcast.extra):
        hasher.update(len(vector).to_bytes(8, "little"))
        hasher.update(memory_of(vector.astype("<f4", copy=False)))
    return hasher.digest()
