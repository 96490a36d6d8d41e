"""Schema of a database: made, recognised, brought up to date."""

from __future__ import annotations

import os
import sqlite3
import struct
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, inspect, text

from ...core.errors import StoreError
from .database import Database
from .schema import HEAD, VERSION_TABLE, metadata

MIGRATIONS = Path(__file__).parent / "migrations"


def prepare(database: Database, create: bool) -> None:
    """Bring the database to the newest schema.

    An empty one gets its tables, if create. An older one is migrated in one transaction; a SQLite file is first
    copied beside itself. Errors: StoreError for a newer schema, another program's database, and an empty one where
    create is False; nothing is changed then.
    """
    path = database.address.path
    if path is not None:
        _check_file(database, path, create)
    with database.read() as connection:
        revision = _revision(connection, database, create)
    if revision == HEAD:
        return
    if revision is not None and path is not None:
        backup(path, revision)
    with database.write() as connection:
        if _revision(connection, database, create) != HEAD:  # another process may have been faster
            migrate(connection)


def migrate(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to revision, inside the connection's transaction."""
    from alembic import command  # here: it takes a third of a second, and most stores are up to date
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "metadata": metadata, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, revision)


def backup(path: Path, revision: str) -> Path:
    """Copy a SQLite file beside itself, on disk when this returns, never over an earlier copy; return the path."""
    names = (f"{path.name}.{revision}{f'-{n}' if n > 1 else ''}.backup" for n in count(1))
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        source, copy = sqlite3.connect(path), sqlite3.connect(partial)
        source.backup(copy)  # consistent while others write, the write-ahead log included
        source.close()
        copy.close()
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.rename(target)
    except (sqlite3.Error, OSError) as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"store {path} is of an older schema, and a copy could not be made: {error}") from error
    return target


def _check_file(database: Database, path: Path, create: bool) -> None:
    """Refuse what SQLite would turn into an empty database, or name only as unable to open."""
    if path.is_dir():
        raise StoreError(f"store {database.address} is a folder; name a file in it: sqlite:///{path}/runs.db")
    if not create and not path.is_file():
        raise StoreError(f"store {database.address} does not exist; check the path, or begin a run to make it")
    if not path.parent.is_dir():
        raise StoreError(f"store {database.address}: the folder {path.parent} does not exist; make it first")
    if path.is_file() and _is_cut_short(path):
        raise StoreError(f"store {database.address} is damaged or cut short; put a backup of it in its place")
    if path.is_file() and (tables := _foreign_tables(path)):  # before the engine connects, which would switch it to WAL
        raise StoreError(f"store {database.address} holds another program's tables ({tables}); name another")


def _foreign_tables(path: Path) -> str:
    """Name some tables of a SQLite file that is not ours; "" if it is, has none, or cannot be read as it is."""
    uri = f"file:{quote(str(path.resolve()))}?mode=ro"
    with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return "" if VERSION_TABLE in names else ", ".join(sorted(names)[:3])
    return ""


def _is_cut_short(path: Path) -> bool:
    """Return whether a SQLite file at rest is shorter than its header says. SQLite reads a cut last page as zeros."""
    with suppress(OSError):  # what cannot be read, SQLite will name
        if any(path.with_name(path.name + log).exists() for log in ("-wal", "-journal")):
            return False  # in use, or to be recovered
        with open(path, "rb") as file:
            header = file.read(100)
        # https://www.sqlite.org/fileformat.html, 1.3: big-endian; 1 stands for 65536; the page count is valid only
        # where bytes 92 to 95 repeat the change counter of bytes 24 to 27.
        if len(header) == 100 and header.startswith(b"SQLite format 3\0") and header[24:28] == header[92:96]:
            (page,), (pages,) = struct.unpack(">H", header[16:18]), struct.unpack(">I", header[28:32])
            return path.stat().st_size < pages * (65536 if page == 1 else page)
    return False


def _revision(connection: Connection, database: Database, create: bool) -> str | None:
    """Return the schema's revision; None for an empty database, if one may be made."""
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE in tables:
        revision = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        if revision is None or revision > HEAD:
            raise StoreError(
                f"store {database.address} has schema {revision}, and this Umbel knows none after {HEAD}: "
                "it was written by a newer version; upgrade Umbel, or name another store"
            )
        return str(revision)
    if tables:
        raise StoreError(
            f"store {database.address} holds another program's tables ({', '.join(sorted(tables)[:3])}); name another"
        )
    if not create:
        raise StoreError(f"store {database.address} is empty; check the name, or begin a run to make it a store")
    return None
