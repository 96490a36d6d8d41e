"""Equality of two values in what they do: arrays by their numbers, functions by their code and all that it reads.

For reuse within a process, in a notebook say, whose cells are run again with other values. No defence against anybody:
what is stored is hashed by SHA-256.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pickle
import sys
import sysconfig
import types
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..validation import fields_of, lacking

PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...))
NOT_READ = ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__annotations__")
INSTALLED = {"site-packages", "dist-packages"}
Seen = dict[int, tuple[int, Any]]  # {id of what was met: (its number, itself)}: who is alive keeps its id
PACKAGE = Path(__file__).resolve().parents[1]


def digest_of(array: Any) -> tuple:
    """Digest an array's type, shape and numbers; 0.2 s per GB. Equal arrays have equal digests.

    Different arrays have the same by a chance of 2⁻³². What is no array of numbers goes by its pickle.
    """
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        return type(array).__qualname__, hashlib.blake2b(pickle.dumps(array), digest_size=16).hexdigest()
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(raw) // 8 * 8
    # A sum beside the checksum: each sees what the other might not, and together they take no longer than a read.
    total = int(np.add.reduce(raw[:whole].view(np.uint64), dtype=np.uint64)) if whole else 0
    return zlib.crc32(raw.data), total, array.shape, array.dtype.str


def fingerprint(value: Any) -> str:
    """Digest what a value does, hex.

    A function counts with its code, defaults, closure and the globals that it reads, also in what it calls; a class
    with its methods; a container with what it holds.

    An object goes by what a copy of it would be made of, a layer or an optimizer of Keras by its configuration and its
    weights. What lies in installed packages goes by its name, and what cannot be read (files, the clock, locks) by its
    identity.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for part in _parts(value, {}):
        hasher.update(part.encode() + b"\0")
    return hasher.hexdigest()


def _parts(value: Any, seen: Seen) -> Iterator[str]:
    """Yield text that stands for value, piece by piece."""
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__}:{value!r}"
        return
    if id(value) in seen:
        yield f"met:{seen[id(value)][0]}"
        return
    seen[id(value)] = len(seen), value
    yield type(value).__qualname__
    if isinstance(value, (np.ndarray, np.generic)):
        yield repr(digest_of(np.asarray(value)))
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _parts(member, seen)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(repr(member) for member in value)
    elif isinstance(value, (dict, types.MappingProxyType)):
        for name, member in value.items():
            yield from (*_parts(name, seen), *_parts(member, seen))
    elif not lacking(value, ("get_config", "from_config")) and not isinstance(value, type):
        yield from _parts_of_keras(value, seen)
    else:
        yield from _parts_of_code(value, seen)


def _parts_of_code(value: Any, seen: Seen) -> Iterator[str]:
    """Same as `_parts`, for what holds code, and for objects of the user's own."""
    if isinstance(value, functools.partial):
        yield from _parts([value.func, value.args, value.keywords], seen)
    elif isinstance(value, types.MethodType):
        yield from _parts([value.__func__, value.__self__], seen)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _parts(value.__func__, seen)
    elif isinstance(value, property):
        yield from _parts([value.fget, value.fset], seen)
    elif isinstance(value, (types.FunctionType, type)) and is_installed(value.__module__):
        yield f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, types.FunctionType):
        yield from _parts([value.__defaults__, value.__kwdefaults__], seen)
        yield from _parts([cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell)], seen)
        yield from _parts_of_names(value.__code__, value.__globals__, seen)
    elif isinstance(value, type):
        yield from _parts([base for base in value.__bases__ if base is not object], seen)
        for name, member in value.__dict__.items():
            if name not in NOT_READ:
                yield from (name, *_parts(member, seen))
    elif dataclasses.is_dataclass(value):
        yield from _parts([type(value), fields_of(value)], seen)
    elif is_own(value) and not lacking(value, ("__dict__",)):
        yield from _parts([type(value), value.__dict__], seen)
    elif not lacking(value, ("__wrapped__",)):  # of functools.cache or tf.function
        yield from _parts(value.__wrapped__, seen)
    else:
        yield from _parts_of_object(value, seen)


