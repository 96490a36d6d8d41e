"""Content-addressed bytes: written once however often they are referred to, verified whenever they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, delete, exists, or_, select

from ...core.errors import StoreError
from ..vault import Buffer
from .schema import blob_keys, blob_parts, blobs, checkpoint_blobs, memory, model_bases, model_versions
from .sealing import Coding, check_current

PART_BYTES = 16 << 20  # SQLite and PostgreSQL both hold a part in memory, several times over
SMALL_BYTES = 64 << 10  # below this, a row of its own costs more than writing the bytes again
BATCH = 500  # values in one IN (…); SQLite's bound was 999 for long
REFERENCES = (checkpoint_blobs.c.digest, memory.c.digest, model_versions.c.params, model_bases.c.digest)
Item = TypeVar("Item")


class Blob(NamedTuple):
    """Bytes and the name that the store's coding gives them, hex."""

    digest: str
    content: Buffer


def blob(coding: Coding, content: Buffer) -> Blob:
    """Return the blob of these bytes."""
    return Blob(coding.name(content), content)


def gather(coding: Coding, pieces: Iterable[Buffer]) -> list[Blob]:
    """Turn pieces into blobs that join to the same bytes: small neighbours together, large pieces alone."""
    gathered: list[Blob] = []
    small: list[Buffer] = []
    for piece in pieces:
        if len(piece) < SMALL_BYTES:
            small.append(piece)
            continue
        if small:
            gathered.append(blob(coding, b"".join(small)))
            small = []
        gathered.append(blob(coding, piece))
    return [*gathered, blob(coding, b"".join(small))] if small else gathered


def write(connection: Connection, coding: Coding, new: Sequence[Blob]) -> None:
    """Add the blobs that are not there yet. The caller refers to them in the same transaction.

    Errors: StoreError where the store's key was replaced since it was opened.
    """
    check_current(connection, coding)
    wanted = {one.digest: one.content for one in new}
    for digests in batches(list(wanted)):
        for known in connection.scalars(select(blobs.c.digest).where(blobs.c.digest.in_(digests))):
            del wanted[known]
    if not wanted:
        return
    rows = [{"digest": digest, "size": len(content)} for digest, content in wanted.items()]
    connection.execute(blobs.insert(), rows)
    keys: dict[str, bytes] = {}
    for some in _parts(_encoded(coding, wanted, keys)):
        connection.execute(blob_parts.insert(), some)
    if keys:
        connection.execute(blob_keys.insert(), [{"digest": name, "wrapped": key} for name, key in keys.items()])


def _encoded(coding: Coding, contents: Mapping[str, Buffer], keys: dict[str, bytes]) -> Iterator[tuple[str, Buffer]]:
    """Yield what to hold of each content, one at a time; its wrapped key goes into keys."""
    for name, content in contents.items():
        held, wrapped = coding.encode(name, content)
        if wrapped is not None:
            keys[name] = wrapped
        yield name, held


def _parts(contents: Iterable[tuple[str, Buffer]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of `blob_parts`, as many at a time as fill one part."""
    rows: list[dict[str, Any]] = []
    size = 0
    for digest, content in contents:
        view = memoryview(content)
        for part, start in enumerate(range(0, len(view), PART_BYTES)):
            piece = view[start : start + PART_BYTES]
            if rows and size + len(piece) > PART_BYTES:
                yield rows
                rows, size = [], 0
            rows.append({"digest": digest, "part": part, "bytes": piece})
            size += len(piece)
    yield rows


def read(connection: Connection, coding: Coding, digest: str) -> Buffer:
    """Read the bytes of one blob. Errors: StoreError when they are missing or not what was written."""
    query = select(blob_parts.c.bytes).where(blob_parts.c.digest == digest).order_by(blob_parts.c.part)
    held, wrapped = b"".join(connection.scalars(query)), None
    if coding.key_id is not None:
        wrapped = connection.scalar(select(blob_keys.c.wrapped).where(blob_keys.c.digest == digest))
    try:
        return coding.decode(digest, held, None if wrapped is None else bytes(wrapped))
    except StoreError as error:
        check_current(connection, coding)  # with the key replaced no blob opens, and none is damaged
        found = f"{len(held):,} bytes that are not those written" if held else "nothing"
        message = f"blob {digest[:12]}… does not verify: the store holds {found}; put a backup in its place"
        raise StoreError(message) from error


def collect(connection: Connection, candidates: Iterable[str] | None = None) -> None:
    """Delete the candidates (None: all) that nothing refers to any more."""
    orphan = ~or_(*(exists().where(column == blobs.c.digest) for column in REFERENCES))
    if candidates is None:
        connection.execute(delete(blobs).where(orphan))
        return
    for digests in batches(sorted(set(candidates))):
        connection.execute(delete(blobs).where(blobs.c.digest.in_(digests), orphan))


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Split items into batches of BATCH at most."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
