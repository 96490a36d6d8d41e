"""Any value of an experiment as text: what is logged, hashed and compared."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import random
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np

from ..validation import callable_name, fields_of, lacking
from .fingerprint import fingerprint, functions_of, is_users_own

BARE = ("builtins", "typing", "abc", __name__.partition(".")[0])  # top packages of base classes that hold nothing
FUNCTIONS = (type, FunctionType, BuiltinFunctionType, MethodType, partial)


def describe(path: str, value: Any, flat: dict[str, str], above: tuple[int, ...] = ()) -> None:
    """Add value, found at a dotted path, to a flat description.

    A value of a class of the user's own is described by its attributes and by what its methods do. above: identities of
    the objects that it is an attribute of.
    """
    inside = partial(describe, flat=flat, above=(*above, id(value)))
    if id(value) in above:
        flat[path] = "itself"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        flat[path] = type(value).__qualname__
        parts = fields_of(value)
        for part in dataclasses.fields(value):
            if part.compare:
                inside(f"{path}.{part.name}", parts[part.name])
        flat |= methods(path, type(value))
    elif isinstance(value, np.ndarray):
        content = hashlib.blake2b(np.ascontiguousarray(value).view(np.uint8).data, digest_size=8).hexdigest()
        flat[path] = f"{value.dtype}{list(value.shape)} {content}"
    elif isinstance(value, dict):
        for name, part in value.items():
            inside(f"{path}.{name}", part)
    elif isinstance(value, (tuple, list)):
        flat[path] = f"{type(value).__name__} of {len(value)}"
        for position, part in enumerate(value):
            inside(f"{path}.{position}", part)
    elif not lacking(value, ("get_weights", "to_json")) and not isinstance(value, type):
        flat[path] = f"{type(value).__qualname__} {_digest_of_model(value)}"  # a Keras model, in place of its builder
    elif not isinstance(value, type) and not lacking(value, ("describe",)):
        flat[path] = value.describe()
    elif is_plain(value):
        flat[path] = type(value).__qualname__
        for name, part in attributes(value).items():
            inside(f"{path}.{name}", part)
        flat |= methods(path, type(value))
    else:
        flat[path] = text_of(value)


def is_plain(value: Any) -> bool:
    """Say whether value is known by its attributes: an object of a user's own class, no base of which is installed."""
    if isinstance(value, (*FUNCTIONS, enum.Enum)) or not is_users_own(type(value)):
        return False
    return all(is_users_own(cls) or cls.__module__.partition(".")[0] in BARE for cls in type(value).__mro__)


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes that an object holds, by name."""
    held = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held[name] = getattr(value, name)
    return dict(sorted(held.items()))


def methods(path: str, cls: type) -> dict[str, str]:
    """Return fingerprints of what the methods of a user's own class do, each at its path."""
    return {f"{path}.{name}()": fingerprint(function) for name, function in functions_of(cls)}


def text_of(value: Any) -> str:
    """Describe a value that has no parts, as text.

    An object that has neither attributes to compare nor a text of its own has its address in it: no two are equal.
    """
    state = generator_state(value)
    if state is not None:
        return f"{type(value).__qualname__} {hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"
    if callable(value):
        return callable_name(value, type(value).__qualname__)
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__} of {sorted(map(repr, value))}"
    return type(value).__qualname__ if type(value).__module__ == "_thread" else repr(value)


def generator_state(value: Any) -> Any:
    """Return the present state of a random generator; None for anything else."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return value.getstate() if isinstance(value, random.Random) else None


def _digest_of_model(model: Any) -> str:
    """Digest a Keras model's architecture and weights, hex."""
    hasher = hashlib.blake2b(model.to_json().encode(), digest_size=8)
    for weight in model.get_weights():
        hasher.update(np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
