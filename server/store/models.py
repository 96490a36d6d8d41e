"""The model registry: immutable versions, numbered per experiment, each hashed together with the one before.

A version's hash is SHA-256 over its header, canonical JSON that holds the digest of its params and the hash of the
previous version. So no version, and no version before it, can be changed without the change being seen; where a key
signs each hash, not even by who writes to the database. Rollback moves an alias. Params are verified against their
digest; nothing but weights is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, Row, delete, func, select

from ...core import serial
from ...core.errors import ConfigError, StoreError
from ...core.printable import printable
from ...core.spec import ModelSpec
from ...core.types import Vector
from ..vault import Signer
from . import audit, blobs, runs
from .database import Database, insert
from .schema import alias_moves, model_labels, model_signatures, model_versions, now
from .schema import runs as runs_table
from .sealing import Coding

FIRST = "0" * 64  # the hash before version 1
LATEST = "latest"  # not an alias one can set: it is the version with the highest number
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class ModelVersion(NamedTuple):
    """One version, verified. All but labels and aliases is under its hash."""

    name: str  # of the experiment
    version: int  # 1 for the first
    run: str
    spec: ModelSpec
    metrics: Mapping[str, float]
    epsilon: float | None
    parent: int | None  # the version it was trained from
    created: str
    params_sha256: str  # over the params as float32, little-endian; an HMAC of them in an encrypted store
    previous: str  # hash of the version before
    hash: str
    labels: tuple[str, ...]
    aliases: tuple[str, ...]


class AliasMove(NamedTuple):
    """One row of the audit log."""

    alias: str
    version: int | None  # None: the alias was removed
    moved: str


class ModelRegistry:
    """The models of a store: `store.models`."""

    def __init__(self, database: Database, coding: Coding, signer: Signer | None):
        self._database, self._coding, self._signer = database, coding, signer

    def register(
        self,
        run: str,
        params: Vector,
        spec: ModelSpec,
        metrics: Mapping[str, float],
        epsilon: float | None = None,
        parent: int | None = None,
    ) -> ModelVersion:
        """Add the next version of the run's experiment.

        Errors: ConfigError for params that do not fit spec; StoreError for an unknown run or parent, and when the
        versions before do not verify.
        """
        if params.shape != (spec.size,) or params.dtype != np.float32:
            raise ConfigError(f"expected float32 params of shape ({spec.size},), got {params.dtype} {params.shape}")
        content = blobs.blob(self._coding, serial.memory_of(params.astype("<f4", copy=False)))
        with self._database.write() as connection:
            run = runs.resolve(connection, run)
            name = connection.scalars(select(runs_table.c.name).where(runs_table.c.run == run)).one()
            chain = _chain(connection, name, self._signer)
            if parent is not None and not 1 <= parent <= len(chain):
                raise StoreError(f"model {name!r} has no version {parent} to be the parent; it has {len(chain)}")
            header = {
                "name": name,
                "version": len(chain) + 1,
                "run": run,
                "spec": spec.to_json(),
                "metrics": runs.to_json_floats(metrics),
                "epsilon": None if epsilon is None else runs.json_float(epsilon),
                "parent": None if parent is None else int(parent),
                "created": now(),
                "params": content.digest,
                "previous": chain[-1].hash if chain else FIRST,
            }
            text, digest = _sealed(header)
            blobs.write(connection, self._coding, [content])
            row = {"name": name, "version": header["version"], "header": text, "hash": digest, "params": content.digest}
            connection.execute(model_versions.insert(), row)
            if self._signer is not None:
                _sign(connection, self._signer, name, header["version"], digest)
            return _version(connection, header, digest)

    def version_of(self, run: str, params: Vector, epsilon: float | None) -> int | None:
        """The run's last version, where it has these very params at this ε; None where it has not, or there is none.

        Errors: as `get`.
        """
        with self._database.read() as connection:
            name = connection.scalars(select(runs_table.c.name).where(runs_table.c.run == run)).one()
            headers = [json.loads(row.header) for row in _chain(connection, name, self._signer)]
            last = next((header for header in reversed(headers) if header["run"] == run), None)
            if last is None or last["epsilon"] != (None if epsilon is None else runs.json_float(epsilon)):
                return None
            same = blobs.read(connection, self._coding, last["params"]) == params.astype("<f4", copy=False).tobytes()
            return int(last["version"]) if same else None

    def get(self, name: str, version: int | str = LATEST) -> tuple[ModelVersion, Vector]:
        """A version by number, alias or "latest", with its params: float32, shape (d,).

        Errors: StoreError when there is none, or when it, a version before it, or the params do not verify.
        """
        with self._database.read() as connection:
            chain = _chain(connection, name, self._signer)
            number = _number(connection, name, version, len(chain))
            row = chain[number - 1]
            content = blobs.read(connection, self._coding, row.params)
            model = _version(connection, json.loads(row.header), row.hash)
        if len(content) != 4 * model.spec.size:
            raise StoreError(
                f"model {name!r} version {number}: {len(content)} bytes do not fit {model.spec.size} params"
            )
        return model, np.frombuffer(content, "<f4").astype(np.float32)

    def load_into(self, model: Any, name: str, version: int | str = LATEST) -> Any:
        """Assign a version, verified, to a Keras model of the same variables; returns it.

        Errors: as `get`; ConfigError when the model has other variables.
        """
        found, params = self.get(name, version)
        return found.spec.load_into(model, params)

    def list(self, name: str | None = None) -> list[ModelVersion]:
        """Every version, of one experiment or of all, in order. Errors: StoreError when one does not verify."""
        with self._database.read() as connection:
            names = _names(connection) if name is None else [name]
            return [
                _version(connection, json.loads(row.header), row.hash)
                for one in names
                for row in _chain(connection, one, self._signer)
            ]

    def verify(self, name: str) -> int:
        """Walk the chain and read every version's params; the number of versions. Errors: StoreError at a break."""
        with self._database.read() as connection:
            chain = _chain(connection, name, self._signer)
            for row in chain:
                blobs.read(connection, self._coding, row.params)
        return len(chain)

    def sign(self, name: str) -> int:
        """Sign the versions of a chain that nobody has signed, so that it can be continued under a key; how many.

        Versions are not trusted more for it than the database was until now. Errors: StoreError for a chain that does
        not verify, and for a store that was opened without a signer.
        """
        if self._signer is None:
            raise StoreError("no key to sign with; open the store with one: Store.open(url, signer=FILE)")
        with self._database.write() as connection:
            chain, signed = _chain(connection, name, None), _signatures(connection, name)
            unsigned = [row for row in chain if row.version not in signed]
            for row in unsigned:
                _sign(connection, self._signer, name, row.version, row.hash)
            _chain(connection, name, self._signer)
        return len(unsigned)

    def set_alias(self, name: str, alias: str, version: int | str) -> None:
        """Point an alias at a version; rolling back is pointing it at an earlier one. Leaves a row in the audit log.

        Errors: ConfigError for a bad alias; StoreError for a version that is not there or does not verify.
        """
        if not NAME.fullmatch(alias) or alias == LATEST:
            raise ConfigError(f"alias {alias!r}: expected a letter, then letters, digits, . _ -; not {LATEST!r}")
        with self._database.write() as connection:
            chain = _chain(connection, name, self._signer)
            number = _number(connection, name, version, len(chain))
            blobs.read(connection, self._coding, chain[number - 1].params)
            row = {"name": name, "alias": alias, "version": number, "moved": now()}
            connection.execute(alias_moves.insert(), row)
            audit.record(connection, "alias.moved", printable(f"{alias} of {name} to version {number}", audit.LONGEST))

    def remove_alias(self, name: str, alias: str) -> None:
        """Let an alias point at nothing; its past stays in the audit log. Errors: StoreError if it points nowhere."""
        with self._database.write() as connection:
            _number(connection, name, alias, len(_chain(connection, name, self._signer)))
            connection.execute(alias_moves.insert(), {"name": name, "alias": alias, "version": None, "moved": now()})
            audit.record(connection, "alias.removed", printable(f"{alias} of {name}", audit.LONGEST))

    def aliases(self, name: str) -> dict[str, int]:
        """Where each alias points."""
        with self._database.read() as connection:
            return _aliases(connection, name)

    def alias_history(self, name: str) -> Sequence[AliasMove]:
        """Every move of an alias, first to last. The database refuses to change or delete one."""
        columns = (alias_moves.c.alias, alias_moves.c.version, alias_moves.c.moved)
        with self._database.read() as connection:
            query = select(*columns).where(alias_moves.c.name == name).order_by(alias_moves.c.id)
            return [AliasMove(*row) for row in connection.execute(query)]

    def label(self, name: str, version: int | str, label: str) -> None:
        """Attach a label to a version; again is the same. Errors: as `set_alias`."""
        if not NAME.fullmatch(label):
            raise ConfigError(f"label {label!r}: expected a letter, then letters, digits, . _ -")
        with self._database.write() as connection:
            number = _number(connection, name, version, len(_chain(connection, name, self._signer)))
            row = {"name": name, "version": number, "label": label}
            connection.execute(insert(connection, model_labels).on_conflict_do_nothing(), row)

    def unlabel(self, name: str, version: int | str, label: str) -> None:
        """Take a label off a version; one that is not there is no error."""
        with self._database.write() as connection:
            number = _number(connection, name, version, len(_chain(connection, name, self._signer)))
            own = (model_labels.c.name == name, model_labels.c.version == number, model_labels.c.label == label)
            connection.execute(delete(model_labels).where(*own))


