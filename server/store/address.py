"""Address of a store: a database URL, checked before any driver sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ...core.errors import StoreError

KNOWN = "expected sqlite:///FILE.db or postgresql://USER@HOST/DATABASE"
SECRET = re.compile(r"password|secret|key$", re.IGNORECASE)  # query options that must not be shown
DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


@dataclass(frozen=True)
class Address:
    """A parsed URL. `str(address)` is what may be shown: passwords are hidden."""

    url: URL
    path: Path | None  # path of the SQLite file; None for PostgreSQL

    def __str__(self) -> str:
        if self.path is not None:
            return f"sqlite:///{self.path}"
        hidden = {name: "***" for name in self.url.query if SECRET.search(name)}
        return self.url.update_query_dict(hidden).set(drivername="postgresql").render_as_string(hide_password=True)


def parse(url: str) -> Address:
    """Read the address that url names.

    Errors: StoreError for what is no URL, for another kind of database, and for a SQLite database in memory.
    """
    # make_url's own message may hold the password, and so may a URL that does not parse.
    shown = re.sub(r"://.*@", "://***@", url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        is_path = re.fullmatch(r"[\w.~/-]+", url)
        expected = f"expected sqlite:///{url}, for a file of that name, or postgresql://USER@HOST/DATABASE"
        raise StoreError(f"store {shown!r} is not a database URL; {expected if is_path else KNOWN}") from None
    if parsed.drivername not in DRIVERS:
        raise StoreError(f"store {shown!r} is of a kind Umbel does not know; {KNOWN}")
    parsed = parsed.set(drivername=DRIVERS[parsed.drivername])
    if parsed.drivername == "postgresql+psycopg":
        return Address(parsed, None)
    if parsed.host:
        raise StoreError(f"store {shown!r} names a host; a SQLite file has three slashes: sqlite:///FILE.db")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise StoreError(f"store {shown!r} names no file, and a store in memory would be lost; {KNOWN}")
    return Address(parsed, Path(parsed.database))
