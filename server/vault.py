"""Vault and signer: what a store needs of a key, as protocols, which `privacy.keys` implements.

A key is handed over as a value, or named by a file. A named one is opened here, and nowhere else in the server: this
file is the one door to the room of the keys.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, TypeAlias

VAULT_VARIABLE = "UMBEL_STORE_KEY"  # names a storage key file
SIGNER_VARIABLE = "UMBEL_MODEL_KEY"  # names an operator key file, then other trusted keys, separated as in PATH
Buffer: TypeAlias = "bytes | memoryview"


class Vault(Protocol):
    """Encrypts what a store holds. Safe for threads; its repr holds no secret."""

    @property
    def key_id(self) -> str:
        """A name of the key that reveals nothing of it: at most 64 characters, another for another key."""

    def wrap(self, key: bytes, purpose: bytes) -> bytes:
        """Seal a key of 32 bytes under the vault's."""

    def unwrap(self, wrapped: bytes, purpose: bytes) -> bytes:
        """Undo `wrap`. Errors: StoreError for another purpose, another vault, or a change."""

    def seal(self, key: bytes, content: Buffer, context: bytes) -> Buffer:
        """Seal content under a key that seals nothing else."""

    def open(self, key: bytes, sealed: Buffer, context: bytes) -> Buffer:
        """Undo `seal`. Errors: StoreError for another key or context, or a change."""


class Signer(Protocol):
    """Signs model versions, and knows whose signatures to trust."""

    @property
    def key_id(self) -> str:
        """Id of the key that signs."""

    @property
    def heads(self) -> Path | None:
        """The file in which a store's last heads are noted, or None where there is none."""

    def sign(self, message: bytes) -> bytes:
        """Sign the message. Errors: StoreError where there is a public key only."""

    def verifies(self, key_id: str, signature: bytes, message: bytes) -> bool:
        """Return whether a trusted key of this id made the signature."""


def vault_of(key: str | Path | Vault | None) -> Vault | None:
    """Return the vault itself, or that of the key file named, here or by UMBEL_STORE_KEY; None where none is.

    Errors: ConfigError for a file or a key that is refused.
    """
    named = os.environ.get(VAULT_VARIABLE) if key is None else key
    if not isinstance(named, (str, Path)):
        return named
    if not str(named):
        return None
    from ..privacy.keys.vault import StorageVault

    return StorageVault.load(str(named))


def signer_of(key: str | Path | Signer | None) -> Signer | None:
    """Return the signer itself, or that of the keys named, here or by UMBEL_MODEL_KEY; None where none are.

    Errors: ConfigError for a file or a key that is refused.
    """
    named = os.environ.get(SIGNER_VARIABLE) if key is None else key
    if not isinstance(named, (str, Path)):
        return named
    if not str(named):
        return None
    from ..privacy.keys.vault import ModelSigner

    return ModelSigner.load(str(named))
