"""Homomorphic encryption among real devices: clients encrypt, the server adds, and a few clients decrypt the sum.

    homomorphic.key   in every client's kit: parameters and the secret key that they share
    homomorphic.pub   in the server's: parameters and the key's id

The key is provisioned with the kits and never travels. The sum is exact, so that honest clients decrypt it to the same
integers: the server takes what two of those it asked agree on, and one that lies is out-voted and named.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ClientError, ConfigError, RunStopped
from ..core.random import Key
from ..core.sums import Meeting
from ..core.types import ClientUpdate, Failure, Total
from ..core.validation import require
from .credentials import write_atomically
from .keys import read_private
from .layout import Layout
from .schemes import Scheme, quantize, whole_weight
from .secagg.session import MINIMUM_CLIENTS

if TYPE_CHECKING:  # it imports this module
    from .homomorphic import ClientContext, Homomorphic, ServerContext

log = logging.getLogger(__name__)

SECRET, PUBLIC = "homomorphic.key", "homomorphic.pub"
MAX_SECRET_BYTES = 1 << 20  # of a context: 62 kB at degree 4096, 16 times that at 16384
DECRYPTERS, AGREEING = 3, 2  # clients asked for the sum at a time, and how many of them have to say the same
INTEGERS = np.dtype("<i8")
REMEDY = "make it with the kits: umbel deploy keys DIR EXPERIMENT"


class HomomorphicSession:
    """A round's sum. In a real one each contribution is bytes of ciphertext; else integers, which have the same sum."""

    def __init__(
        self, settings: Homomorphic, layout: Layout, cohort: Sequence[int], context: ClientContext, is_real: bool
    ):
        self.bytes_up = 0
        self._settings, self._layout, self._context, self._is_real = settings, layout, context, is_real
        self._size = layout.size + (settings.parameters.max_weight > 1)
        self._missing, self._clients = set(cohort), 0
        self._integers = np.zeros(0 if is_real else self._size, np.int64)
        self._encrypted = context.server_context().zero(self._size)

    def contribute(self, client: int, update: ClientUpdate, key: Key) -> Any:
        """The client's half: its update on the grid, encrypted; a Failure for one that is not finite.

        Errors: ConfigError for a weight that is no integer or above max_weight.
        """
        integers = on_grid(self._settings, self._layout, client, update, key)
        return self._context.encrypt(integers) if self._is_real and not isinstance(integers, Failure) else integers

    def add(self, client: int, contribution: Any) -> None:
        """The server's half. Errors: ClientError for bytes that are no ciphertext of this context, or a second one."""
        if client not in self._missing:
            raise ClientError("sent a second contribution, or is not in the cohort", client=client)
        if self._is_real:
            self._encrypted.add(contribution, client)
            self.bytes_up += len(contribution)
        else:
            self._integers += contribution
            self.bytes_up += self._context.encrypted_size(self._size)
        self._missing.remove(client)
        self._clients += 1

    def total(self) -> Total:
        """The sum of what was added. Errors: RunStopped for fewer clients than hide one another."""
        if self._clients < MINIMUM_CLIENTS:
            raise RunStopped(f"{self._clients} clients are in the sum; at least {MINIMUM_CLIENTS} hide one another")
        integers = self._context.decrypt(self._encrypted.to_bytes()) if self._is_real else self._integers
        return off_grid(self._settings, self._layout, integers, self._clients)


class EncryptedServer:
    """A round's sum from the server's side: encrypt, then decrypt, the latter again while no two agree."""

    def __init__(
        self,
        settings: Homomorphic,
        meeting: Meeting,
        cohort: Sequence[int],
        context: ServerContext,
        encrypted_size: Callable[[Scheme, int], int],
    ):
        self.counted: tuple[int, ...] = ()
        self._settings, self._meeting, self._context, self._asked = settings, meeting, context, False
        self._layout = settings.layout(meeting.shape)
        self._size = self._layout.size + (settings.parameters.max_weight > 1)
        self._sum, self._cohort = context.zero(self._size), list(cohort)
        self._candidates: list[int] = []  # who may be asked to decrypt, in the order in which they will be
        self._said: dict[int, bytes] = {}  # client: the sum, as it decrypted it
        self.reply_bytes = 2 * encrypted_size(settings.parameters, self._size)  # compression makes sizes vary

    def advance(self) -> Mapping[int, bytes]:
        """The next stage's messages; nothing once the sum is known. Errors: RunStopped."""
        if not self._asked:
            self._asked = True
            return dict.fromkeys(self._cohort, self._context.to_bytes())
        if not self._said and not self.counted:
            self._close()
        if self._agreed() is not None or not self._candidates:
            return {}
        asked, self._candidates = self._candidates[:DECRYPTERS], self._candidates[DECRYPTERS:]
        self.reply_bytes = INTEGERS.itemsize * self._size
        return dict.fromkeys(asked, self._sum.to_bytes())

    def receive(self, client: int, reply: bytes) -> Failure | None:
        """An encrypted update, or the integers of the sum; a Failure for bytes that are neither."""
        if self.counted:
            return self._take_integers(client, reply)
        try:
            self._sum.add(reply, client)
        except ClientError as error:
            return Failure(client, "ciphertext", str(error))
        self._candidates.append(client)
        return None

    def total(self) -> Total:
        """The sum. Errors: RunStopped when no two clients decrypted it to the same integers."""
        agreed, number = self._agreed(), self._meeting.round
        if agreed is None:
            raise RunStopped(
                f"round {number}: {len(self._said)} clients decrypted the sum, and no {AGREEING} to the same integers"
            )
        for client, said in self._said.items():
            if said != agreed:
                log.warning("round %d: client %d decrypted another sum than the others", number, client)
        return off_grid(self._settings, self._layout, np.frombuffer(agreed, INTEGERS), len(self.counted))

    def _close(self) -> None:
        """No more updates. Errors: RunStopped for fewer than hide one another."""
        if len(self._candidates) < MINIMUM_CLIENTS:
            raise RunStopped(
                f"round {self._meeting.round}: {len(self._candidates)} clients sent encrypted updates; "
                f"at least {MINIMUM_CLIENTS} hide one another"
            )
        self.counted = tuple(sorted(self._candidates))

    def _take_integers(self, client: int, reply: bytes) -> Failure | None:
        scheme = self._settings.parameters
        largest = scheme.levels * scheme.max_weight * len(self.counted)
        if len(reply) != INTEGERS.itemsize * self._size:
            return Failure(client, "shape", f"expected {self._size} integers of the sum, got {len(reply)} bytes")
        found = np.frombuffer(reply, INTEGERS)
        if int(found.max(initial=0)) > largest or int(found.min(initial=0)) < -largest:
            return Failure(client, "ciphertext", f"expected a sum of integers of at most {largest}")
        self._said[client] = bytes(reply)
        return None

    def _agreed(self) -> bytes | None:
        """What enough clients said; None so far."""
        found = Counter(self._said.values()).most_common(1)
        return found[0][0] if found and found[0][1] >= AGREEING else None