def _sealed(header: Mapping[str, Any]) -> tuple[str, str]:
    """The header as canonical JSON, and the hash of that."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text, hashlib.sha256(text.encode()).hexdigest()


def _names(connection: Connection) -> list[str]:
    query = select(model_versions.c.name).distinct().order_by(model_versions.c.name)
    return list(connection.scalars(query))


def _signatures(connection: Connection, name: str) -> dict[int, Row[Any]]:
    rows = connection.execute(select(model_signatures).where(model_signatures.c.name == name))
    return {row.version: row for row in rows}


def _sign(connection: Connection, signer: Signer, name: str, version: int, digest: str) -> None:
    """Add the signature of a version: over its hash, and so over the chain up to it."""
    values = {"key": signer.key_id, "signature": signer.sign(digest.encode())}
    connection.execute(model_signatures.insert(), {"name": name, "version": version, **values})


def _check_signatures(connection: Connection, signer: Signer, name: str, rows: Sequence[Row[Any]]) -> None:
    """Errors: StoreError at the first version that no trusted key has signed."""
    signed = _signatures(connection, name)
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


def _chain(connection: Connection, name: str, signer: Signer | None) -> list[Row[Any]]:
    """The rows of a name, first to last. Errors: StoreError at the first that does not verify."""
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
    return rows


def _number(connection: Connection, name: str, version: int | str, count: int) -> int:
    """The version number behind a number, an alias or "latest". Errors: StoreError naming what there is."""
    if not count:
        known = ", ".join(_names(connection)) or "none"
        raise StoreError(f"no model {name!r}; the registry holds: {known}")
    if version == LATEST:
        return count
    text, aliases = str(version), _aliases(connection, name)
    number = int(text) if text.isdecimal() else aliases.get(text, 0)
    if not 1 <= number <= count:
        points = ", ".join(f"{alias} → {target}" for alias, target in aliases.items()) or "none"
        raise StoreError(f"model {name!r} has no version {version!r}; it has 1 to {count}, and aliases: {points}")
    return number


def _aliases(connection: Connection, name: str) -> dict[str, int]:
    last = select(func.max(alias_moves.c.id)).where(alias_moves.c.name == name).group_by(alias_moves.c.alias)
    query = select(alias_moves.c.alias, alias_moves.c.version).where(alias_moves.c.id.in_(last))
    rows = connection.execute(query.order_by(alias_moves.c.alias))
    return {row.alias: row.version for row in rows if row.version is not None}


def _version(connection: Connection, header: Mapping[str, Any], digest: str) -> ModelVersion:
    name, number = header["name"], header["version"]
    own = (model_labels.c.name == name, model_labels.c.version == number)
    labels = connection.scalars(select(model_labels.c.label).where(*own).order_by(model_labels.c.label))
    return ModelVersion(
        name,
        number,
        header["run"],
        ModelSpec.from_json(header["spec"]),
        runs.from_json_floats(header["metrics"]),
        None if header["epsilon"] is None else float(header["epsilon"]),
        header["parent"],
        header["created"],
        header["params"],
        header["previous"],
        digest,
        tuple(labels),
        tuple(alias for alias, target in _aliases(connection, name).items() if target == number),
    )


def problems(connection: Connection, signer: Signer | None) -> list[str]:
    """A line for every chain that breaks. Params are not read here."""
    found = []
    for name in _names(connection):
        try:
            _chain(connection, name, signer)
        except StoreError as error:
            found.append(str(error))
    return found
