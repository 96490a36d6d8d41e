"""Clients' memory between rounds, read one client at a time: a million of them are never loaded at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from sqlalchemy import Connection, delete, func, select

from ...core import serial
from . import blobs
from .database import Database, insert
from .schema import memory
from .sealing import Coding


class StoredMemory:
    """The `Memory` of a run: reads see what was committed, and what was written here since.

    `take()` hands over what was written, for `Store.commit_round` to commit with the round. Safe for threads that
    read and write different clients.
    """

    def __init__(self, database: Database, coding: Coding, run: str):
        self._database, self._coding, self._run = database, coding, run
        self._written: dict[int, list[np.ndarray]] = {}

    def read(self, client: int) -> list[np.ndarray] | None:
        """Return the client's arrays, or None if it has none. Errors: StoreError when they do not verify."""
        if client in self._written:
            return self._written[client]
        with self._database.read() as connection:
            query = select(memory.c.digest).where(memory.c.run == self._run, memory.c.client == int(client))
            digest = connection.scalar(query)
            return None if digest is None else serial.loads(bytes(blobs.read(connection, self._coding, digest)))

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Remember arrays, for reads from now on and for the next `take`."""
        self._written[int(client)] = list(arrays)

    def take(self) -> dict[int, list[np.ndarray]]:
        """Return what was written since the last call, by client, ascending."""
        written, self._written = self._written, {}
        return dict(sorted(written.items()))

    def __contains__(self, client: int) -> bool:
        return self.read(client) is not None

    def __len__(self) -> int:
        """Return the number of clients with a committed memory."""
        with self._database.read() as connection:
            query = select(func.count()).select_from(memory).where(memory.c.run == self._run)
            return int(connection.scalar(query) or 0)


def pack(coding: Coding, memories: Mapping[int, list[np.ndarray]]) -> dict[int, blobs.Blob]:
    """Pack each client's arrays as one blob."""
    return {int(client): blobs.blob(coding, serial.dumps(list(arrays))) for client, arrays in memories.items()}


def save(connection: Connection, coding: Coding, run: str, packed: Mapping[int, blobs.Blob]) -> list[str]:
    """Replace the clients' memories; return the digests they had before."""
    if not packed:
        return []
    replaced: list[str] = []
    for clients in blobs.batches(list(packed)):
        query = select(memory.c.digest).where(memory.c.run == run, memory.c.client.in_(clients))
        replaced.extend(connection.scalars(query))
    blobs.write(connection, coding, list(packed.values()))
    statement = insert(connection, memory)
    statement = statement.on_conflict_do_update(
        index_elements=["run", "client"], set_={"digest": statement.excluded.digest}
    )
    connection.execute(statement, [{"run": run, "client": c, "digest": one.digest} for c, one in packed.items()])
    return replaced


def erase(connection: Connection, runs: Collection[str], members: Collection[int]) -> tuple[dict[int, int], list[str]]:
    """Delete what these runs keep of clients that are not members.

    Returns {client: number of runs that kept something of it}, and the digests of what they kept.
    """
    erased: dict[int, int] = {}
    unused: list[str] = []
    for run in runs:
        rows = connection.execute(select(memory.c.client, memory.c.digest).where(memory.c.run == run)).all()
        for client, digest in rows:
            if client not in members:
                erased[client] = erased.get(client, 0) + 1
                unused.append(digest)
                connection.execute(delete(memory).where(memory.c.run == run, memory.c.client == client))
    return dict(sorted(erased.items())), unused
