"""Processors of this machine."""

from __future__ import annotations

import os


def processors() -> int:
    """Return the number of processors that this process may run on; where that is not said, of all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
