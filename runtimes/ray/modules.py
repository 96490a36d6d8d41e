"""Code of the user's own, which no other machine can import: it travels with the experiment."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

UMBEL = __name__.partition(".")[0]
PACKAGES = {"site-packages", "dist-packages"}


class Travelling:
    """Modules whose classes and functions are pickled by what they are, not by their names, until `end`."""

    def __init__(self) -> None:
        self._modules: list[ModuleType] = []

    def begin(self) -> None:
        """Let the code of all modules travel that are not installed; those imported since, if it did before."""
        from ray import cloudpickle

        known = cloudpickle.list_registry_pickle_by_value()
        new = [module for module in own_modules() if module.__name__ not in known]
        for module in new:
            cloudpickle.register_pickle_by_value(module)
        self._modules += new

    def end(self) -> None:
        """Let none travel any more that did not before."""
        from ray import cloudpickle

        for module in self._modules:
            with contextlib.suppress(ValueError):  # it was taken out by somebody else
                cloudpickle.unregister_pickle_by_value(module)
        self._modules.clear()


def own_modules() -> list[ModuleType]:
    """List the modules that are in files outside of Python's own folders, and not Umbel's."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        is_named = name == getattr(module, "__name__", None) and name.partition(".")[0] not in (UMBEL, "__main__")
        if file is not None and is_named and not is_installed(Path(file)):
            found.append(module)
    return found


def is_installed(file: Path) -> bool:
    """Return whether a module's file is one of Python's own, or of a package that was installed."""
    if PACKAGES.intersection(file.parts):  # also those of another environment, which a link may lead to
        return True
    folders = {Path(path) for path in sysconfig.get_paths().values()}
    return any(file.is_relative_to(folder) or file.resolve().is_relative_to(folder.resolve()) for folder in folders)
