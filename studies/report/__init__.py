"""A report of runs for reviewers and auditors: one HTML file, without a script, that needs nothing beside it."""

from collections.abc import Sequence
from pathlib import Path

from ...server import reported
from .contents import Contents, of_history, of_run, read_findings

__all__ = ["Contents", "of_history", "of_run", "read_findings", "register", "write"]


def write(contents: Sequence[Contents], path: Path) -> None:
    """Write a report of one or more runs to a file. Errors: OSError where it cannot be written."""
    from .page import page

    path.write_text(page(contents), encoding="utf-8")


def register() -> None:
    """Let `History.report` write reports."""
    reported.use(lambda history, path: write([of_history(history)], path))