class EncryptedClient:
    """A round's sum from a client's side: it encrypts one update, and decrypts one sum."""

    def __init__(self, settings: Homomorphic, meeting: Meeting, client: int, context: ClientContext):
        self._settings, self._meeting, self._number, self._context = settings, meeting, client, context
        self._layout = settings.layout(meeting.shape)
        self._encrypted: bytes | None = None
        self._left = ["encrypt", "decrypt"]

    def __repr__(self) -> str:
        return f"EncryptedClient(client={self._number}, round={self._meeting.round})"

    def check(self, message: bytes) -> Failure | None:
        """Whether the server adds under this client's key."""
        own = self._context.server_context()
        if message != own.to_bytes():
            return Failure(self._number, "other_key", f"the server's context is not {own.id.hex()[:16]}: {REMEDY}")
        return None

    def provide(self, update: ClientUpdate, key: Key) -> Failure | None:
        """Encrypt the update."""
        found = on_grid(self._settings, self._layout, self._number, update, key)
        if isinstance(found, Failure):
            self.abandon()
            return found
        self._encrypted = self._context.encrypt(found)
        return None

    def answer(self, message: bytes) -> bytes | Failure:
        """The update encrypted; then the sum decrypted, once."""
        if not self._left:
            return Failure(self._number, "out_of_order", "this client has decrypted the round's sum, or left the round")
        if self._left.pop(0) == "encrypt":
            assert self._encrypted is not None
            encrypted, self._encrypted = self._encrypted, None
            return encrypted
        try:
            return self._context.decrypt(message).astype(INTEGERS, copy=False).tobytes()
        except ConfigError as error:
            return Failure(self._number, "ciphertext", str(error))

    def abandon(self) -> None:
        """Answer nothing more."""
        self._left, self._encrypted = [], None


def on_grid(settings: Homomorphic, layout: Layout, client: int, update: ClientUpdate, key: Key) -> np.ndarray | Failure:
    """The update as integers; a Failure for one that is not finite. key: that its rounding is drawn from.

    Errors: ConfigError for a weight that is no integer or above max_weight.
    """
    weight = whole_weight(update.weight, settings.max_weight)
    try:
        packed = layout.pack(update)
    except ClientError as error:
        return Failure(client, "non_finite", str(error))
    # A key of 128 bits for the cipher, and its counter from 0: no two updates have the same key.
    seed = key.derive("rounding").digest + bytes(16)
    return quantize(settings.parameters, packed, settings.limit, weight, seed)


def off_grid(settings: Homomorphic, layout: Layout, integers: np.ndarray, clients: int) -> Total:
    """The Total of the sum of what so many clients had on the grid."""
    scheme, weight = settings.parameters, clients
    if scheme.max_weight > 1:
        integers, weight = integers[:-1], int(integers[-1])
    return layout.unpack(integers * (settings.limit / scheme.levels), weight, clients)


def secret_in(kit: Path) -> bytes:
    """The bytes of a client's context. Errors: ConfigError where there is none, or others can read it."""
    require((kit / SECRET).exists(), f"{kit} has no {SECRET}, the secret key that clients share; {REMEDY}")
    return read_private(kit / SECRET, MAX_SECRET_BYTES)


def public_in(kit: Path) -> bytes:
    """The bytes of the server's context. Errors: ConfigError."""
    try:
        return (kit / PUBLIC).read_bytes()
    except OSError as error:
        text = f"{kit / PUBLIC}, which names the clients' key, cannot be read: {error.strerror}; {REMEDY}"
        raise ConfigError(text) from error


def keep_contexts(context: ClientContext, server: Path, clients: Mapping[int, Path]) -> None:
    """Put a fresh context into kits. Errors: ConfigError for a folder that cannot be written."""
    for kit in clients.values():
        write_atomically(kit / SECRET, context.to_bytes())
    write_atomically(server / PUBLIC, context.server_context().to_bytes())
