"""Words of version 0.1.0 that are taken for one version more, each with a DeprecationWarning that says the new one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from ..traits import Trait

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# Attributes of a part that became Traits: the old attribute, the member that holds the Trait, and what True stood for.
FLAGS = {
    "needs_individual_updates": ("needs", Trait.EACH_UPDATE | Trait.ALL_UPDATES),
    "same_round_only": ("needs", Trait.SAME_ROUND),
    "by_coordinate": ("hides", Trait.WHOLE_UPDATE),
}


def take_flags(part: type) -> None:
    """Turn a new class's old attributes into the Traits that they stand for, so that none is passed over in silence."""
    for word, (member, trait) in FLAGS.items():
        if part.__dict__.get(word) is True:
            warnings.warn(f"{part.__name__}.{word} is {member} = {trait} now", DeprecationWarning, stacklevel=4)
            setattr(part, member, _with(inspect.getattr_static(part, member), trait))


def _with(before: Any, trait: Trait) -> property:
    """Make a property that returns what a member was before, and the trait besides."""

    def joined(part: Any) -> Trait:
        value: Trait = before.__get__(part) if isinstance(before, property) else before
        return value | trait

    return property(joined)


def taking(**words: str) -> Callable[[type[T]], type[T]]:
    """Decorate a dataclass so that it takes fields by the names they had. words: {old: new}; "a.b": the field b of a.

    A field given by both names, as by `dataclasses.replace`, has the value of the old one, which was asked for last.
    """

    def decorated(kind: type[T]) -> type[T]:
        made = kind.__init__

        @functools.wraps(made)
        def taken(self: T, *values: Any, **fields: Any) -> None:
            for old in words.keys() & fields.keys():
                warn_of(kind, old, words[old])
                _put(kind, fields, words[old], fields.pop(old))
            made(self, *values, **fields)

        for old, new in words.items():
            setattr(kind, old, property(functools.partial(_read, kind, old, new)))
        kind.__init__ = taken  # type: ignore[assignment]
        OLD_FIELDS[kind] = words
        return kind

    return decorated


def taking_arguments(**words: str) -> Callable[[F], F]:
    """Decorate a function so that it takes keyword arguments by the names they had. words: {old: new}."""

    def decorated(function: F) -> F:
        @functools.wraps(function)
        def taken(*values: Any, **arguments: Any) -> Any:
            for old in words.keys() & arguments.keys():
                warn_of(function, old, words[old])
                arguments[words[old]] = arguments.pop(old)
            return function(*values, **arguments)

        return cast(F, taken)

    return decorated


def moved(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's `__getattr__` for names that it had, taken with a warning.

    names: {name: module it is in now}.
    """

    def read(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(f"{package}.{name} is {names[name]}.{name} now", DeprecationWarning, stacklevel=2)
        return importlib.import_module(names[name]).__dict__[name]

    return read


OLD_FIELDS: dict[type, Mapping[str, str]] = {}  # {decorated class: {old name: new name}}


def warn_of(taker: Callable[..., Any], old: str, new: str) -> None:
    """Warn of the old name of a class's field, or of a function's argument."""
    warnings.warn(f"{old} of {taker.__name__} is {new} now", DeprecationWarning, stacklevel=3)


def _read(kind: type, old: str, new: str, value: object) -> Any:
    """Return the value of a field that was called `old`."""
    warn_of(kind, old, new)
    return operator.attrgetter(new)(value)


def in_new_words(kind: type, described: Mapping[str, str]) -> dict[str, str]:
    """Rename the fields in a stored description of a value of that class, from old names to today's."""
    words = OLD_FIELDS.get(kind, {})
    parted = ((path.partition("."), text) for path, text in described.items())
    return {"".join((words.get(first, first), *rest)): text for (first, *rest), text in parted}


def renamed(value: object, name: str) -> list[str]:
    """Return the path from value that a field's name stands for: the name, or for an old one the new, and warn."""
    new = OLD_FIELDS.get(type(value), {}).get(name)
    if new is None:
        return [name]
    warn_of(type(value), name, new)
    return new.split(".")


def _put(kind: Any, fields: dict[str, Any], path: str, value: Any) -> None:
    """Set a field, or a field of a field's default, among those that a class is made with."""
    name, _, inner = path.partition(".")
    if inner:
        default = next(field.default for field in dataclasses.fields(kind) if field.name == name)
        value = dataclasses.replace(fields.get(name, default), **{inner: value})
    fields[name] = value
