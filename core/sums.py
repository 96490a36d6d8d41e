"""A round's sum among real devices: what an Aggregation brings so that a runtime can carry its messages.

The runtime moves bytes, and knows neither keys nor masks. Each side is a state machine, made anew for every round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from .protocols import Aggregation
from .random import Key
from .types import ClientUpdate, Failure, Shape, Total


class Meeting(NamedTuple):
    """A round's sum among real devices, as server and clients each know it for themselves."""

    run: str  # the server's name for the rounds that it plays without a restart
    round: int
    cohort: int  # how many clients were asked
    shape: Shape  # of an update as it leaves the client
    model: bytes  # SHA-256 of all that the cohort is to have received


class ServerSum(Protocol):
    """The server's half of a round's sum: stages, each a message to clients and their replies. Bytes in and out.

    reply_bytes: what a reply to the stage under way has at most. counted: the clients in the sum, once it is known.
    """

    reply_bytes: int
    counted: Sequence[int]

    def advance(self) -> Mapping[int, bytes]:
        """Close the stage under way and open the next: what to send, by client; nothing after the last.

        Errors: RunStopped when too few are left; no sum is formed then.
        """

    def receive(self, client: int, reply: bytes) -> Failure | None:
        """Take in a client's reply, once a stage. A Failure is why the rest goes on without that client."""

    def total(self) -> Total:
        """The sum, after the last stage. Errors: RunStopped when it may not be revealed."""


class ClientSum(Protocol):
    """A client's half of a round's sum. Once it has returned a Failure it answers nothing more."""

    def check(self, message: bytes) -> Failure | None:
        """Why this client has no part in what the first message proposes; looked at before it trains."""

    def provide(self, update: ClientUpdate, key: Key) -> Failure | None:
        """The update, before the first answer. key: for its rounding, which nobody else may know."""

    def answer(self, message: bytes) -> bytes | Failure:
        """The reply to the server's next message. Errors: ConfigError for an update that cannot be summed."""

    def abandon(self) -> None:
        """Erase what is secret, and answer nothing more."""


class RemoteAggregation(Aggregation, Protocol):
    """An Aggregation whose parties are real devices. kit: the folder with what a party proves itself by."""

    def server(self, meeting: Meeting, cohort: Sequence[int], kit: Path) -> ServerSum:
        """Errors: ConfigError for a kit that lacks something; RunStopped for a cohort that is too small."""

    def client(self, meeting: Meeting, client: int, kit: Path, home: Path) -> ClientSum:
        """home: where this client remembers what it took part in. Errors: ConfigError as for `server`."""

    def provision(self, server: Path, clients: Mapping[int, Path]) -> None:
        """Complete the kits of a federation whose every party is set up from here: keys that they share or list."""
