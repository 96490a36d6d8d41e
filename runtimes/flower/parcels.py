"""Messages that carry their small objects with them, between processes of ours.

Flower carries a message as an envelope that names objects, and each object by a call of its own: some twenty calls
there and back for the smallest model. Here the objects that are small travel in the envelope, in fields that Flower's
protobuf messages do not have. Whoever does not know a field passes over it, as Protobuf says: a SuperLink or a
SuperNode of Flower's own is asked for each object, and sent each, as ever. What is large travels in pieces either way,
so that nobody holds more of it than he has to, and a connection that breaks costs one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Protobuf: fields that a message does not have are kept, and can be read.
from google.protobuf.unknown_fields import UnknownFieldSet

PARCEL_BYTES = 1 << 20  # most bytes of the objects in one parcel
ID_BYTES = 32  # length of an object's id, a SHA-256
# Numbers of the fields, far above Flower's.
OBJECT = 30301  # an object: its id, and what it holds
TAKES = 30302  # the answer may carry objects
HOLD = 30303  # most seconds, in decimal, that the answer may take when there is nothing yet
RECEIVED = 30304  # id of a message that came whole before, and need not be kept


def note(message: Any, field: int, content: bytes = b"") -> None:
    """Put a field of ours into a protobuf message of Flower's."""
    message.MergeFromString(varint(field << 3 | 2) + varint(len(content)) + content)


def noted(message: Any, field: int) -> list[bytes]:
    """Return what a protobuf message of Flower's has in a field of ours."""
    return [one.data for one in UnknownFieldSet(message) if one.field_number == field and one.wire_type == 2]


def load(message: Any, objects: Mapping[str, bytes]) -> None:
    """Put objects, by id, into a protobuf message."""
    for identifier, content in objects.items():
        note(message, OBJECT, bytes.fromhex(identifier) + content)


def carried(message: Any) -> dict[str, bytes]:
    """Return the objects in a protobuf message, by id."""
    return {one[:ID_BYTES].hex(): one[ID_BYTES:] for one in noted(message, OBJECT) if len(one) > ID_BYTES}


def fitting(sizes: Mapping[str, int]) -> list[str]:
    """Choose objects, by their sizes, that go into one parcel: the smallest ones."""
    chosen, left = [], PARCEL_BYTES
    for identifier, size in sorted(sizes.items(), key=lambda item: item[1]):
        left -= size
        if left < 0:
            break
        chosen.append(identifier)
    return chosen


def object_ids(trees: Iterable[Any]) -> Iterator[str]:
    """Yield the id of every object in Flower's ObjectTrees, each once: what is small, the heads, before the pieces."""
    level, seen = list(trees), set[str]()
    while level:
        for tree in level:
            if tree.object_id not in seen:
                seen.add(tree.object_id)
                yield tree.object_id
        level = [child for tree in level for child in tree.children]


def varint(number: int) -> bytes:
    """Write a whole number as Protobuf does: seven bits a byte, the lowest first."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])
