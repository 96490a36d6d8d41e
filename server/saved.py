"""The writer of `History.save`: `studies.export` is it, which the server does not import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Save = Callable[[Any, Path, str | None], None]  # writes a History's model to a path in a format; None: by its name
_save: Save | None = None


def use(save: Save) -> None:
    """Let models of histories be saved by this function."""
    global _save
    _save = save


def save_model(history: Any, path: str | Path, format: str | None) -> None:
    """Save a run's model: see `History.save`."""
    assert _save is not None, "umbel names the writer when it is imported"
    _save(history, Path(path), format)
