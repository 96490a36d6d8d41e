"""TensorFlow's start-up, without what its C++ libraries print before they can be told not to."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

LEVEL_VARIABLE = "TF_CPP_MIN_LOG_LEVEL"  # 0 asks for the whole log
NATIVE_LOG = re.compile(
    rb"WARNING: All log messages before absl|[IW]\d{4} [\d:.]+ +\d+ \S+\.(cc|h):\d+\]|To enable the foll"
)


@contextmanager
def without_native_logs() -> Iterator[None]:
    """Keep TensorFlow's C++ log off standard error while it is imported; all else printed meanwhile comes after.

    Does nothing with TF_CPP_MIN_LOG_LEVEL=0, which asks for the whole log, and where there is no standard error.
    """
    if os.environ.setdefault(LEVEL_VARIABLE, "3") == "0":
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        shown = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            hidden.seek(0)
            os.write(2, b"".join(line for line in hidden if not NATIVE_LOG.match(line)))


def import_quietly(package: str = "tensorflow") -> None:
    """Let a package that is not imported yet be imported without its native log, whoever imports it."""
    if package not in sys.modules and not any(isinstance(finder, _Quietly) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Quietly(package))


class _Quietly(MetaPathFinder):
    """Finds one package as others would, once, and has its import wrapped."""

    def __init__(self, package: str):
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Same as in Python: None for every other package."""
        if fullname != self._package:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_quietly(module: ModuleType) -> None:
            with without_native_logs():
                execute(module)

        spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec
