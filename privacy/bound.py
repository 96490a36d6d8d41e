"""Masks that bind a ciphertext to its run, its round and its client, whatever else the clients' key is used for.

Each client adds to its slots, modulo BFV's t, numbers that follow from the clients' secret and these three. Whoever
decrypts takes out those of the clients whose updates the server says are in the sum. In a sum of anything else, of
another run or round or of fewer clients than were named, masks stay behind, and whoever does not know the secret learns
nothing from it. CKKS has no numbers modulo t, and its ciphertexts are not bound: a key of its serves one run.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.serial import dumps
from ..core.validation import require
from .schemes import BFV, Scheme
from .secagg.masking import keystream
from .secagg.session import MINIMUM_CLIENTS

Slots = Sequence[Any]  # integers of BFV, real numbers of CKKS
Change = Callable[[int, Slots], Slots]  # (number of the ciphertext, its slots) → its slots, changed


@dataclass(frozen=True)
class Bound:
    """Masks of a round of a run. secret: 32 bytes that clients share, and nobody else has."""

    scheme: Scheme
    secret: bytes
    run: str
    round: int

    def __repr__(self) -> str:
        return f"Bound(round={self.round})"

    @property
    def is_kept(self) -> bool:
        """Return whether masks bind ciphertexts at all: the scheme has numbers modulo t."""
        return isinstance(self.scheme, BFV)

    def mask(self, client: int) -> Change:
        """Return the function that adds a client's masks."""
        return lambda number, slots: self._added(slots, number, [client], 1)

    def unmask(self, clients: Sequence[int]) -> Change:
        """Return the function that takes the masks of these clients out of their sum."""
        return lambda number, slots: self._added(slots, number, clients, -1)

    def _added(self, slots: Slots, number: int, clients: Sequence[int], sign: int) -> Slots:
        if not isinstance(self.scheme, BFV):
            return slots
        modulus = self.scheme.plain_modulus
        changed = np.array(slots, np.int64)
        for client in clients:
            changed += sign * self._masks(client, number, len(changed))
            changed %= modulus
        return np.where(changed > modulus // 2, changed - modulus, changed).tolist()

    def _masks(self, client: int, number: int, count: int) -> np.ndarray:
        """Return the masks of one ciphertext: int64, each below t; 64 random bits hide which are likelier."""
        assert isinstance(self.scheme, BFV)
        named = dumps(("umbel bound 1", self.run, self.round, client, number))
        seed = hashlib.sha256(self.secret + named).digest()
        words = np.frombuffer(keystream(seed, 8 * count), "<u8")
        return (words % np.uint64(self.scheme.plain_modulus)).astype(np.int64)


def list_clients(clients: Sequence[int], encrypted: bytes) -> bytes:
    """Write a sum with the clients whose updates are in it."""
    return struct.pack(f"<I{len(clients)}Q", len(clients), *clients) + encrypted


def listed_clients(message: bytes) -> tuple[tuple[int, ...], bytes]:
    """Read what `list_clients` wrote.

    Errors: ConfigError for anything else, for fewer clients than hide one another, and for one that is named twice.
    """
    try:
        (count,) = struct.unpack_from("<I", message)
        clients = struct.unpack_from(f"<{min(count, len(message))}Q", message, 4)
    except struct.error as error:
        raise ConfigError(f"expected the clients of a sum, and the sum: {error}") from error
    require(
        len(set(clients)) == count >= MINIMUM_CLIENTS,
        f"expected a sum of at least {MINIMUM_CLIENTS} clients, each named once, got {count} and {clients[:5]}",
    )
    return clients, message[4 + 8 * count :]
