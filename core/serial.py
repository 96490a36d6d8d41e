"""Server state as bytes, without pickle: a JSON outline, then the raw arrays. Reading it runs no code."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import StoreError

MAGIC = b"UMBEL1\n"
DTYPES = frozenset("?bhilqBHILQefd")  # numeric, fixed size: never object, never structured
# As they are written. Others are not even parsed: NumPy evaluates a part of such a text as Python.
NAMES = frozenset(np.dtype(char).newbyteorder("<").str for char in DTYPES)


def dumps(tree: Any) -> bytes:
    """Write nested tuples, lists, dicts, numbers, strings, None and numeric arrays as bytes.

    Errors: TypeError for anything else, naming its type.
    """
    return b"".join(parts(tree))


def parts(tree: Any) -> list[bytes | memoryview]:
    """Return the pieces that `dumps` joins: the outline, then each array's memory, not copied.

    Equal arrays give equal parts.
    """
    arrays: list[np.ndarray] = []
    outline = json.dumps(_outline(tree, arrays)).encode()
    return [MAGIC + struct.pack("<Q", len(outline)) + outline, *map(memory_of, arrays)]


def memory_of(array: np.ndarray) -> memoryview:
    """Return an array's own bytes, in C order; those of a copy where the array lies in another order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def loads(data: bytes, like: Any = None) -> Any:
    """Read the tree that `dumps` wrote. Named tuples come back as the classes found at the same place in `like`.

    Errors: StoreError when data is not such bytes, or is cut short.
    """
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC or len(view) < len(MAGIC) + 8:
        raise StoreError("not a state written by Umbel: its first bytes are wrong")
    start = len(MAGIC) + 8
    (length,) = struct.unpack("<Q", view[len(MAGIC) : start])
    try:
        outline = json.loads(bytes(view[start : start + length]))
        return shaped(_build(outline, view[start + length :]), like)
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, RecursionError) as error:
        raise StoreError(f"a stored state does not read back: {error}") from error


def _outline(tree: Any, arrays: list[np.ndarray]) -> Any:
    """Return the tree as JSON, every array replaced by its place, shape and dtype."""
    if tree is None or (isinstance(tree, (bool, int, str)) and not isinstance(tree, np.generic)):
        return tree
    if isinstance(tree, float) and not isinstance(tree, np.generic):
        return {"f": tree.hex()}  # JSON has no NaN and no guarantee of the last bit
    if isinstance(tree, (np.ndarray, np.generic)):
        array = np.asarray(tree)
        if array.dtype.char not in DTYPES:
            raise TypeError(f"cannot store an array of dtype {array.dtype}")
        offset = sum(one.nbytes for one in arrays)
        arrays.append(array.astype(array.dtype.newbyteorder("<"), copy=False))
        return {"a": [offset, list(array.shape), array.dtype.newbyteorder("<").str]}
    if isinstance(tree, tuple):
        return {"t": [_outline(part, arrays) for part in tree]}
    if isinstance(tree, list):
        return [_outline(part, arrays) for part in tree]
    if isinstance(tree, Mapping):
        return {"d": [[_outline(name, arrays), _outline(part, arrays)] for name, part in tree.items()]}
    raise TypeError(f"cannot store a {type(tree).__name__}: state is made of tuples, dicts, numbers and arrays")


def _build(node: Any, body: memoryview) -> Any:
    """Invert `_outline`."""
    if isinstance(node, list):
        return [_build(part, body) for part in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "f":
        return float.fromhex(value)
    if kind == "t":
        return tuple(_build(part, body) for part in value)
    if kind == "d":
        return {_build(name, body): _build(part, body) for name, part in value}
    offset, shape, dtype = value
    if dtype not in NAMES:
        raise ValueError(f"array of dtype {dtype}")
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(body, dtype, count, offset).reshape(shape).copy()


def shaped(tree: Any, like: Any) -> Any:
    """Give plain tuples the classes of the named tuples in `like`."""
    if not isinstance(tree, tuple) or not isinstance(like, tuple) or len(tree) != len(like):
        return tree
    parts = (shaped(part, own) for part, own in zip(tree, like, strict=True))
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
