"""One database: its engine, its transactions, and its errors in plain words.

One transaction writes at a time, on both databases (BEGIN IMMEDIATE; an advisory lock). Commits take milliseconds, and
it makes reference counting of blobs simple and right. Readers never wait and see one snapshot.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Insert, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...core.errors import StoreError
from .address import Address

BUSY_SECONDS = 30
WRITER_LOCK = 0x756D62656C  # "umbel", the key of PostgreSQL's advisory lock
PAGE_BYTES = (
    16384  # page of a new SQLite file: states are large; with 4 KiB a commit of 6.6 MB takes half as long again
)

# What the drivers say (lower case), and what it means. {path} and {free} are of the SQLite file.
MEANINGS: Sequence[tuple[str, str]] = (
    ("file is not a database", "is not a SQLite database; name another file"),
    ("malformed", "is damaged or cut short; put a backup of it in its place"),
    ("disk is full", "cannot grow, {free}; make room and resume: what was committed before is intact"),
    ("disk i/o error", "cannot be written, {free}; check the disk and resume: what was committed before is intact"),
    ("no space left", "has no room left on its server; make room and resume: what was committed before is intact"),
    ("readonly database", "cannot be written; check the permissions of the file and its folder"),
    ("unable to open database file", "cannot be opened; its folder must exist and be writable"),
    ("locked", f"was kept locked by another process for {BUSY_SECONDS} s; wait for it or end it"),
    ("lock timeout", f"was kept locked by another process for {BUSY_SECONDS} s; wait for it or end it"),
    ("password", "refused the user or the password; check both in the URL"),
    ("authentication failed", "refused the user or the password; check both in the URL"),
    ("permission denied", "does not let this user do that; grant it rights to create and write tables"),
    ("connection", "cannot be reached; check that the server runs and that the URL is right"),
)


class Database:
    """Connections to one address. Opens nothing until first used."""

    def __init__(self, address: Address):
        self.address = address
        try:
            self.engine = _sqlite_engine(address) if address.path is not None else _postgresql_engine(address)
        except ImportError as error:
            raise StoreError(f"store {address} needs psycopg: pip install 'umbel[postgres]' ({error})") from error
        except SQLAlchemyError as error:
            raise self.explain(error) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that sees one snapshot. Errors: StoreError for whatever the database reports."""
        options = {} if self.address.path is not None else {"isolation_level": "REPEATABLE READ"}
        try:
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise self.explain(error) from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open the one writing transaction: all of it happens, or none.

        Errors: StoreError, and nothing was changed.
        """
        try:
            options = {"umbel_begin": "BEGIN IMMEDIATE"}
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                if self.address.path is None:
                    connection.execute(text(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'"))
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})"))
                yield connection
        except SQLAlchemyError as error:
            raise self.explain(error) from error

    def explain(self, error: SQLAlchemyError) -> StoreError:
        """Say the error in one line: which store, what it means, what to do."""
        said = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        path, meaning = self.address.path, "failed"
        if path is None and "does not exist" in said and "database" in said:
            meaning = f"does not exist; make it first: createdb {self.address.url.database}"
        else:
            meaning = next((words for sign, words in MEANINGS if sign in said.lower()), meaning)
        if path is not None and "{free}" in meaning:
            meaning = meaning.format(free=f"{shutil.disk_usage(path.parent).free:,} bytes are free on its disk")
        return StoreError(f"store {self.address} {meaning} [{said[:300]}]")

    def close(self) -> None:
        """Close every connection. SQLite then merges its write-ahead log into the file."""
        self.engine.dispose()


def insert(connection: Connection, table: Table) -> Any:
    """Return an INSERT that takes ON CONFLICT, in the words of this connection's database."""
    one: Insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
    return one


def _postgresql_engine(address: Address) -> Engine:
    defaults = {"connect_timeout": "10", "application_name": "umbel"}
    url = address.url.update_query_dict({k: v for k, v in defaults.items() if k not in address.url.query})
    return create_engine(url, pool_pre_ping=True)  # a round may last hours; servers drop idle connections


def _sqlite_engine(address: Address) -> Engine:
    engine = create_engine(address.url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late and skips DDL; ours is below
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # only a new file takes it
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = FAST")  # Debian's default overwrites all that is deleted

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("umbel_begin", "BEGIN"))

    return engine


def _use_write_ahead_log(connection: Any) -> None:
    """Switch to WAL; where the file system cannot, SQLite keeps its rollback journal, which is safe too."""
    deadline = time.monotonic() + BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except Exception as error:
            # SQLite does not wait here: two processes that open one new file would refuse each other.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
