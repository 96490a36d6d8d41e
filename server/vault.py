"""What a store needs of a key, as protocols: `privacy` implements them, and the server does not import it.

A key is named by a file, or handed over as a value. How a named one is opened is said once, by the package that knows
both layers (`umbel.keyring`), through `use`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from ..core.errors import StoreError

VAULT_VARIABLE = "UMBEL_STORE_KEY"  # a storage key file
SIGNER_VARIABLE = "UMBEL_MODEL_KEY"  # an operator key file, then other keys that are trusted, separated as in PATH
Buffer: TypeAlias = "bytes | memoryview"
Opened = TypeVar("Opened")


class Vault(Protocol):
    """Encrypts what a store holds. Safe for threads; its repr holds no secret."""

    @property
    def key_id(self) -> str:
        """What may be known of the key: at most 64 characters, another for another key."""

    def wrap(self, key: bytes, purpose: bytes) -> bytes:
        """A key of 32 bytes, sealed under the vault's."""

    def unwrap(self, wrapped: bytes, purpose: bytes) -> bytes:
        """The inverse of `wrap`. Errors: StoreError for another purpose, another vault, or a change."""

    def seal(self, key: bytes, content: Buffer, context: bytes) -> Buffer:
        """Content under a key that seals nothing else."""

    def open(self, key: bytes, sealed: Buffer, context: bytes) -> Buffer:
        """The inverse of `seal`. Errors: StoreError for another key or context, or a change."""


class Signer(Protocol):
    """Signs model versions, and knows whose signatures to trust."""

    @property
    def key_id(self) -> str:
        """Of the key that signs."""

    def sign(self, message: bytes) -> bytes:
        """A signature of the message. Errors: StoreError where there is a public key only."""

    def verifies(self, key_id: str, signature: bytes, message: bytes) -> bool:
        """Whether a trusted key of this id made the signature."""


_open_vault: Callable[[str], Vault] | None = None
_open_signer: Callable[[str], Signer] | None = None


def use(open_vault: Callable[[str], Vault], open_signer: Callable[[str], Signer]) -> None:
    """Say how a key that is named is opened."""
    global _open_vault, _open_signer
    _open_vault, _open_signer = open_vault, open_signer


def vault_of(key: str | Path | Vault | None) -> Vault | None:
    """The vault itself, or that of the key file named, here or by UMBEL_STORE_KEY; None where none is."""
    named = os.environ.get(VAULT_VARIABLE) if key is None else key
    if not isinstance(named, (str, Path)):
        return named
    return _opened(_open_vault, str(named)) if str(named) else None


def signer_of(key: str | Path | Signer | None) -> Signer | None:
    """The signer itself, or that of the keys named, here or by UMBEL_MODEL_KEY; None where none are."""
    named = os.environ.get(SIGNER_VARIABLE) if key is None else key
    if not isinstance(named, (str, Path)):
        return named
    return _opened(_open_signer, str(named)) if str(named) else None


def _opened(opener: Callable[[str], Opened] | None, named: str) -> Opened:
    if opener is None:
        raise StoreError("a key is named by a file, but nothing says how to open it; import umbel, not a part of it")
    return opener(named)
