"""Modules beside an experiment's file: its imports find them, as `python FILE.py` does, and no other file's imports do.

Each file has a name of its own in `sys.modules`, and what lies beside it is loaded below that name. An `import` in the
file, or in a module beside it, looks there first, also one that is executed long after, when a model is built. So two
files in one process may each have a `nets.py`. `from . import nets` works as well, and in a package's subfolder
`from .. import nets`. `importlib.import_module` looks there for relative names: `import_module(".nets", __package__)`.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

UMBEL = __name__.partition(".")[0]
FOLDER = Path(__file__).resolve().parents[2]
PREFIX = f"{UMBEL}_experiment_"


class Place(NamedTuple):
    """The folders in which a file's imports look first, and the names under which they load what they find."""

    name: str  # name of the file's module, and of the package that stands for the outermost folder
    folders: tuple[Path, ...]  # the file's own folder, and for a file in a package the one that the package lies in
    packages: tuple[str, ...]  # the names below which modules of these folders are loaded

    @staticmethod
    def of(path: Path) -> Place:
        """Find the place of an absolute path."""
        # The digest keeps two files of one stem apart, and a file apart from any installed module of its name.
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        name = f"{PREFIX}{path.stem}_{digest}"
        root = path.parent
        while (root / "__init__.py").is_file() and root not in (FOLDER, root.parent):
            root = root.parent
        inner = path.parent.relative_to(root).parts
        if not inner:
            return Place(name, (root,), (name,))
        if root == FOLDER:  # one of Umbel's own files, whose relative imports are Umbel's
            return Place(name, (path.parent,), (".".join([UMBEL, *inner]),))
        return Place(name, (path.parent, root), (".".join([name, *inner]), name))

    def private_name(self, name: str) -> str | None:
        """Return the name of the module beside the file that `import name` means; None where it means another."""
        top = name.partition(".")[0]
        if top == UMBEL:
            return None
        for folder, package in zip(self.folders, self.packages, strict=True):
            spec = PathFinder.find_spec(f"{package}.{top}", [str(folder)])
            # A folder without __init__.py is a package only where there is no other of that name, as in Python.
            if spec is not None and (spec.origin is not None or not is_installed(top)):
                return f"{package}.{name}"
        return None


def is_installed(name: str) -> bool:
    """Return whether an import of a top-level name finds a module without any place's help."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def run_file(path: Path) -> ModuleType:
    """Run the file at an absolute path as a module, with what lies beside it loaded anew.

    Errors: whatever it raises; then the modules of an earlier run of it stay.
    """
    place = Place.of(path)
    before = forget(place)
    module = ModuleType(place.name)
    module.__file__ = str(path)
    module.__package__ = place.packages[0]
    module.__path__ = [str(place.folders[-1])]
    vars(module)["__builtins__"] = builtins_at(place)
    sys.modules[place.name] = module
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    arguments = sys.argv
    sys.argv = [str(path)]  # as for `python FILE.py`: a parser of the file's own is not to read `umbel run`
    try:
        exec(compiled(path.read_bytes(), str(path)), vars(module))
    except BaseException:
        forget(place)
        sys.modules.update(before)
        raise
    finally:
        sys.argv = arguments
    return module


def forget(place: Place) -> dict[str, ModuleType]:
    """Take a file's module, and those beside it, out of `sys.modules`; return them by name."""
    names = [name for name in sys.modules if name == place.name or name.startswith(f"{place.name}.")]
    return {name: sys.modules.pop(name) for name in names}


def file_of(module: str) -> str | None:
    """Return the experiment's file that a module was loaded for, or is; None for any other module."""
    return getattr(sys.modules.get(module.partition(".")[0]), "__file__", None) if module.startswith(PREFIX) else None


def builtins_at(place: Place) -> dict[str, Any]:
    """Return Python's builtins, with an `import` that looks at a place first."""
    return {**vars(builtins), "__import__": partial(import_at, place)}


def import_at(
    place: Place,
    name: str,
    globals: Any = None,
    locals: Any = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Same as `builtins.__import__`, but for what lies at the place."""
    private = place.private_name(name) if level == 0 else None
    if private is None:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    module = builtins.__import__(private, globals, locals, fromlist or ("",))
    top = private.removesuffix(name) + name.partition(".")[0]
    return module if fromlist else sys.modules[top]  # `import a.b` binds a


def compiled(source: bytes, path: str) -> CodeType:
    """Compile a file's source, past the byte-code cache.

    It misses an edit within a second that keeps the file's size.
    """
    return compile(source, path, "exec", dont_inherit=True)


class Loader(SourceFileLoader):
    """Loader of a module that lies beside a file."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source as it is now."""
        path = self.get_filename(fullname)
        return compiled(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, with imports that find what the file's find."""
        file = Path(str(file_of(module.__name__)))
        vars(module)["__builtins__"] = builtins_at(Place.of(file))
        super().exec_module(module)


class Finder:
    """Finder of modules below the names of experiments' files."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec, with our loader where it is Python source."""
        if not fullname.startswith(PREFIX) or path is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(fullname, spec.loader.path)
        return spec
