"""The audit log: who did what to which run, model or key, each entry hashed together with the one before.

An entry's hash is SHA-256 over its text, canonical JSON that holds the previous hash. The database refuses to change or
delete one; who gets round that, as its owner can, breaks the chain. Only the last entries can be cut off unseen, or all
be written anew: whoever has noted a head, or is sent one (`AuditLog.head`), sees that too.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from ...core.errors import ConfigError, StoreError
from ...core.system.printable import is_printable, printable
from .database import Database
from .schema import audit, now

FIRST = "0" * 64  # the hash before entry 1
ACTOR_VARIABLE = "UMBEL_ACTOR"  # names who acts, for a service that acts for somebody
LONGEST = 500  # most characters of an actor or subject
PAGE = 1000  # entries read at a time

ACTIONS = (
    "run.started",
    "run.resumed",
    "run.finished",
    "run.stopped",
    "run.failed",
    "run.paused",
    "run.deleted",
    "alias.moved",
    "alias.removed",
    "key.rotated",
    "policy.refused",
    "deploy.up",
    "deploy.stopped",
    "client.added",
    "client.revoked",
    "client.erased",
    "node.refused",
)


class AuditEntry(NamedTuple):
    """One entry of the audit log, verified."""

    position: int  # 1 for the first
    moment: str  # UTC, ISO 8601
    actor: str
    action: str  # one of ACTIONS
    subject: str  # what the action was done to
    hash: str


class AuditLog:
    """The audit log of a store: `store.audit`."""

    def __init__(self, database: Database):
        self._database = database

    def append(self, actor: str, action: str, subject: str) -> AuditEntry:
        """Add an entry. A store's own methods add theirs in the transaction of what they do.

        Errors: ConfigError for an action that is not one of ACTIONS, and an actor or subject that is empty, too long,
        or holds control characters.
        """
        with self._database.write() as connection:
            return record(connection, action, subject, actor)

    def entries(self, last: int | None = None) -> list[AuditEntry]:
        """Return the last entries, or all, oldest first. Errors: StoreError where the chain does not verify."""
        with self._database.read() as connection:
            found = list(_verified(connection))
        return found if last is None else found[max(0, len(found) - last) :]

    def head(self) -> tuple[int, str]:
        """Return the number of entries and the last one's hash: note them where who writes to the store cannot."""
        with self._database.read() as connection:
            position, digest = _head(connection)
        return position, digest

    def verify(self, noted: tuple[int, str] | None = None) -> int:
        """Walk the chain; return the number of entries. noted: an earlier head, which has to be in it still.

        Errors: StoreError naming the first entry that was changed, or is missing.
        """
        count = 0
        with self._database.read() as connection:
            for entry in _verified(connection):
                count = entry.position
                if noted is not None and count == noted[0] and entry.hash != noted[1]:
                    raise StoreError(
                        f"audit log: entry {count} is not the one that was noted; put a backup in its place"
                    )
        if noted is not None and noted[0] > count:
            raise StoreError(
                f"audit log: it ends at entry {count}, and {noted[0]} was noted; put a backup in its place"
            )
        return count


def record(connection: Connection, action: str, subject: str, actor: str | None = None) -> AuditEntry:
    """Add an entry inside a writing transaction. Errors: those of `AuditLog.append`."""
    actor = whoever() if actor is None else actor
    if action not in ACTIONS:
        raise ConfigError(f"expected action={action[:80]!r} to be one of {', '.join(ACTIONS)}")
    for name, text in (("actor", actor), ("subject", subject)):
        if not text or len(text) > LONGEST or not is_printable(text):
            raise ConfigError(f"expected {name}={text[:80]!r} to be 1 to {LONGEST} printable characters")
    last, previous = _head(connection)
    entry = {
        "position": last + 1,
        "moment": now(),
        "actor": actor,
        "action": action,
        "subject": subject,
        "previous": previous,
    }
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    connection.execute(audit.insert(), {"position": last + 1, "entry": text, "hash": digest})
    return _entry(entry, digest)


def whoever() -> str:
    """Return who acts: UMBEL_ACTOR, or the user of this process."""
    named = os.environ.get(ACTOR_VARIABLE, "").strip()
    if named:
        return printable(named, LONGEST)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return f"uid {os.getuid()}"


def problems(connection: Connection) -> list[str]:
    """List what is wrong with the log, for `Store.check`."""
    try:
        for _ in _verified(connection):
            pass
    except StoreError as error:
        return [str(error)]
    return []


def _verified(connection: Connection) -> Iterator[AuditEntry]:
    """Yield every entry, oldest first. Errors: StoreError at the first that does not verify."""
    previous, expected = FIRST, 1
    while rows := _page(connection, expected):
        for row in rows:
            if row.position != expected:
                raise StoreError(f"audit log: entry {expected} is missing; put a backup in its place")
            entry = _content(row)
            if entry is None or (entry["position"], entry["previous"]) != (expected, previous):
                raise StoreError(f"audit log: entry {expected} was changed; put a backup in its place")
            yield _entry(entry, row.hash)
            previous, expected = row.hash, expected + 1


def _page(connection: Connection, first: int) -> Sequence[Row[Any]]:
    """Read the next entries from a position on; whatever lies before the first is looked at with it."""
    least = audit.c.position >= first if first > 1 else audit.c.position.is_not(None)
    return connection.execute(select(audit).where(least).order_by(audit.c.position).limit(PAGE)).all()


def _content(row: Row[Any]) -> Mapping[str, Any] | None:
    """Return what a row says; None if that is not what was hashed."""
    if hashlib.sha256(row.entry.encode()).hexdigest() != row.hash:
        return None
    found: Mapping[str, Any] = json.loads(row.entry)
    return found


def _head(connection: Connection) -> tuple[int, str]:
    query = select(audit.c.position, audit.c.hash).order_by(audit.c.position.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return (0, FIRST) if row is None else (row.position, row.hash)


def _entry(entry: Mapping[str, Any], digest: str) -> AuditEntry:
    fields = {name: entry[name] for name in ("position", "moment", "actor", "action", "subject")}
    return AuditEntry(**fields, hash=digest)
