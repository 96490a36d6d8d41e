"""Text for what a class of a user's own does, so that a resumed run goes on with the code that it began with.

A function is known by its source, without comments, docstrings and layout: the same on every machine. Where the source
is not at hand, or no longer what runs (the file was edited meanwhile), it is known by its byte code.
"""

from __future__ import annotations
import __future__

import ast
import dataclasses
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

UMBEL = __name__.partition(".")[0]
STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
PACKAGES = {"site-packages", "dist-packages"}  # folders that hold installed packages, wherever they lie
GENERATED = "<string>"  # name of the file in which `dataclass` generates methods
FINGERPRINTS: WeakKeyDictionary[FunctionType, str] = WeakKeyDictionary()


def is_users_own(cls: type) -> bool:
    """Return whether a class is neither Python's, nor Umbel's, nor an installed package's."""
    top = cls.__module__.partition(".")[0]
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return top not in (UMBEL, "builtins") and not is_installed(file or "")


def is_installed(file: str) -> bool:
    """Return whether a file is Python's, or an installed package's."""
    path = Path(file).resolve()
    return path.is_relative_to(STANDARD) or not PACKAGES.isdisjoint(path.parts)


def functions_of(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions that make up a class, with their names; those of its bases too, if they are a user's own."""
    names = set()
    for base in filter(is_users_own, cls.__mro__):
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if name in names or not isinstance(function, FunctionType):
                continue
            names.add(name)
            if not is_generated(base, function):
                yield name, function


def is_generated(cls: type, function: FunctionType) -> bool:
    """Return whether Python made a class's function, as for a dataclass."""
    file = function.__code__.co_filename
    return is_installed(file) or (file == GENERATED and dataclasses.is_dataclass(cls) and function.__name__[:2] == "__")


def fingerprint(function: FunctionType) -> str:
    """Digest what the function does: its source, or else its byte code."""
    if function not in FINGERPRINTS:
        tree = source_of(function)
        text = repr(meaning(function.__code__)) if tree is None else ast.unparse(without_docstrings(tree))
        kind = f"code of Python {sys.version_info[0]}.{sys.version_info[1]}" if tree is None else "source"
        FINGERPRINTS[function] = f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return FINGERPRINTS[function]


def source_of(function: FunctionType) -> ast.Module | None:
    """Return the function's source, if it is that of the code which runs; else None."""
    code = function.__code__
    try:
        text = inspect.getsource(code)
        inside = text[:1].isspace()  # a method: compiled in a class, where `super()` and `__names` mean the same
        tree = ast.parse(f"class {class_name(function)}:\n{text}" if inside else text)
        flags = code.co_flags & __future__.annotations.compiler_flag
        found = code_named(compile(tree, GENERATED, "exec", flags, dont_inherit=True), code.co_name)
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    return tree if any(meaning(one) == meaning(code) for one in found) else None


def class_name(function: FunctionType) -> str:
    """Return the name of the class that a method was defined in."""
    names = function.__qualname__.split(".")
    return names[-2] if len(names) > 1 and names[-2].isidentifier() else "_"


def code_named(code: CodeType, name: str) -> Iterator[CodeType]:
    """Yield the code objects of that name within another."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                yield constant
            yield from code_named(constant, name)


def meaning(code: CodeType) -> tuple[Any, ...]:
    """Return all that tells one code from another, but for where it stands."""
    constants = [
        meaning(one)
        if isinstance(one, CodeType)
        else sorted(map(repr, one))
        if isinstance(one, frozenset)
        else repr(one)
        for one in code.co_consts
    ]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Strip a source's docstrings, in place; return it."""
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
