"""Dotted overrides: `strategy.server_lr=0.5` applied to an Experiment, typed, with "did you mean"."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

from ..errors import ConfigError
from ..validation import fields_of, require, shown, suggest
from .old_words import renamed

if TYPE_CHECKING:
    from ..experiment import Experiment

T = TypeVar("T")


def override(value: T, assignments: Sequence[str]) -> T:
    """Return a copy of a (nested) dataclass with `path=text` assignments applied, left to right.

        override(experiment, ["local.learning_rate=0.1", "rounds=5"])

    Parameters
    ----------
    value
        An Experiment, or another dataclass; it stays as it is.
    assignments
        Settings as `--set` takes them. Text is read by the field's type: numbers, true/false, none, quoted or bare
        strings, (tuples).

    Raises
    ------
    ConfigError
        For a malformed assignment, an unknown path (with the nearest name) or a text of another type.
    """
    require(
        isinstance(assignments, (list, tuple)),
        f"expected assignments={shown(assignments)} to be a list of key=value, such as ['rounds=5']",
    )
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"expected key=value, got {assignment!r}")
        value = _replace(value, path.strip().split("."), text.strip(), path.strip())
    return value


def fit_to(experiment: Experiment, clients: int, members: int | None = None) -> list[str]:
    """Return overrides under which experiment has `clients` clients, and samples no more of them than there are.

    members: number of clients that are still there, where others left for good; None: all. Errors: ConfigError for a
    population of another number of clients that cannot be divided anew.
    """
    found = []
    if len(experiment.population) != clients:
        found = [f"population.clients={clients}"]
        try:
            experiment = override(experiment, found)
        except ConfigError as error:
            raise ConfigError(
                f"cannot divide {experiment.population!r} among {clients} clients ({error}); it has "
                f"{len(experiment.population)}"
            ) from error
    size = experiment.resolved.sampler.cohort_size
    most = clients if members is None else members
    if experiment.sampler is not None and size is not None and size > most:
        found.append(f"sampler.size={most}")
    return found


def settings_of(experiment: Experiment, description: Mapping[str, str]) -> list[str]:
    """Return the overrides that lead from experiment to a stored description, as far as `--set` can go."""
    found: list[str] = []
    current = experiment.describe()
    for path in paths(experiment):
        before = description.get(path)
        if before is not None and before != current.get(path):
            with contextlib.suppress(ConfigError):  # a part of another type: resuming will name it
                experiment = override(experiment, [f"{path}={before}"])
                found.append(f"{path}={before}")
    return found


def paths(value: Any, prefix: str = "") -> list[str]:
    """List every dotted path that `override` accepts for value."""
    found = []
    parts = fields_of(value) if dataclasses.is_dataclass(value) else {}
    for field in _settable(value):
        part = parts[field.name]
        found.append(prefix + field.name)
        if dataclasses.is_dataclass(part):
            found.extend(paths(part, f"{prefix}{field.name}."))
    return found


def _settable(value: Any) -> list[dataclasses.Field]:
    is_instance = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return [field for field in dataclasses.fields(value) if field.init] if is_instance else []


def _replace(value: Any, names: list[str], text: str, path: str) -> Any:
    """Return value with the field at `names` set from text."""
    name, *rest = [*renamed(value, names[0]), *names[1:]]
    known = [field.name for field in _settable(value)]
    if name not in known:
        depth = path.split(".")[: -len(names)]
        where = ".".join(depth)
        if not known:
            raise ConfigError(f"unknown key {path!r}: {where}={value!r} has no settings")
        raise ConfigError(f"unknown key {path!r}: {suggest(name, known)}" + (f" (in {where})" if where else ""))
    current = fields_of(value, name)[name]
    if rest:
        return dataclasses.replace(value, **{name: _replace(current, rest, text, path)})
    module = vars(sys.modules[type(value).__module__])
    hint = typing.get_type_hints(type(value), module).get(name, Any)
    return dataclasses.replace(value, **{name: _typed(text, hint, path)})


def _typed(text: str, hint: Any, path: str) -> Any:
    """Read text as a value of type `hint`."""
    candidates = _read(text)
    for option in _options(hint):
        for candidate in candidates:
            if option is float and type(candidate) is int:
                return float(candidate)
            if _is_of(candidate, option):
                return candidate
    options = [option for option in _options(hint) if _can_be_typed(option)] or _options(hint)
    names = " or ".join(sorted({_name(option) for option in options}))
    raise ConfigError(f"expected {path}={text} to be {names}")


def _read(text: str) -> list[Any]:
    """List the values that text may mean: a Python literal first, then the bare string."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return [words[text.lower()], text]
    try:
        return [ast.literal_eval(text), text]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [text]


def _options(hint: Any) -> list[Any]:
    """List the plain types of a hint: members of a union, numbers before strings."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return sorted((one for part in typing.get_args(hint) for one in _options(part)), key=lambda one: one is str)
    return [hint]


def _is_of(value: Any, option: Any) -> bool:
    origin = typing.get_origin(option)
    if origin is Literal:
        return value in typing.get_args(option)
    if option is Any:
        return True
    if origin is tuple:
        member = typing.get_args(option)[0]
        return isinstance(value, tuple) and all(_is_of(part, member) for part in value)
    if option in (int, float, str, bool, type(None)):
        return type(value) is option
    return False


def _can_be_typed(option: Any) -> bool:
    return typing.get_origin(option) in (Literal, tuple) or option in (int, float, str, bool, type(None))


def _name(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    return "none" if option is type(None) else getattr(option, "__name__", str(option))
