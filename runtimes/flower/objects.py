"""Objects of a message on its way: models that are hashed once, and copied once. Not public in Flower; see `compat`.

Flower cuts an array into chunks, each an object that goes by the SHA-256 of its bytes. Its own classes copy and hash
every chunk anew wherever they meet it, and join all of them twice. Here a chunk stays a piece of the array's memory: it
is copied into the request that carries it away, and from the reply that brings it to its place.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from .compat import (
    CHUNK_BYTES,
    HEAD_BODY_DIVIDER,
    HEAD_VALUE_DIVIDER,
    ArrayChunk,
    InflatableObject,
    ObjectTree,
    ObjectUnavailableError,
    PushObjectRequest,
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    inflatable_class_registry,
    no_object_id_recompute,
)
from .malformed import Malformed
from .parcels import PARCEL_BYTES, fitting, varint

AT_ONCE = 2  # number of objects on their way at a time
WAIT_SECONDS = 0.05  # time between two looks for an object that is still being uploaded
ALIGNMENT = 64  # bytes: what TensorFlow can take over without a copy
CONTENT_TAG = PushObjectRequest.DESCRIPTOR.fields_by_name["object_content"].number << 3 | 2  # Protobuf's, for bytes

Get = Callable[[str], bytes]
Wait = Callable[[float], None]  # (seconds that an object has been waited for); raises where it is waited for no longer


class Chunk(ArrayChunk):
    """A piece of memory that does not change any more: Flower's class hashes its piece at every look.

    identifier: its SHA-256, with its head, where that is known.
    """

    is_dirty = False  # Flower's question whether to hash again

    def __init__(self, data: memoryview, identifier: str | None = None):
        self.data = data
        self.__dict__["_object_id"] = identifier or self._hashed()

    @property
    def head(self) -> bytes:
        """Bytes that come before the piece."""
        words = HEAD_VALUE_DIVIDER.join([ArrayChunk.__qualname__, "", str(len(self.data))])
        return words.encode() + HEAD_BODY_DIVIDER

    def deflate(self) -> bytes:
        """Return the object's bytes."""
        return b"".join((self.head, self.data))

    def _hashed(self) -> str:
        hasher = hashlib.sha256(self.head)
        hasher.update(self.data)
        return hasher.hexdigest()


def raw_array(
    dtype: str,
    shape: tuple[int, ...],
    kind: str,
    content: memoryview | bytearray,
    pieces: Sequence[tuple[str, int]] | None = None,
) -> Array:
    """Make an Array over memory as it is, which must not change any more; Flower's own constructor takes a copy.

    pieces: the id and the length of each chunk, where they are known.
    """
    view = memoryview(content)
    if pieces is None:
        chunks = [Chunk(view[start : start + CHUNK_BYTES]) for start in range(0, len(view), CHUNK_BYTES)]
    else:
        ends = list(itertools.accumulate(length for _, length in pieces))
        chunks = [Chunk(view[end - length : end], name) for (name, length), end in zip(pieces, ends, strict=True)]
    array = Array(dtype, shape, kind, b"")
    array.__dict__.update(data=content, _chunks=[(chunk.object_id, chunk) for chunk in chunks])
    return array


def array_record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Make an ArrayRecord of these arrays; ArrayRecord({…}) would copy each."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def content_bytes(record: InflatableObject) -> int:
    """Count the bytes of a record as Flower transmits it: every object it consists of, each distinct one once."""
    with no_object_id_recompute():
        return sum(_object_bytes(part) for part in get_all_nested_objects(record).values())


def _object_bytes(part: InflatableObject) -> int:
    return len(part.head) + len(part.data) if isinstance(part, Chunk) else len(part.deflate())


def small(objects: Mapping[str, InflatableObject]) -> dict[str, bytes]:
    """Return what goes into a parcel of these objects, by id."""
    with no_object_id_recompute():
        chosen = fitting({identifier: _object_bytes(part) for identifier, part in objects.items()})
        return {identifier: objects[identifier].deflate() for identifier in chosen}


class Upload:
    """A PushObjectRequest, which copies what it carries once: into the request's body."""

    def __init__(self, request: PushObjectRequest, content: InflatableObject):
        """Take a request without its content, and the content."""
        self._request, self._content = request, content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    @property
    def object_content(self) -> bytes:
        """Bytes of the content; see PushObjectRequest."""
        return self._content.deflate()

    def SerializeToString(self, deterministic: bool = True) -> bytes:
        """Write the request as Protobuf would: the fields of a message may come in any order."""
        content = self._content
        parts = (content.head, content.data) if isinstance(content, Chunk) else (content.deflate(),)
        size = varint(sum(map(len, parts)))
        return b"".join((self._request.SerializeToString(deterministic=True), varint(CONTENT_TAG), size, *parts))


