"""The model registry: immutable versions, numbered per experiment, each hashed together with the one before.

A version's hash is SHA-256 over its header, canonical JSON that holds the digest of its params and the hash of the
previous version. So no version, and no version before it, can be changed without the change being seen; where a key
signs each hash, not even by who writes to the database. Rollback moves an alias. Params are verified against their
digest; nothing but weights is ever loaded.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, delete, select

from ...core import serial
from ...core.errors import ConfigError, StoreError
from ...core.frozen import NO_BASE, Base
from ...core.spec import ModelSpec
from ...core.system.printable import printable
from ...core.types import Vector, json_float
from ..vault import Signer
from . import audit, blobs, runs
from .chains import FIRST, aliases_of, append, chain_of, contents_of, names_in, sign, signatures_of, state_of
from .database import Database, insert
from .heads import Heads, Moving
from .schema import alias_moves, model_labels, now
from .schema import runs as runs_table
from .sealing import Coding

LATEST = "latest"  # not an alias one can set: it is the version with the highest number
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class ModelVersion(NamedTuple):
    """One version of a model, verified. All but labels and aliases is under its hash."""

    name: str  # name of the experiment
    version: int  # 1 for the first
    run: str
    spec: ModelSpec
    metrics: Mapping[str, float]
    epsilon: float | None
    parent: int | None  # the version it was trained from
    created: str
    params_sha256: str  # hash of the params as float32, little-endian; an HMAC in an encrypted store
    previous: str  # hash of the version before
    hash: str
    labels: tuple[str, ...]
    aliases: tuple[str, ...]


class AliasMove(NamedTuple):
    """One move of an alias."""

    alias: str
    version: int | None  # None: the alias was removed
    moved: str


class ModelRegistry:
    """Registry of the models of a store: `store.models`."""

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
        base: Base = NO_BASE,
    ) -> ModelVersion:
        """Add the next version of the run's experiment.

        base: what the model's frozen variables hold; versions of one base share it. Errors: ConfigError for params or a
        base that do not fit spec; StoreError for an unknown run or parent, and when the versions before do not verify.
        """
        _check_fits(params, base, spec)
        content = blobs.blob(self._coding, serial.memory_of(params.astype("<f4", copy=False)))
        beneath = [blobs.blob(self._coding, base.to_bytes())] if base.arrays else []
        with self._moving() as moved:
            connection = moved.connection
            run = runs.resolve(connection, run)
            name = connection.scalars(select(runs_table.c.name).where(runs_table.c.run == run)).one()
            chain = chain_of(connection, name, self._signer)
            if parent is not None and not 1 <= parent <= len(chain):
                raise StoreError(f"model {name!r} has no version {parent} to be the parent; it has {len(chain)}")
            header = {
                "name": name,
                "version": len(chain) + 1,
                "run": run,
                "spec": spec.to_json(),
                "metrics": runs.to_json_floats(metrics),
                "epsilon": None if epsilon is None else json_float(epsilon),
                "parent": None if parent is None else int(parent),
                "created": now(),
                "params": content.digest,
                "previous": chain[-1].hash if chain else FIRST,
                **({"base": beneath[0].digest} if beneath else {}),
            }
            blobs.write(connection, self._coding, [content, *beneath])
            digest = append(connection, header, self._signer)
            moved.states[name] = state_of(connection, name)
            return _version(connection, header, digest)

    def version_of(self, run: str, params: Vector, epsilon: float | None) -> int | None:
        """Return the run's last version if it has these very params at this ε; None if not, or if there is none.

        Errors: those of `get`.
        """
        with self._database.read() as connection:
            name = connection.scalars(select(runs_table.c.name).where(runs_table.c.run == run)).one()
            headers = [json.loads(row.header) for row in chain_of(connection, name, self._signer)]
            last = next((header for header in reversed(headers) if header["run"] == run), None)
            if last is None or last["epsilon"] != (None if epsilon is None else json_float(epsilon)):
                return None
            same = blobs.read(connection, self._coding, last["params"]) == params.astype("<f4", copy=False).tobytes()
            return int(last["version"]) if same else None

    def get(self, name: str, version: int | str = LATEST) -> tuple[ModelVersion, Vector]:
        """Return a version by number, alias or "latest", with its params: float32, shape (d,).

        Errors: StoreError when there is none, or when it, a version before it, or the params do not verify.
        """
        with self._database.read() as connection:
            chain = chain_of(connection, name, self._signer)
            number = _number(connection, name, version, len(chain))
            row = chain[number - 1]
            content = blobs.read(connection, self._coding, row.params)
            model = _version(connection, json.loads(row.header), row.hash)
        if len(content) != 4 * model.spec.size:
            raise StoreError(
                f"model {name!r} version {number}: {len(content)} bytes do not fit {model.spec.size} params"
            )
        return model, np.frombuffer(content, "<f4").astype(np.float32)

    def base(self, name: str, version: int | str = LATEST) -> Base:
        """Return what a version's model holds in its frozen variables, verified. Errors: those of `get`."""
        with self._database.read() as connection:
            chain = chain_of(connection, name, self._signer)
            header = json.loads(chain[_number(connection, name, version, len(chain)) - 1].header)
            if "base" not in header:
                return NO_BASE
            content = blobs.read(connection, self._coding, header["base"])
        return ModelSpec.from_json(header["spec"]).base_from(content)

    def arrays(self, name: str, version: int | str = LATEST) -> tuple[ModelVersion, dict[str, np.ndarray]]:
        """Return a version, and all that its model holds but what stays with clients, by the variables' paths.

        Numbers of types that NumPy has not (bfloat16) are float32, which holds each of them. Errors: those of `get`.
        """
        found, params = self.get(name, version)
        arrays = found.spec.arrays(params, self.base(name, found.version))
        return found, {path: one.astype(np.float32) if one.dtype.kind == "V" else one for path, one in arrays.items()}

    def load_into(self, model: Any, name: str, version: int | str = LATEST) -> Any:
        """Assign a version, verified, to a Keras model of the same variables, what is frozen included; return it.

        Errors: those of `get`; ConfigError when the model has other variables.
        """
        found, params = self.get(name, version)
        return found.spec.load_into(model, params, self.base(name, found.version))

    @contextlib.contextmanager
    def _moving(self) -> Iterator[Moving]:
        """Open a writing transaction that adds to a chain or moves an alias; note its heads where a key does so."""
        if isinstance(self._signer, Heads):
            with self._signer.moving(self._database.write) as moved:
                yield moved
        else:
            with self._database.write() as connection:
                yield Moving(connection, {})

    def list(self, name: str | None = None) -> list[ModelVersion]:
        """List every version, of one experiment or of all, in order. Errors: StoreError when one does not verify."""
        with self._database.read() as connection:
            names = names_in(connection) if name is None else [name]
            return [
                _version(connection, json.loads(row.header), row.hash)
                for one in names
                for row in chain_of(connection, one, self._signer)
            ]

    def names(self) -> Sequence[str]:
        """List the experiments that have versions, in order; whether these verify is not looked at."""
        with self._database.read() as connection:
            return names_in(connection)

    def verify(self, name: str) -> int:
        """Walk the chain and read every version's params, and every base; return the number of versions.

        Errors: StoreError at a break.
        """
        with self._database.read() as connection:
            chain = chain_of(connection, name, self._signer)
            for digest in dict.fromkeys(digest for row in chain for digest in contents_of(row)):
                blobs.read(connection, self._coding, digest)
        return len(chain)

    def sign(self, name: str) -> int:
        """Sign the versions of a chain that nobody has signed, so that a key can continue it; return how many.

        Versions are not trusted more for it than the database was until now. Errors: StoreError for a chain that does
        not verify, and for a store that was opened without a signer.
        """
        if self._signer is None:
            raise StoreError("no key to sign with; open the store with one: Store.open(url, signer=FILE)")
        with self._moving() as moved:
            connection = moved.connection
            chain, signed = chain_of(connection, name, None), signatures_of(connection, name)
            unsigned = [row for row in chain if row.version not in signed]
            for row in unsigned:
                sign(connection, self._signer, name, row.version, row.hash)
            chain_of(connection, name, self._signer)
            moved.states[name] = state_of(connection, name)
        return len(unsigned)

    def set_alias(self, name: str, alias: str, version: int | str) -> None:
        """Point an alias at a version; rolling back is pointing it at an earlier one. Leaves a row in the audit log.

        Errors: ConfigError for a bad alias; StoreError for a version that is not there or does not verify.
        """
        if not NAME.fullmatch(alias) or alias == LATEST:
            raise ConfigError(f"alias {alias!r}: expected a letter, then letters, digits, . _ -; not {LATEST!r}")
        with self._moving() as moved:
            connection = moved.connection
            chain = chain_of(connection, name, self._signer)
            number = _number(connection, name, version, len(chain))
            for digest in contents_of(chain[number - 1]):
                blobs.read(connection, self._coding, digest)
            row = {"name": name, "alias": alias, "version": number, "moved": now()}
            connection.execute(alias_moves.insert(), row)
            audit.record(connection, "alias.moved", printable(f"{alias} of {name} to version {number}", audit.LONGEST))
            moved.states[name] = state_of(connection, name)

    def remove_alias(self, name: str, alias: str) -> None:
        """Let an alias point at nothing; its past stays in the audit log. Errors: StoreError if it points nowhere."""
        with self._moving() as moved:
            connection = moved.connection
            _number(connection, name, alias, len(chain_of(connection, name, self._signer)))
            connection.execute(alias_moves.insert(), {"name": name, "alias": alias, "version": None, "moved": now()})
            audit.record(connection, "alias.removed", printable(f"{alias} of {name}", audit.LONGEST))
            moved.states[name] = state_of(connection, name)

    def aliases(self, name: str) -> dict[str, int]:
        """Return where each alias points."""
        with self._database.read() as connection:
            return aliases_of(connection, name)

    def alias_history(self, name: str) -> Sequence[AliasMove]:
        """List every move of an alias, first to last. The database refuses to change or delete one."""
        columns = (alias_moves.c.alias, alias_moves.c.version, alias_moves.c.moved)
        with self._database.read() as connection:
            query = select(*columns).where(alias_moves.c.name == name).order_by(alias_moves.c.id)
            return [AliasMove(*row) for row in connection.execute(query)]

    def label(self, name: str, version: int | str, label: str) -> None:
        """Attach a label to a version; again is the same. Errors: those of `set_alias`."""
        if not NAME.fullmatch(label):
            raise ConfigError(f"label {label!r}: expected a letter, then letters, digits, . _ -")
        with self._database.write() as connection:
            number = _number(connection, name, version, len(chain_of(connection, name, self._signer)))
            row = {"name": name, "version": number, "label": label}
            connection.execute(insert(connection, model_labels).on_conflict_do_nothing(), row)

    def unlabel(self, name: str, version: int | str, label: str) -> None:
        """Take a label off a version; one that is not there is no error."""
        with self._database.write() as connection:
            number = _number(connection, name, version, len(chain_of(connection, name, self._signer)))
            own = (model_labels.c.name == name, model_labels.c.version == number, model_labels.c.label == label)
            connection.execute(delete(model_labels).where(*own))


def _check_fits(params: Vector, base: Base, spec: ModelSpec) -> None:
    """Raise ConfigError for params or a base that do not fit spec."""
    if params.shape != (spec.size,) or params.dtype != np.float32:
        raise ConfigError(f"expected float32 params of shape ({spec.size},), got {params.dtype} {params.shape}")
    if base.digest != spec.base:
        raise ConfigError(
            f"expected the base {spec.base[:12] or 'none'}, which spec names, got {base.digest[:12] or 'none'}; "
            "hand over the frozen variables' values: register(…, base=history.base)"
        )


def _number(connection: Connection, name: str, version: int | str, count: int) -> int:
    """Return the version number behind a number, an alias or "latest". Errors: StoreError naming what there is."""
    if not count:
        known = ", ".join(names_in(connection)) or "none"
        raise StoreError(f"no model {name!r}; the registry holds: {known}")
    if version == LATEST:
        return count
    text, aliases = str(version), aliases_of(connection, name)
    number = int(text) if text.isdecimal() else aliases.get(text, 0)
    if not 1 <= number <= count:
        points = ", ".join(f"{alias} → {target}" for alias, target in aliases.items()) or "none"
        raise StoreError(f"model {name!r} has no version {version!r}; it has 1 to {count}, and aliases: {points}")
    return number


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
        tuple(alias for alias, target in aliases_of(connection, name).items() if target == number),
    )
