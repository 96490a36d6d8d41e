"""Homomorphic encryption as two halves: clients encrypt, the server adds, and a few clients decrypt the sum.

    homomorphic.key   in every client's kit: parameters and the secret key that they share
    homomorphic.pub   in the server's: parameters and the key's id

The key is provisioned with the kits and never travels. The sum is exact, so that honest clients decrypt it to the same
integers: the server takes what two of those it asked agree on, and one that lies is out-voted and named.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ..core.errors import ClientError, ConfigError, RunStopped
from ..core.random import Key
from ..core.sums import ClientSum, Meeting, ServerSum
from ..core.types import ClientUpdate, Failure, Total
from ..core.validation import require
from .arithmetic import ArithmeticClient, ArithmeticServer
from .bound import Bound, list_clients, listed_clients
from .contexts import ClientContext, ServerContext, encrypted_size
from .gridded import Gridded
from .keys import read_private
from .keys.credentials import write_atomically
from .keys.errors import SERVER, Misbehaviour, SecAggAbort
from .keys.kit import KitFile
from .schemes import Scheme
from .secagg.client import RoundLog
from .secagg.session import MINIMUM_CLIENTS

log = logging.getLogger(__name__)

MAX_SECRET_BYTES = 1 << 20  # most bytes of a context: 62 kB at degree 4096, 16 times that at 16384
DECRYPTERS, AGREEING = 3, 2  # clients asked for the sum at a time, and how many of them have to say the same
INTEGERS = np.dtype("<i8")
REMEDY = "make it with the kits: umbel deploy keys DIR EXPERIMENT"


class Settings(Protocol):
    """Settings of a `Homomorphic` that both halves need."""

    @property
    def parameters(self) -> Scheme:
        """Scheme with its parameters."""

    def gridded(self, meeting: Meeting) -> Gridded:
        """Return how updates become integers."""


class EncryptedServer:
    """A round's sum from the server's side: encrypt, then decrypt, the latter again while no two agree."""

    def __init__(
        self,
        settings: Settings,
        meeting: Meeting,
        cohort: Sequence[int],
        context: ServerContext,
    ):
        self.counted: tuple[int, ...] = ()
        self.left_out: dict[int, Failure] = {}
        self._settings, self._meeting, self._context, self._asked = settings, meeting, context, False
        self._gridded = settings.gridded(meeting)
        self._sum, self._cohort = context.zero(self._gridded.encrypted_size), list(cohort)
        self._candidates: list[int] = []  # clients that may be asked to decrypt, in that order
        self._said: dict[int, bytes] = {}  # client: the sum, as it decrypted it
        self._awaited: set[int] = set()  # clients that have not answered the stage under way
        encrypted = encrypted_size(settings.parameters, self._gridded.encrypted_size)
        self.reply_bytes = 2 * encrypted  # compression makes sizes vary

    def advance(self) -> Mapping[int, bytes]:
        """Return the next stage's messages; nothing once the sum is known. Errors: RunStopped."""
        if not self._asked:
            self._asked = True
            self._awaited = set(self._cohort)
            return dict.fromkeys(self._cohort, self._context.to_bytes())
        if not self._said and not self.counted:
            self._close()
        if self._agreed() is not None or not self._candidates:
            return {}
        asked, self._candidates = self._candidates[:DECRYPTERS], self._candidates[DECRYPTERS:]
        self.reply_bytes = INTEGERS.itemsize * self._gridded.size
        self._awaited = set(asked)
        return dict.fromkeys(asked, list_clients(self.counted, self._sum.to_bytes()))

    def receive(self, client: int, reply: bytes) -> Failure | None:
        """Take in an encrypted update, or the integers of the sum.

        A Failure for bytes that are neither, or that nobody awaits.
        """
        if client not in self._awaited:
            return Failure(client, "unexpected", "it sent a second reply, or was not asked")
        self._awaited.discard(client)
        if self.counted:
            return self._take_integers(client, reply)
        try:
            self._sum.add(reply, client)
        except ClientError as error:
            return Failure(client, "ciphertext", str(error))
        self._candidates.append(client)
        return None

    def total(self) -> Total:
        """Return the sum. Errors: RunStopped when no two clients decrypted it to the same integers."""
        agreed, number = self._agreed(), self._meeting.round
        if agreed is None:
            raise RunStopped(
                f"round {number}: {len(self._said)} clients decrypted the sum, and no {AGREEING} to the same integers"
            )
        for client, said in self._said.items():
            if said != agreed:
                log.warning("round %d: client %d decrypted another sum than the others", number, client)
        return self._gridded.decode(np.frombuffer(agreed, INTEGERS), len(self.counted))

    def stands_for(self, bytes_up: int) -> int:
        """Return bytes_up: what was sent is the protocol's own."""
        return bytes_up

    def _close(self) -> None:
        """Take no more updates. Errors: RunStopped for fewer than hide one another."""
        least = fewest(self._meeting)
        if len(self._candidates) < least:
            raise RunStopped(
                f"round {self._meeting.round}: {len(self._candidates)} clients sent encrypted updates; "
                f"at least {least} hide one another"
            )
        self.counted = tuple(sorted(self._candidates))

    def _take_integers(self, client: int, reply: bytes) -> Failure | None:
        scheme = self._settings.parameters
        largest = scheme.levels * scheme.max_weight * len(self.counted)
        size = self._gridded.size
        if len(reply) != INTEGERS.itemsize * size:
            return Failure(client, "shape", f"expected {size} integers of the sum, got {len(reply)} bytes")
        found = np.frombuffer(reply, INTEGERS, self._gridded.narrow)
        if int(found.max(initial=0)) > largest or int(found.min(initial=0)) < -largest:
            return Failure(client, "ciphertext", f"expected a sum of integers of at most {largest}")
        self._said[client] = bytes(reply)
        return None

    def _agreed(self) -> bytes | None:
        """Return what enough clients said; None so far."""
        found = Counter(self._said.values()).most_common(1)
        return found[0][0] if found and found[0][1] >= AGREEING else None


