"""Leases: one process at a time plays a run. Another is refused at once, and a process that died keeps nobody waiting.

A lease says which process holds it. Whether that lives, a process of the same machine sees by its number and the moment
it was born; one of another machine by whether the lease is renewed, without comparing clocks.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, update

from ...core.errors import StoreError
from .database import Database, insert
from .schema import leases, now

RENEW_SECONDS = 10.0  # time between two signs of life
WATCH_SECONDS = 35.0  # time without a sign of life, after which a process of another machine counts as gone
LOOK_SECONDS = 0.5


class Holder(NamedTuple):
    """The process that a lease names."""

    place: str  # host, boot and process namespace: where `process` is a process's number
    process: int
    born: str  # when the process began, as its system counts; numbers are given out again

    def lives(self) -> bool | None:
        """Say whether the process is there; None where it is of another machine, or another container."""
        if self.place != _place():
            return None
        return _born(self.process) == self.born

    def __str__(self) -> str:
        where = "" if self.place == _place() else f" on {self.place.partition(' ')[0]}"
        return f"process {self.process}{where}"


class Lease:
    """The right to play one run, held from `take` to `close` by a thread that renews it."""

    def __init__(self, database: Database, run: str):
        self._database, self._run, self._token = database, run, secrets.token_hex(16)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="umbel-lease", daemon=True)

    def take(self) -> None:
        """Take the lease; where a process of another machine has it, watch first whether that lives.

        Errors: StoreError, which names the process that plays the run.
        """
        first: int | None = None
        until = time.monotonic() + WATCH_SECONDS
        while True:
            with self._database.write() as connection:
                row = _row(connection, self._run)
                lives = None if row is None else _holder(row).lives()
                is_silent = row is not None and row.beats == first and time.monotonic() >= until
                if row is None or lives is False or is_silent:
                    self._put(connection)
                    break
            if lives or first not in (None, row.beats):
                raise StoreError(_refusal(self._run, _holder(row)))
            first = row.beats
            time.sleep(LOOK_SECONDS)
        self._thread.start()

    def check(self, connection: Connection) -> None:
        """Raise StoreError where another process took the lease: this one was silent for too long."""
        row = _row(connection, self._run)
        if row is not None and row.token != self._token:
            raise StoreError(_refusal(self._run, _holder(row)))

    def close(self) -> None:
        """Give the lease back."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(StoreError), self._database.write() as connection:  # without a holder that lives, it is free
            connection.execute(delete(leases).where(leases.c.run == self._run, leases.c.token == self._token))

    def _put(self, connection: Connection) -> None:
        own = Holder(_place(), os.getpid(), _born(os.getpid()))
        values = {"token": self._token, **own._asdict(), "beats": 0, "since": now()}
        statement = insert(connection, leases).values(run=self._run, **values)
        connection.execute(statement.on_conflict_do_update(index_elements=["run"], set_=values))

    def _renew(self) -> None:
        own = (leases.c.run == self._run, leases.c.token == self._token)
        while not self._ended.wait(RENEW_SECONDS):
            with suppress(StoreError), self._database.write() as connection:  # the next commit says what is wrong
                connection.execute(update(leases).where(*own).values(beats=leases.c.beats + 1))


def drop(connection: Connection, run: str) -> None:
    """Take away the lease of a run whose process has ended."""
    connection.execute(delete(leases).where(leases.c.run == run))


def holders(connection: Connection) -> dict[str, Holder]:
    """Return {run: the process that plays it}, as leases say."""
    return {row.run: _holder(row) for row in connection.execute(select(leases))}


def orphans(connection: Connection) -> set[str]:
    """List the runs whose process has ended without a word, as far as that can be told on this machine."""
    return {run for run, holder in holders(connection).items() if holder.lives() is False}


def check_free(connection: Connection, run: str) -> None:
    """Raise StoreError for a run that another process plays, as far as that can be told from here."""
    row = _row(connection, run)
    if row is not None and _holder(row).lives() is not False:
        raise StoreError(_refusal(run, _holder(row)))


def _refusal(run: str, holder: Holder) -> str:
    return f"run {run} is being played by {holder}; wait until it ends, or end it first"


def _row(connection: Connection, run: str) -> Any:
    return connection.execute(select(leases).where(leases.c.run == run)).one_or_none()


def _holder(row: Any) -> Holder:
    return Holder(row.place, row.process, row.born)


@cache
def _place() -> str:
    """Return where this process's number means this process: the host, its boot, its process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(process: int) -> str:
    """Return when a process of this machine began; "" for one that is gone, or is a zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:  # a system without /proc
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