def upload(
    client: Any, about: PushObjectRequest, objects: Mapping[str, InflatableObject], rejected: Callable[[str], None]
) -> None:
    """Send objects, by id, to what takes them in: a few at a time.

    about: a request's node, run and session. rejected: told which object was not stored.
    """

    def put(identifier: str) -> None:
        request = PushObjectRequest(
            node=about.node, run_id=about.run_id, session_id=about.session_id, object_id=identifier
        )
        is_stored = client.PushObject(Upload(request, objects[identifier])).stored
        forget_call(_object_bytes(objects[identifier]))
        if not is_stored:
            rejected(identifier)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(put, objects))


class ObjectReader:
    """Reader of one message, object by object.

    get: fetches an object. max_bytes: the most that its arrays have together. wait: called, from any of several
    threads, while an
    object is still being uploaded; forever by default.
    """

    def __init__(self, get: Get, max_bytes: float = math.inf, wait: Wait = lambda seconds: time.sleep(WAIT_SECONDS)):
        self._get, self._left, self._wait = get, max_bytes, wait

    def read(self, tree: ObjectTree) -> Any:
        """Read the object, with all it consists of.

        Errors: Malformed; those of get and wait; others for what does not have Flower's form.
        """
        content = self._pull(tree.object_id)
        kind, _, _ = get_object_head_values_from_object_content(content)
        if kind == "Array":
            return self._array(content)
        children = {child.object_id: self.read(child) for child in tree.children}
        if kind == "ArrayRecord":  # whose own way copies every array
            names = json.loads(get_object_body(content, ArrayRecord))
            return array_record({name: children[identifier] for name, identifier in names.items()})
        return inflatable_class_registry[kind].inflate(content, children=children)

    def _array(self, content: bytes) -> Array:
        """Read an array, each chunk's bytes put in their place. No more is read than the array says it has."""
        about = json.loads(get_object_body(content, Array))
        _, names, _ = get_object_head_values_from_object_content(content)
        size = _size_of(about)
        self._left -= size
        if self._left < 0:
            raise Malformed(
                "shape", f"its reply has an array of {about['dtype']}{about['shape'][:8]}, more than agreed"
            )
        room, filled, pieces = _aligned(size), 0, []
        for name, chunk in self._chunks([names[place] for place in about["arraychunk_ids"]]):
            body = memoryview(chunk)[chunk.index(HEAD_BODY_DIVIDER) + 1 :]
            if filled + len(body) > size:
                raise Malformed("shape", f"its reply has more bytes than {about['dtype']}{about['shape'][:8]}")
            room[filled : filled + len(body)] = body
            filled += len(body)
            pieces.append((name, len(body)))
        return raw_array(str(about["dtype"]), tuple(about["shape"]), str(about["stype"]), room[:filled], pieces)

    def _chunks(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (id, bytes) of each, in order; the next ones are on their way while one is put in its place."""
        # Equal chunks, as in a vector of zeros, are one object.
        groups = [(name, len(list(same))) for name, same in itertools.groupby(names)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            coming: deque[Future[bytes]] = deque()
            for place, (name, count) in enumerate(groups):
                for other, _ in groups[place + len(coming) : place + AT_ONCE]:
                    coming.append(pool.submit(self._pull, other))
                chunk = coming.popleft().result()
                yield from itertools.repeat((name, chunk), count)

    def _pull(self, identifier: str) -> bytes:
        """Fetch one object; wait for one that is still being uploaded."""
        began = time.monotonic()
        while True:
            try:
                content = self._get(identifier)
                forget_call(len(content))
                return content
            except ObjectUnavailableError:
                self._wait(time.monotonic() - began)


def forget_call(size: int) -> None:
    """Let go of a call that carried so many bytes, if they are many.

    httpx's requests and answers are circles of objects, which keep their bodies until Python's collector comes by.
    """
    if size > PARCEL_BYTES:
        gc.collect(1)


def wait_until(deadline: float) -> Wait:
    """Make a wait for what is still being uploaded, until then as `time.monotonic` counts.

    Errors of the wait: Malformed afterwards.
    """

    def wait(seconds: float) -> None:
        if time.monotonic() >= deadline:
            raise Malformed("timeout", "its reply was not uploaded whole in time")
        time.sleep(WAIT_SECONDS)

    return wait


def _size_of(about: dict[str, Any]) -> int:
    """Return the bytes of an array, as its dtype and shape say. Errors: Malformed where they do not."""
    dtype, shape = about["dtype"], about["shape"]
    if dtype not in np.sctypeDict:
        raise Malformed("dtype", f"unknown dtype {str(dtype)[:80]!r}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise Malformed("shape", f"expected the sides of an array, got {shape[:8]}")
    return math.prod(shape) * np.dtype(dtype).itemsize


def _aligned(size: int) -> memoryview:
    """Allocate room for so many bytes, aligned."""
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].data
