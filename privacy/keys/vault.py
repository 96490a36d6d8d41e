"""Keys of a store: one that encrypts what it holds, and one that signs its model versions.

The store makes a fresh key for every object. This wraps it under a key derived from the storage key's file, which lives
outside the database (NIST SP 800-57's key-encrypting key), so replacing the file's key rewrites 60 bytes an object.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...core.errors import StoreError
from ...core.validation import require
from . import frames
from .files import ED25519, KeyFile, PublicKey, is_private, load_public
from .frames import KEY_BYTES, NONCE_BYTES, Buffer, SealBroken
from .roster import is_signed

WRAP_LABEL = b"umbel key wrap 1"
WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + frames.TAG_BYTES
SIGN_LABEL = b"umbel model version 1\n"


@dataclass(frozen=True)
class StorageVault:
    """Vault that seals under a storage key, expired or not: `load` refuses an expired one, replacing it must not."""

    key: KeyFile

    @staticmethod
    def load(path: str) -> StorageVault:
        """Open the vault of a key file. Errors: ConfigError as `KeyFile.load` and `KeyFile.check` give it."""
        return StorageVault(KeyFile.load(path).check("storage"))

    @property
    def key_id(self) -> str:
        """Id of the storage key."""
        return self.key.id

    def wrap(self, key: bytes, purpose: bytes) -> bytes:
        """Wrap a key of 32 bytes: a nonce, the key encrypted, its tag; 60 bytes."""
        require(len(key) == KEY_BYTES, f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        nonce = os.urandom(NONCE_BYTES)  # of 96 bits: some 2³² wraps under one key are safe
        return nonce + self._wrapping.encrypt(nonce, key, purpose)

    def unwrap(self, wrapped: bytes, purpose: bytes) -> bytes:
        """Invert `wrap`. Errors: StoreError for another purpose, another vault, or a change."""
        try:
            return self._wrapping.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], purpose)
        except (InvalidTag, ValueError):
            raise StoreError(f"a key that storage key {self.key_id} wrapped does not open: it was changed") from None

    def seal(self, key: bytes, content: Buffer, context: bytes) -> memoryview:
        """Seal content in frames, under a key that seals nothing else."""
        return frames.seal(key, content, context)

    def open(self, key: bytes, sealed: Buffer, context: bytes) -> memoryview:
        """Invert `seal`. Errors: StoreError for another key or context, or a change."""
        try:
            return frames.unseal(key, sealed, context)
        except SealBroken as error:
            raise StoreError(str(error)) from None

    @cached_property
    def _wrapping(self) -> AESGCM:
        derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=WRAP_LABEL).derive(self.key.secret)
        return AESGCM(derived)


@dataclass(frozen=True)
class Sealer:
    """Sealer of one object after another under a storage key: 60 bytes more, and 16 per MiB."""

    vault: StorageVault

    def seal(self, content: Buffer, context: bytes) -> bytes:
        """Seal content under a key of its own, wrapped before it, in frames. context: what both must be opened with."""
        key = frames.fresh_key()
        return self.vault.wrap(key, context) + self.vault.seal(key, content, context)

    def unseal(self, sealed: Buffer, context: bytes) -> memoryview:
        """Invert `seal`. Errors: StoreError for another key or context, or a change."""
        view = frames.flat(sealed)
        return self.vault.open(self.vault.unwrap(bytes(view[:WRAPPED_BYTES]), context), view[WRAPPED_BYTES:], context)


@dataclass(frozen=True)
class ModelSigner:
    """Signer of model versions with an operator's key; it trusts that key and the others given, such as replaced ones.

    Parameters
    ----------
    key
        None where versions are only verified.
    heads
        The file in which a store's last heads are noted, beside the key.
    """

    key: KeyFile | None
    others: tuple[PublicKey, ...] = field(default=())
    heads: Path | None = None

    @staticmethod
    def load(names: str) -> ModelSigner:
        """Load the signer of keys named in a list separated as PATH is.

        The first is an operator's key file, or a public key where versions are only verified; all others are public
        keys, as `umbel keys show` prints them or in a file. Errors: ConfigError.
        """
        first, *rest = names.split(os.pathsep)
        others = tuple(load_public(name) for name in rest)
        heads = Path(f"{first}.heads") if Path(first).is_file() else None
        if is_private(first):
            return ModelSigner(KeyFile.load(first).check("operator"), others, heads)
        return ModelSigner(None, (load_public(first), *others), heads)

    @property
    def key_id(self) -> str:
        """Id of the key that signs, or that is trusted first."""
        return self.key.id if self.key is not None else self.others[0].id

    def sign(self, message: bytes) -> bytes:
        """Make an Ed25519 signature. Errors: StoreError where there is a public key only."""
        if self.key is None:
            raise StoreError("a model version is to be signed, but a public key only verifies; name an operator's key")
        return self.key.signing.sign(SIGN_LABEL + message)

    def verifies(self, key_id: str, signature: bytes, message: bytes) -> bool:
        """Return whether a trusted key of this id made the signature."""
        key = self._trusted.get(key_id)
        return key is not None and is_signed(key.raw, signature, SIGN_LABEL + message)

    @cached_property
    def _trusted(self) -> Mapping[str, PublicKey]:
        own = () if self.key is None else (self.key.public,)
        assert all(key.algorithm == ED25519 for key in (*own, *self.others))
        return {key.id: key for key in (*own, *self.others)}
