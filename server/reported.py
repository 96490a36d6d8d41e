"""The writer of `History.report`: `studies.report` is it, which the server does not import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError

Write = Callable[[Any, Path], None]  # writes the report of a History to a path
_write: Write | None = None


def use(write: Write) -> None:
    """Let reports of histories be written by this function."""
    global _write
    _write = write


def write_report(history: Any, path: str | Path) -> None:
    """Write a report of a run to a file that ends in .html. Errors: ConfigError for a path that cannot be written."""
    assert _write is not None, "umbel names the writer when it is imported"
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"expected path={str(path)!r} to end in .html")
    try:
        _write(history, target)
    except OSError as error:
        raise ConfigError(f"cannot write path={str(path)!r}: {error.strerror or error}") from error
