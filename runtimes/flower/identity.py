"""Identity: what a process of a federation signs with, and whose signatures it trusts, as protocols of `privacy`.

A process that runs from a kit finds it by the variable UMBEL_KIT, and opens its keys here, in a FlowerRuntime's stead.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ...privacy.keys.kit import KitFile

KIT_VARIABLE = "UMBEL_KIT"  # environment variable that names the folder of this process's kit


class PartyIdentity(Protocol):
    """One party of a federation: the server, or a client."""

    @property
    def number(self) -> int | None:
        """Number of the client; None for the server."""

    @property
    def federation(self) -> bytes:
        """Name of the federation: the same for every party of it, and another in any other."""

    @property
    def members(self) -> Mapping[int, str]:
        """Names of the clients, by number; empty where that is not known."""

    @property
    def seals(self) -> bool:
        """Return whether replies are sealed to a key that only what plays the rounds holds."""

    def sign(self, statement: bytes) -> bytes:
        """Sign a statement as this party. Errors: ConfigError for a key that has expired."""

    def objection(self, signer: int | None, statement: bytes, signature: bytes) -> str | None:
        """Return why the signature is not that of a client, or of the server (None); None where it is."""

    def client_of(self, name: str) -> int | None:
        """Return the number of a client's name in the roster; None for a name that is not in it."""

    def seal(self, body: bytes, run: str, round: int, challenge: str) -> bytes | memoryview:
        """Seal a client's reply, which only the server can open, and only for what it was meant for."""

    def unseal(self, sealed: bytes | memoryview, client: int, run: str, round: int, challenge: str) -> bytes:
        """Invert `seal`, at the server. Errors: UmbelError for what does not open, or is for something else."""


class DiskSealer(Protocol):
    """Encryption of what lies on a client's disk."""

    def seal(self, content: bytes, context: bytes) -> bytes | memoryview:
        """Encrypt the content under the kit's key. context: what it must be opened with."""

    def unseal(self, sealed: bytes, context: bytes) -> bytes | memoryview:
        """Invert `seal`. Errors: UmbelError for another key or context, or a change."""


def identity_of_this_process() -> PartyIdentity | None:
    """Open the identity of the kit that UMBEL_KIT names; None where it names none with a server's key.

    Then it is a federation inside one machine, which signs nothing. Errors: ConfigError for a kit whose keys are
    refused.
    """
    folder = _kit()
    if folder is None or not (folder / KitFile.SERVER_ROSTER).is_file():
        return None
    from ...privacy.keys import identities

    return identities.Identity.load(folder)


def name_of(identity: PartyIdentity) -> str:
    """Return the name that runs of a federation have on record."""
    return hashlib.sha256(identity.federation).hexdigest()[:16]


def sealer_of_this_process() -> DiskSealer | None:
    """Open the sealer of the client's kit that UMBEL_KIT names; None where it names none with a storage key.

    Errors: as for `identity_of_this_process`.
    """
    folder = _kit()
    if folder is None or not (folder / KitFile.STORAGE).is_file():
        return None
    from ...privacy.keys import vault

    return vault.Sealer(vault.StorageVault.load(str(folder / KitFile.STORAGE)))


def _kit() -> Path | None:
    named = os.environ.get(KIT_VARIABLE)
    return Path(named) if named else None
