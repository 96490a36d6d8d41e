"""Checkpoints: a ServerState per round, as blobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, delete, not_, select, update

from ...core import serial
from ...core.errors import StoreError
from ...core.types import ServerState
from . import blobs
from .schema import checkpoint_blobs, checkpoints, now
from .sealing import Coding


def save(connection: Connection, coding: Coding, run: str, round: int, state: list[blobs.Blob], best: bool) -> None:
    """Add the round's checkpoint; best takes that mark from the one that had it."""
    if best:
        marked = and_(checkpoints.c.run == run, checkpoints.c.best)
        connection.execute(update(checkpoints).where(marked).values(best=False))
    blobs.write(connection, coding, state)
    connection.execute(checkpoints.insert(), {"run": run, "round": round, "best": best, "created": now()})
    rows = [
        {"run": run, "round": round, "position": position, "digest": one.digest} for position, one in enumerate(state)
    ]
    connection.execute(checkpoint_blobs.insert(), rows)


def prune(connection: Connection, run: str, last: int, keep: int) -> list[str]:
    """Delete all but the `keep` checkpoints up to round `last` and the best; return the digests they referred to."""
    old = and_(checkpoints.c.run == run, checkpoints.c.round <= last - keep, not_(checkpoints.c.best))
    same = and_(checkpoint_blobs.c.run == checkpoints.c.run, checkpoint_blobs.c.round == checkpoints.c.round)
    digests = connection.scalars(select(checkpoint_blobs.c.digest).join(checkpoints, same).where(old)).all()
    if digests:
        connection.execute(delete(checkpoints).where(old))
    return list(digests)


def find(connection: Connection, run: str, round: int | str) -> int:
    """Return the round behind "last", "best" or a number. Errors: StoreError naming the rounds that are kept."""
    query = select(checkpoints.c.round, checkpoints.c.best).where(checkpoints.c.run == run)
    kept = {row.round: row.best for row in connection.execute(query.order_by(checkpoints.c.round))}
    if round == "last" and kept:
        return max(kept)
    best = [number for number, is_best in kept.items() if is_best]
    if round == "best" and best:
        return best[0]
    if not isinstance(round, str) and round in kept:
        return int(round)
    raise StoreError(f"run {run} has no checkpoint {round!r}; it keeps rounds {', '.join(map(str, kept)) or 'none'}")


def load(connection: Connection, coding: Coding, run: str, round: int, like: Any = None) -> ServerState:
    """Load the state of a round that `find` found. Errors: StoreError when it does not verify."""
    query = select(checkpoint_blobs.c.digest).where(checkpoint_blobs.c.run == run, checkpoint_blobs.c.round == round)
    digests = connection.scalars(query.order_by(checkpoint_blobs.c.position)).all()
    fields = serial.loads(b"".join([blobs.read(connection, coding, digest) for digest in digests]), like)
    if not isinstance(fields, tuple) or len(fields) != len(ServerState._fields):
        raise StoreError(f"run {run}: the checkpoint of round {round} does not hold a server's state")
    return ServerState(*fields)
