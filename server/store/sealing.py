"""Codings of blobs: how these are named and kept, in the clear or encrypted under keys that a vault wraps.

In the clear a blob's name is its SHA-256. That would tell whoever sees an encrypted store which contents are equal to
one they guess, so there it is an HMAC under a key of the store's own, which the vault wraps as it wraps every blob's.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection, bindparam, exists, select, update

from ...core.errors import StoreError
from ..vault import VAULT_VARIABLE, Buffer, Vault
from . import audit
from .database import Database
from .schema import blob_keys, blobs, now, runs, store_key

KEY_BYTES = 32
NAMING = b"umbel store naming key"  # purpose that the naming key is wrapped for; a blob's key is wrapped for its name
CONTEXT = b"umbel blob "
BATCH = 5000  # keys that are replaced at a time


class Coding(Protocol):
    """Translation between what a store is given and what it holds."""

    @property
    def key_id(self) -> str | None:
        """Id of the vault's key; None for a store in the clear."""

    def name(self, content: Buffer) -> str:
        """Return the name of a content, 64 hex digits: equal for equal content."""

    def encode(self, name: str, content: Buffer) -> tuple[Buffer, bytes | None]:
        """Return what to hold, and its wrapped key."""

    def decode(self, name: str, held: Buffer, wrapped: bytes | None) -> Buffer:
        """Return the content. Errors: StoreError when it is not what was written under the name."""


@dataclass(frozen=True)
class Clear:
    """Coding of a store in the clear: content is kept as it is."""

    key_id: None = None

    def name(self, content: Buffer) -> str:
        """Return the content's SHA-256."""
        return hashlib.sha256(content).hexdigest()

    def encode(self, name: str, content: Buffer) -> tuple[Buffer, None]:
        """Return the content itself."""
        return content, None

    def decode(self, name: str, held: Buffer, wrapped: bytes | None) -> Buffer:
        """Return the content itself, verified."""
        if self.name(held) != name:
            raise StoreError("it is not what was written")
        return held


@dataclass(frozen=True)
class Encrypted:
    """Coding of an encrypted store: each blob under a fresh key, and its name authenticated with it."""

    vault: Vault
    naming_key: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Id of the vault's key."""
        return self.vault.key_id

    def name(self, content: Buffer) -> str:
        """Return the content's HMAC-SHA256 under the store's naming key."""
        return hmac.digest(self.naming_key, content, "sha256").hex()

    def encode(self, name: str, content: Buffer) -> tuple[Buffer, bytes]:
        """Seal the content, and wrap the key for it."""
        key = os.urandom(KEY_BYTES)
        return self.vault.seal(key, content, CONTEXT + name.encode()), self.vault.wrap(key, name.encode())

    def decode(self, name: str, held: Buffer, wrapped: bytes | None) -> Buffer:
        """Open the content, which the cipher verifies."""
        if wrapped is None:
            raise StoreError("its key is missing")
        return self.vault.open(self.vault.unwrap(wrapped, name.encode()), held, CONTEXT + name.encode())


def unlock(database: Database, vault: Vault | None, create: bool) -> Coding:
    """Return the coding of a store; an empty one becomes encrypted where there is a vault, if create.

    Errors: StoreError for an encrypted store without its key, or with another, and for a key without use.
    """
    with database.read() as connection:
        row = connection.execute(select(store_key)).one_or_none()
    if row is None and vault is None:
        return Clear()
    if vault is None:
        assert row is not None
        raise StoreError(
            f"store {database.address} is encrypted under key {row.key}; name the file of that key: "
            f"{VAULT_VARIABLE}=FILE, or Store.open(url, key=FILE)"
        )
    if row is None:
        return _begin(database, vault, create)
    if row.key != vault.key_id:
        raise StoreError(
            f"store {database.address} is encrypted under key {row.key}, not {vault.key_id}, which was given; name the "
            "file of that key"
        )
    return Encrypted(vault, vault.unwrap(bytes(row.naming), NAMING))


def _begin(database: Database, vault: Vault, create: bool) -> Coding:
    """Make an empty store an encrypted one. Errors: StoreError for one that is not empty."""
    naming_key = os.urandom(KEY_BYTES)
    with database.write() as connection:
        row = connection.execute(select(store_key)).one_or_none()
        is_empty = not connection.scalar(select(exists(select(runs)) | exists(select(blobs))))
        if row is None and not (is_empty and create):
            raise StoreError(
                f"store {database.address} is not encrypted, and the key {vault.key_id} was given: leave the key out, "
                f"{VAULT_VARIABLE} too, or name a new store"
            )
        if row is None:
            values = {"id": 1, "key": vault.key_id, "naming": vault.wrap(naming_key, NAMING), "changed": now()}
            connection.execute(store_key.insert(), values)
    # Read back: another process may have been faster, with another key.
    return unlock(database, vault, create)


def check_current(connection: Connection, coding: Coding) -> None:
    """Refuse to write under a key that the store no longer has. Errors: StoreError."""
    current = connection.scalar(select(store_key.c.key))
    if current != coding.key_id:
        raise StoreError(
            f"the store's key was changed to {current} since it was opened; open it again with the file of that key"
        )


def rotate(database: Database, old: Vault, new: Vault) -> int:
    """Wrap every key of a store anew, in one transaction; return how many.

    Errors: StoreError, and nothing was changed.
    """
    with database.write() as connection:
        row = connection.execute(select(store_key)).one_or_none()
        if row is None:
            raise StoreError(f"store {database.address} is not encrypted; it has no key to be replaced")
        if row.key == new.key_id:
            return 0
        if row.key != old.key_id:
            raise StoreError(f"store {database.address} is encrypted under key {row.key}, not {old.key_id}")
        naming = new.wrap(old.unwrap(bytes(row.naming), NAMING), NAMING)
        connection.execute(update(store_key).values(key=new.key_id, naming=naming, changed=now()))
        audit.record(connection, "key.rotated", f"storage key {old.key_id} to {new.key_id}")
        return sum(_rewrap(connection, names, old, new) for names in _names(connection))


def _names(connection: Connection) -> Iterable[list[str]]:
    names = list(connection.scalars(select(blob_keys.c.digest).order_by(blob_keys.c.digest)))
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))


def _rewrap(connection: Connection, names: list[str], old: Vault, new: Vault) -> int:
    """Wrap the keys of some blobs, whose names are in order, anew; return how many."""
    span = blob_keys.c.digest.between(names[0], names[-1])
    rows = connection.execute(select(blob_keys).where(span)).all()
    statement = update(blob_keys).where(blob_keys.c.digest == bindparam("name")).values(wrapped=bindparam("new"))
    changed = []
    for name, wrapped in rows:
        changed.append({"name": name, "new": new.wrap(old.unwrap(bytes(wrapped), name.encode()), name.encode())})
    connection.execute(statement, changed)
    return len(changed)