class EncryptedClient:
    """A round's sum from a client's side: it encrypts one update, and decrypts one sum, whatever is started again."""

    def __init__(self, settings: Settings, meeting: Meeting, client: int, context: ClientContext, log: RoundLog):
        """Prepare a client's side. log: record of the rounds that it took part in."""
        self._meeting, self._number, self._context, self._log = meeting, client, context, log
        self._gridded = settings.gridded(meeting)
        self._bound = Bound(context.scheme, context.shared_secret, meeting.run, meeting.round)
        self._encrypted: bytes | None = None
        self._left = ["encrypt", "decrypt"]

    def __repr__(self) -> str:
        return f"EncryptedClient(client={self._number}, round={self._meeting.round})"

    def check(self, message: bytes) -> Failure | None:
        """Return a Failure unless the server adds under this client's key."""
        own = self._context.server_context()
        if message != own.to_bytes():
            return Failure(self._number, "other_key", f"the server's context is not {own.id.hex()[:16]}: {REMEDY}")
        try:
            self._check_log()
        except SecAggAbort as error:
            return Failure(self._number, error.reason, str(error))
        return None

    def provide(self, update: ClientUpdate, key: Key) -> Failure | None:
        """Encrypt the update."""
        integers = self._gridded.spread(self._gridded.encode(update, key))
        self._encrypted = self._context.encrypt(integers, self._bound.mask(self._number))
        return None

    def answer(self, message: bytes) -> bytes | Failure:
        """Return the update encrypted; then the sum decrypted, once."""
        if not self._left:
            return Failure(self._number, "out_of_order", "this client has decrypted the round's sum, or left the round")
        if self._left.pop(0) == "encrypt":
            assert self._encrypted is not None
            encrypted, self._encrypted = self._encrypted, None
            try:
                self._check_log()
                self._log.admit(self._meeting.run, self._meeting.round, 0)
            except SecAggAbort as error:
                self.abandon()
                return Failure(self._number, error.reason, str(error))
            return encrypted
        self._log.release(self._meeting.run, self._meeting.round)
        try:
            clients, encrypted = listed_clients(message)
            least = self._meeting.least or 0
            require(
                len(clients) >= least, f"a sum of {len(clients)}, and this client's experiment has at least {least}"
            )
            decrypted = self._context.decrypt(encrypted, self._bound.unmask(clients))
            return self._gridded.joined(decrypted).astype(INTEGERS, copy=False).tobytes()
        except ConfigError as error:
            return Failure(self._number, "ciphertext", str(error))

    def abandon(self) -> None:
        """Answer nothing more."""
        self._left, self._encrypted = [], None

    def _check_log(self) -> None:
        """Raise Misbehaviour for a round taken part in before; where masks bind nothing, for a key of another run."""
        run = self._meeting.run
        self._log.check(run, self._meeting.round, 0)
        if not self._bound.is_kept and self._log.answered.keys() - {run}:
            raise Misbehaviour(
                "spent_key",
                f"{self._context.scheme!r} has one key for each run, or what was encrypted in one is decrypted in "
                "another, and this key was used: umbel deploy keys DIR EXPERIMENT makes a new one",
                SERVER,
            )


