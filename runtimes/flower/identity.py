"""What a process of a federation signs with, and whose signatures it trusts, as protocols: `privacy` implements them.

A process that runs from a kit finds it by the variable UMBEL_KIT. How a kit's keys are opened is said once, by the
package that knows both layers (`umbel.keyring`), through `use`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ...core.errors import ConfigError

KIT_VARIABLE = "UMBEL_KIT"  # the folder of this process's kit
SERVER_FILE, STORAGE_FILE = "server.bin", "storage.jwk"  # in it: the server's public key; what a client's disk is under


class Identity(Protocol):
    """One party of a federation: the server, or a client."""

    @property
    def number(self) -> int | None:
        """Of the client; None for the server."""

    @property
    def federation(self) -> bytes:
        """The same for every party of one federation, and another in any other."""

    @property
    def seals(self) -> bool:
        """Whether replies are sealed to a key that only what plays the rounds holds."""

    def sign(self, statement: bytes) -> bytes:
        """The signature of this party on a statement. Errors: ConfigError for a key that has expired."""

    def objection(self, signer: int | None, statement: bytes, signature: bytes) -> str | None:
        """Why the signature is not that of a client, or of the server (None); None where it is."""

    def client_of(self, name: str) -> int | None:
        """The number of a client's name in the roster; None for a name that is not in it."""

    def seal(self, body: bytes, run: str, round: int, challenge: str) -> bytes | memoryview:
        """A client's reply, which only the server can open, and only for what it was meant for."""

    def unseal(self, sealed: bytes | memoryview, client: int, run: str, round: int, challenge: str) -> bytes:
        """The inverse of `seal`, at the server. Errors: UmbelError for what does not open, or is for something else."""


class Sealer(Protocol):
    """Encrypts what lies on a client's disk."""

    def seal(self, content: bytes, context: bytes) -> bytes | memoryview:
        """The content under the kit's key. context: what it must be opened with."""

    def unseal(self, sealed: bytes, context: bytes) -> bytes | memoryview:
        """The inverse of `seal`. Errors: UmbelError for another key or context, or a change."""


_open_identity: Callable[[Path], Identity] | None = None
_open_sealer: Callable[[Path], Sealer] | None = None


def use(open_identity: Callable[[Path], Identity], open_sealer: Callable[[Path], Sealer]) -> None:
    """Say how what a kit holds is opened."""
    global _open_identity, _open_sealer
    _open_identity, _open_sealer = open_identity, open_sealer


def identity_of_this_process() -> Identity | None:
    """That of the kit that UMBEL_KIT names; None where it names none with a server's key: a federation inside one
    machine signs nothing.

    Errors: ConfigError for a kit whose keys are refused.
    """
    folder = _kit()
    if folder is None or not (folder / SERVER_FILE).is_file():
        return None
    if _open_identity is None:
        raise ConfigError(
            f"{KIT_VARIABLE} names a kit, but nothing says how to open it; import umbel, not a part of it"
        )
    return _open_identity(folder)


def sealer_of_this_process() -> Sealer | None:
    """That of the client's kit that UMBEL_KIT names; None where it names none with a storage key. Errors: as above."""
    folder = _kit()
    is_there = folder is not None and (folder / STORAGE_FILE).is_file()
    return _open_sealer(folder) if is_there and folder is not None and _open_sealer is not None else None


def _kit() -> Path | None:
    named = os.environ.get(KIT_VARIABLE)
    return Path(named) if named else None
