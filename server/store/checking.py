"""Checks of a whole store, a line for each problem: for after a crash of the machine, or a copy by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, exists, func, or_, select, text

from ...core.errors import StoreError
from ..vault import Signer
from . import audit, blobs, chains
from .database import Database
from .schema import blobs as blobs_table
from .schema import checkpoints, rounds, runs
from .sealing import Coding


def problems(database: Database, coding: Coding, signer: Signer | None) -> list[str]:
    """List every problem found, one line each; none for a sound store. Reads it all, a blob at a time."""
    found: list[str] = []
    checks: list[Callable[[Connection], list[str]]] = [_runs, partial(_blobs, coding=coding)]
    checks += [partial(chains.problems, signer=signer), audit.problems]
    for check in [_file, *checks] if database.address.path is not None else checks:
        try:
            with database.read() as connection:
                found.extend(check(connection))
        except StoreError as error:
            found.append(str(error))
    return found


def _file(connection: Connection) -> list[str]:
    """Run SQLite's own checks."""
    lines = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check"))]
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    references = [f"table {row[0]}, row {row[1]}: refers to a row of {row[2]} that is missing" for row in broken]
    return [line for line in lines if line != "ok"] + references


def _runs(connection: Connection) -> list[str]:
    """Check that each run has every round up to the last, and the checkpoint to continue from."""
    records = select(rounds.c.run, func.count().label("records")).group_by(rounds.c.run).subquery()
    last = select(checkpoints.c.run, func.max(checkpoints.c.round).label("last")).group_by(checkpoints.c.run).subquery()
    query = (
        select(runs.c.run, runs.c.done, func.coalesce(records.c.records, 0).label("records"), last.c.last)
        .outerjoin(records, records.c.run == runs.c.run)
        .outerjoin(last, last.c.run == runs.c.run)
        .order_by(runs.c.run)
    )
    found = []
    for row in connection.execute(query):
        if row.records != row.done:
            found.append(f"run {row.run}: {row.records} records for {row.done} rounds")
        if row.last != row.done:
            found.append(f"run {row.run}: no checkpoint of its last round, {row.done}")
    return found


def _blobs(connection: Connection, coding: Coding) -> list[str]:
    """Check that every blob is what was written, and that something refers to it."""
    found = []
    for digest in connection.scalars(select(blobs_table.c.digest).order_by(blobs_table.c.digest)).all():
        try:
            blobs.read(connection, coding, digest)
        except StoreError as error:
            found.append(str(error))
    referred = or_(*(exists().where(column == blobs_table.c.digest) for column in blobs.REFERENCES))
    orphans = connection.scalar(select(func.count()).select_from(blobs_table).where(~referred))
    if orphans:
        found.append(f"{orphans} blobs that nothing refers to")
    for column in blobs.REFERENCES:
        missing = ~exists().where(blobs_table.c.digest == column)
        found += [
            f"{column.table.name}: blob {digest[:12]}… is missing"
            for digest in connection.scalars(select(column).where(missing).distinct())
        ]
    return found
