"""Umbel on a Ray cluster of this machine, two processes of one thread: the same experiment, and the same bits."""

from __future__ import annotations

import contextlib
import os

from umbel_simulation import WORKERS, main

from umbel import Ray

if __name__ == "__main__":
    os.environ.setdefault("RAY_worker_niceness", "0")
    with contextlib.closing(Ray(workers=WORKERS)) as ray:
        main(ray)
