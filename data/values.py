"""Frozen values that hold arrays or compute something once: how they compare, hash, print, pickle and remember."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import numpy as np

from ..core.examples import leaves
from ..core.validation import fields_of, lacking

T = TypeVar("T")


class _Result:
    """Result of a computation; unlike a tuple or an array, it can be referred to weakly."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any):
        self.value = value


class _Key:
    """Key that a result is found by; hashed once, since an entry may go as late as when the interpreter ends."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, parts: tuple[Hashable, ...]):
        self._parts, self._hash = parts, hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._parts == other._parts


_results: weakref.WeakValueDictionary[Hashable, _Result] = weakref.WeakValueDictionary()
_computing = threading.RLock()  # re-entrant: a population computes by loading its source


def once(compute: Callable[[Any], T]) -> Callable[[Any], T]:
    """Make a method without arguments of a frozen dataclass compute when first called, then remember.

    Equal instances of one process share a result, which is freed with the last of them. It is no part of a value's
    fields, equality or pickle. A value with a `path`, or whose sources have one, shares only while those files stay
    unchanged. Thread-safe.
    """
    place = f"_once_{compute.__name__}"

    @functools.wraps(compute)
    def remembered(self: Any) -> T:
        result = vars(self).get(place)
        if result is None:
            with _computing:
                result = vars(self).get(place) or _shared(self, compute)
                vars(self)[place] = result
        return result.value

    return remembered


def _shared(owner: Any, compute: Callable[[Any], Any]) -> _Result:
    """Return the result that equal owners share."""
    # The key is a copy without results: the owner itself would keep its own entry alive for ever.
    bare = object.__new__(type(owner))
    vars(bare).update(fields_only(owner))
    try:
        key = _Key((compute, bare, *map(_file_version, _paths_of(owner))))
    except TypeError:  # it holds something of the user's that has no hash
        return _Result(compute(owner))
    result = _results.get(key)
    if result is None:
        result = _results[key] = _Result(compute(owner))
    return result


def _paths_of(owner: Any) -> Iterator[Any]:
    """Yield the files that owner, or the sources inside it, are read from."""
    if not lacking(owner, ("path",)):
        yield owner.path
    for name in ("source", "population", "division"):
        if (inner := vars(owner).get(name)) is not None and not lacking(inner, ("__dict__",)):
            yield from _paths_of(inner)
    clients = vars(owner).get("clients")
    for client in clients if isinstance(clients, tuple) else ():
        if not lacking(client, ("__dict__",)):
            yield from _paths_of(client)


def _file_version(path: Any) -> Hashable:
    try:
        status = os.stat(path)
    except (OSError, TypeError):
        return str(path)
    return str(path), status.st_mtime_ns, status.st_size


def fields_only(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, without what it remembers: a `__getstate__`."""
    return fields_of(value)


def same_fields(one: Any, other: Any) -> bool:
    """Compare dataclasses that hold arrays by content: an `__eq__`."""
    if type(one) is not type(other):
        return NotImplemented
    compared = [field.name for field in dataclasses.fields(one) if field.compare]
    if one is other or not compared:
        return True
    pairs = zip(fields_of(one, *compared).values(), fields_of(other, *compared).values(), strict=True)
    return all(_same(*pair) for pair in pairs)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other) and not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def hash_fields(value: Any) -> int:
    """Hash a dataclass to go with `same_fields`: shapes, types and the first and last rows stand for arrays."""
    return hash((type(value), *(_hashable(part) for part in fields_only(value).values())))


def _hashable(part: Any) -> Hashable:
    if not isinstance(part, (np.ndarray, dict, tuple, list)):
        return part
    arrays = [one for one in leaves(part) if isinstance(one, np.ndarray)]
    return tuple((one.shape, one.dtype.str, one[:1].tobytes(), one[-1:].tobytes()) for one in arrays)
