"""The last head of each chain of models, noted outside the database, beside the operator's key.

Versions are signed into a chain, but whoever writes to the database can cut the chain at its end, or point an alias at
an earlier version. So the operator notes, signed, how long each chain is, its last hash and where its aliases point; a
database that is behind that was rolled back. A note is made before its transaction commits and completed after, so that
a process that is killed between the two leaves a database that matches one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ...core.errors import StoreError
from ..vault import Signer
from .database import Database
from .notes import SignedNotes

LABEL = b"umbel heads 1"
State = dict[str, Any]  # {versions: how many, hash: the last one's, aliases: {alias: version}}


class Heads:
    """Heads of a store's chains in a file that is no part of it. A Signer, which signs what it did before."""

    def __init__(self, signer: Signer, path: Path, store: str):
        self._signer, self.path, self._store = signer, path, store
        self._notes = SignedNotes(signer, path, LABEL, "where the models of a store were left")

    @property
    def key_id(self) -> str:
        """Same as the signer's."""
        return self._signer.key_id

    @property
    def heads(self) -> Path:
        """File that the heads are noted in."""
        return self.path

    def sign(self, message: bytes) -> bytes:
        """Same as the signer's."""
        return self._signer.sign(message)

    def verifies(self, key_id: str, signature: bytes, message: bytes) -> bool:
        """Same as the signer's."""
        return self._signer.verifies(key_id, signature, message)

    def names(self) -> list[str]:
        """List the models that a head is noted of."""
        return sorted(self._notes.read().get(self._store, {}))

    def check(self, name: str, state: State, hashes: Sequence[str]) -> None:
        """Raise StoreError for a chain, or an alias, that is not where it was left.

        hashes: of the chain's versions. One that goes on from what is noted, signed as it is, was continued elsewhere.
        """
        noted = self._notes.read().get(self._store, {}).get(name)
        if not noted or state in noted:
            return
        last = noted[-1]
        is_longer = state["versions"] > last["versions"] and [*hashes, ""][last["versions"] - 1] == last["hash"]
        if is_longer and state["aliases"] == last["aliases"]:
            return
        raise StoreError(
            f"model {name!r} was rolled back, or moved without this operator: it has {told(state)}, and {self.path} "
            f"notes {told(last)}. Put a backup in its place; if another operator moved it, delete that file"
        )

    @contextlib.contextmanager
    def moving(self, write: Callable[[], contextlib.AbstractContextManager[Connection]]) -> Iterator[Moving]:
        """Open a writing transaction in which chains move: note states before it commits, and complete them after."""
        with self._notes.alone():
            with write() as connection:
                moved = Moving(connection, {})
                yield moved
                self._note(moved.states, keep=True)
            self._note(moved.states, keep=False)

    def _note(self, states: Mapping[str, State], keep: bool) -> None:
        """Note the states; beside those that were noted last, or in their place."""
        if not states:
            return
        everything = self._notes.read()
        noted = everything.setdefault(self._store, {})
        for name, state in states.items():
            noted[name] = [*(noted.get(name, [])[-1:] if keep else []), state]
        self._notes.write(everything)


class Moving:
    """Transaction in which chains move. states: after it, by name."""

    def __init__(self, connection: Connection, states: dict[str, State]):
        self.connection, self.states = connection, states


def with_heads(signer: Signer | None, database: Database) -> Signer | None:
    """Return the signer, which notes heads beside its key file where it has one."""
    if signer is None or signer.heads is None:
        return signer
    return Heads(signer, signer.heads, name_of(database))


def name_of(database: Database) -> str:
    """Return the name that a store goes by in notes outside it."""
    address = database.address
    return str(address.path.resolve() if address.path is not None else address.url.database)


def told(state: State) -> str:
    """Say a state in words."""
    aliases = ", ".join(f"{alias} → {version}" for alias, version in sorted(state["aliases"].items())) or "none"
    return f"{state['versions']} versions and aliases: {aliases}"
