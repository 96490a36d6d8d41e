"""Content-addressed bytes: written once however often they are referred to, verified whenever they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, delete, exists, or_, select

from ...core.errors import StoreError
from .schema import blob_parts, blobs, checkpoint_blobs, memory, model_versions

PART_BYTES = 16 << 20  # SQLite and PostgreSQL both hold a part in memory, several times over
SMALL_BYTES = 64 << 10  # below this, a row of its own costs more than writing the bytes again
BATCH = 500  # values in one IN (…); SQLite's bound was 999 for long
REFERENCES = (checkpoint_blobs.c.digest, memory.c.digest, model_versions.c.params)
Item = TypeVar("Item")


class Blob(NamedTuple):
    """Bytes and their SHA-256, hex."""

    digest: str
    content: bytes


def blob(content: bytes) -> Blob:
    """The blob of these bytes."""
    return Blob(hashlib.sha256(content).hexdigest(), content)


def gather(pieces: Iterable[bytes]) -> list[Blob]:
    """Pieces as blobs that join to the same bytes: small neighbours together, large pieces alone."""
    gathered, small = [], []
    for piece in pieces:
        if len(piece) < SMALL_BYTES:
            small.append(piece)
            continue
        if small:
            gathered.append(blob(b"".join(small)))
            small = []
        gathered.append(blob(piece))
    return [*gathered, blob(b"".join(small))] if small else gathered


def write(connection: Connection, new: Sequence[Blob]) -> None:
    """Add the blobs that are not there yet. The caller refers to them in the same transaction."""
    wanted = {one.digest: one.content for one in new}
    for digests in batches(list(wanted)):
        for known in connection.scalars(select(blobs.c.digest).where(blobs.c.digest.in_(digests))):
            del wanted[known]
    if not wanted:
        return
    rows = [{"digest": digest, "size": len(content)} for digest, content in wanted.items()]
    connection.execute(blobs.insert(), rows)
    for some in _parts(wanted):
        connection.execute(blob_parts.insert(), some)


def _parts(contents: Mapping[str, bytes]) -> Iterator[list[dict[str, Any]]]:
    """Rows of `blob_parts`, as many at a time as fill one part."""
    rows: list[dict[str, Any]] = []
    size = 0
    for digest, content in contents.items():
        view = memoryview(content)
        for part, start in enumerate(range(0, len(view), PART_BYTES)):
            piece = view[start : start + PART_BYTES]
            if rows and size + len(piece) > PART_BYTES:
                yield rows
                rows, size = [], 0
            rows.append({"digest": digest, "part": part, "bytes": piece})
            size += len(piece)
    yield rows


def read(connection: Connection, digest: str) -> bytes:
    """The bytes of one blob. Errors: StoreError when they are missing or not what was written."""
    query = select(blob_parts.c.bytes).where(blob_parts.c.digest == digest).order_by(blob_parts.c.part)
    content = b"".join(connection.scalars(query))
    if hashlib.sha256(content).hexdigest() != digest:
        found = f"{len(content):,} bytes that are not those written" if content else "nothing"
        raise StoreError(f"blob {digest[:12]}… does not verify: the store holds {found}; put a backup in its place")
    return content


def collect(connection: Connection, candidates: Iterable[str] | None = None) -> None:
    """Delete the candidates (None: all) that nothing refers to any more."""
    orphan = ~or_(*(exists().where(column == blobs.c.digest) for column in REFERENCES))
    if candidates is None:
        connection.execute(delete(blobs).where(orphan))
        return
    for digests in batches(sorted(set(candidates))):
        connection.execute(delete(blobs).where(blobs.c.digest.in_(digests), orphan))


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Items, at most BATCH at a time."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