def _parts_of_keras(value: Any, seen: Seen) -> Iterator[str]:
    """Same as `_parts`, for an object of Keras: a model, a layer, an optimizer."""
    yield from _parts(type(value), seen)
    try:
        config = [value.get_config()]
        if not lacking(value, ("get_compile_config",)):
            config.append(value.get_compile_config())
    except Exception:  # Keras's own answer, where a class of the user's own does not say what it was made with
        config = [id(value)]
    weights = [] if lacking(value, ("get_weights",)) else value.get_weights()
    # A lookup that is adapted again has other words, which are neither in its configuration nor a weight.
    layers = [] if lacking(value, ("_flatten_layers",)) else value._flatten_layers()
    words = [layer.get_vocabulary() for layer in layers if not lacking(layer, ("adapt", "get_vocabulary"))]
    yield from _parts([config, weights, words], seen)


def _parts_of_object(value: Any, seen: Seen) -> Iterator[str]:
    """Same as `_parts`, for an object that only its class can read: by what a copy is made of, or by its identity."""
    try:
        made_of = value.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        parts = made_of if isinstance(made_of, str) else [_listed(part) for part in made_of]
        found = list(_parts(parts, seen))
    except Exception:  # it cannot be copied, such as a lock, or is too deep
        found = [str(id(value))]
    yield from found


def _listed(part: Any) -> Any:
    """Return a part of what an object is made of; what it holds comes as an iterator."""
    return list(part) if isinstance(part, Iterator) else part


def _parts_of_names(code: types.CodeType, names: dict[str, Any], seen: Seen) -> Iterator[str]:
    """Yield a function's code, and the globals and attributes of the user's own modules that it names."""
    yield code.co_code.hex()
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _parts_of_names(constant, names, seen)
        else:
            yield repr(constant)
    for name in code.co_names:
        member = names.get(name, sys.modules.get(name))  # imported by the function itself
        if isinstance(member, types.ModuleType):
            yield from _parts_of_module(member, code.co_names, seen)
        elif name in names:
            yield from (name, *_parts(member, seen))


def _parts_of_module(
    module: types.ModuleType, names: Sequence[str], seen: Seen, through: tuple[types.ModuleType, ...] = ()
) -> Iterator[str]:
    """Yield those attributes of a module of the user's own that have one of the names, also of modules in it.

    through: modules that it was come to through.
    """
    if module in through or is_installed(module.__name__):
        return
    for name in names:
        member = module.__dict__.get(name)
        if isinstance(member, types.ModuleType):
            yield from _parts_of_module(member, names, seen, (*through, module))
        elif name in module.__dict__:
            yield from (name, *_parts(member, seen))


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True


def is_own(value: Any) -> bool:
    """Return whether an object is of a class of the user's own."""
    return not isinstance(value, types.ModuleType) and not is_installed(type(value).__module__)


def is_installed(name: str | None) -> bool:
    """Return whether a module, by its name, is Python's, an installed package's or Umbel's."""
    module = sys.modules.get(name or "")
    if module is None or name == "__main__":
        return False
    file = module.__spec__.origin if module.__spec__ is not None else None
    if file in ("built-in", "frozen"):
        return True
    return file is not None and _is_installed_file(Path(file))


@functools.cache
def _is_installed_file(file: Path) -> bool:
    paths = sysconfig.get_paths()
    places = [Path(paths["stdlib"]), Path(paths["platstdlib"]), *(PACKAGE / name for name in _rooms())]
    return bool(INSTALLED & set(file.parts)) or any(file.is_relative_to(place) for place in places)


def _rooms() -> list[str]:
    """List Umbel's own folders, but for the tests."""
    return [place.name for place in PACKAGE.iterdir() if place.name not in ("tests", "out") and place.name[0] != "."]
