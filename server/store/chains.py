"""Rows of the registry's chains: one header for each version, hashed together with the one before, and signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from ...core.errors import StoreError
from ..vault import Signer
from .heads import Heads, State
from .schema import alias_moves, model_bases, model_signatures, model_versions

FIRST = "0" * 64  # the hash before version 1


def _sealed(header: Mapping[str, Any]) -> tuple[str, str]:
    """Return the header as canonical JSON, and the hash of that."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text, hashlib.sha256(text.encode()).hexdigest()


def append(connection: Connection, header: Mapping[str, Any], signer: Signer | None) -> str:
    """Add a version to its chain, with its base where its header names one; return its hash."""
    name, version = header["name"], header["version"]
    text, digest = _sealed(header)
    row = {"name": name, "version": version, "header": text, "hash": digest, "params": header["params"]}
    connection.execute(model_versions.insert(), row)
    if "base" in header:
        connection.execute(model_bases.insert(), {"name": name, "version": version, "digest": header["base"]})
    if signer is not None:
        sign(connection, signer, name, version, digest)
    return digest


def names_in(connection: Connection) -> list[str]:
    """List the names that have versions, in order."""
    query = select(model_versions.c.name).distinct().order_by(model_versions.c.name)
    return list(connection.scalars(query))


def signatures_of(connection: Connection, name: str) -> dict[int, Row[Any]]:
    """Return the rows of a chain's signatures, by version."""
    rows = connection.execute(select(model_signatures).where(model_signatures.c.name == name))
    return {row.version: row for row in rows}


def sign(connection: Connection, signer: Signer, name: str, version: int, digest: str) -> None:
    """Add the signature of a version: over its hash, and so over the chain up to it."""
    values = {"key": signer.key_id, "signature": signer.sign(digest.encode())}
    connection.execute(model_signatures.insert(), {"name": name, "version": version, **values})


def _check_signatures(connection: Connection, signer: Signer, name: str, rows: Sequence[Row[Any]]) -> None:
    """Raise StoreError at the first version that no trusted key has signed."""
    signed = signatures_of(connection, name)
    for row in rows:
        found = signed.get(row.version)
        if found is None:
            raise StoreError(
                f"model {name!r} version {row.version} is not signed, and a key is given; store.models.sign({name!r}) "
                "signs a chain that was begun without one"
            )
        if not signer.verifies(found.key, bytes(found.signature), row.hash.encode()):
            raise StoreError(
                f"model {name!r} version {row.version}: no trusted key has signed it as it is; name the operator's "
                f"key {found.key}, or put a backup in its place"
            )


def chain_of(connection: Connection, name: str, signer: Signer | None) -> list[Row[Any]]:
    """Return the rows of a name, first to last. Errors: StoreError at the first that does not verify."""
    query = select(model_versions).where(model_versions.c.name == name).order_by(model_versions.c.version)
    rows, previous = list(connection.execute(query)), FIRST
    for number, row in enumerate(rows, 1):
        if row.version != number:
            raise StoreError(f"model {name!r}: version {number} is missing from the chain; put a backup in its place")
        if hashlib.sha256(row.header.encode()).hexdigest() != row.hash:
            raise StoreError(f"model {name!r} version {number} does not verify: its header was changed")
        header = json.loads(row.header)
        expected = {"name": name, "version": number, "params": row.params, "previous": previous}
        wrong = [field for field, value in expected.items() if header.get(field) != value]
        if wrong:
            raise StoreError(f"model {name!r} version {number} does not verify: its {wrong[0]} breaks the chain")
        previous = row.hash
    if signer is not None:
        _check_signatures(connection, signer, name, rows)
    if isinstance(signer, Heads):
        signer.check(name, state_of(connection, name), [row.hash for row in rows])
    return rows


def contents_of(row: Row[Any]) -> list[str]:
    """List the names of the blobs that a version is made of: its params, and its base where anything is frozen."""
    base = json.loads(row.header).get("base")
    return [row.params] if base is None else [row.params, base]


def state_of(connection: Connection, name: str) -> State:
    """Return a chain's length, its last hash, and where its aliases point."""
    query = select(model_versions.c.hash).where(model_versions.c.name == name).order_by(model_versions.c.version)
    hashes = list(connection.scalars(query))
    return {"versions": len(hashes), "hash": hashes[-1] if hashes else "", "aliases": aliases_of(connection, name)}


def aliases_of(connection: Connection, name: str) -> dict[str, int]:
    """Return the versions that the aliases of a name point to."""
    last = select(func.max(alias_moves.c.id)).where(alias_moves.c.name == name).group_by(alias_moves.c.alias)
    query = select(alias_moves.c.alias, alias_moves.c.version).where(alias_moves.c.id.in_(last))
    rows = connection.execute(query.order_by(alias_moves.c.alias))
    return {row.alias: row.version for row in rows if row.version is not None}


def problems(connection: Connection, signer: Signer | None) -> list[str]:
    """List a line for every chain that breaks. Params are not read here."""
    found, names = [], names_in(connection)
    for name in sorted({*names, *(signer.names() if isinstance(signer, Heads) else ())}):
        try:
            chain_of(connection, name, signer)
        except StoreError as error:
            found.append(str(error))
    return found
