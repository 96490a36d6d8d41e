"""Crash points: how tests kill a process at a named instruction. Silent unless UMBEL_CRASH_AT names the point."""

from __future__ import annotations

import os
import signal


def crash_point(name: str, round: int) -> None:
    """Kill this process (SIGKILL) when UMBEL_CRASH_AT is "name:round": no cleanup runs, as with a power cut."""
    if os.environ.get("UMBEL_CRASH_AT") == f"{name}:{round}":
        os.kill(os.getpid(), signal.SIGKILL)