def fewest(meeting: Meeting) -> int:
    """Return the fewest clients of which a sum is decrypted: 3, and no fewer than the experiment's sampler implies."""
    return max(MINIMUM_CLIENTS, meeting.least or 0)


def rehearsed(
    settings: Settings,
    meeting: Meeting,
    cohort: Sequence[int],
    context: ClientContext,
    is_real: bool,
) -> tuple[ServerSum, Callable[[int], ClientSum]]:
    """Make both halves in one process. is_real: with ciphertexts; else with the integers that are in them."""
    if is_real:
        server = EncryptedServer(settings, meeting, cohort, context.server_context())
        return server, lambda client: EncryptedClient(settings, meeting, client, context, RoundLog())
    gridded = settings.gridded(meeting)
    each = encrypted_size(settings.parameters, gridded.encrypted_size)
    arithmetic = ArithmeticServer(
        cohort,
        np.zeros(gridded.size, np.int64),
        fewest(meeting),
        gridded.decode,
        lambda counted: counted * each,
        meeting.round,
    )
    return arithmetic, partial(ArithmeticClient, gridded.encode)


def secret_in(kit: Path) -> bytes:
    """Read the bytes of a client's context. Errors: ConfigError where there is none, or others can read it."""
    require(
        (kit / KitFile.ENCRYPTED_SECRET).exists(),
        f"{kit} has no {KitFile.ENCRYPTED_SECRET}, the secret key that clients share; {REMEDY}",
    )
    return read_private(kit / KitFile.ENCRYPTED_SECRET, MAX_SECRET_BYTES)


def public_in(kit: Path) -> bytes:
    """Read the bytes of the server's context. Errors: ConfigError."""
    path = kit / KitFile.ENCRYPTED_PUBLIC
    try:
        return path.read_bytes()
    except OSError as error:
        text = f"{path}, which names the clients' key, cannot be read: {error.strerror}; {REMEDY}"
        raise ConfigError(text) from error


def keep_contexts(context: ClientContext, server: Path, clients: Mapping[int, Path]) -> None:
    """Put a fresh context into kits. Errors: ConfigError for a folder that cannot be written."""
    for kit in clients.values():
        write_atomically(kit / KitFile.ENCRYPTED_SECRET, context.to_bytes())
    write_atomically(server / KitFile.ENCRYPTED_PUBLIC, context.server_context().to_bytes())
