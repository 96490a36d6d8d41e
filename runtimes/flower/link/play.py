"""A process that plays one run, below the executor that started it.

    python -m umbel.runtimes.flower.link.play PARENT ADDRESS [--authority FILE]

It reads its token from its input, where no other user of the machine can see it. It plays Umbel's own ServerApp,
whatever the archive of the run names: which code runs is not the submitter's choice.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

# httpx: Flower's clients raise its errors.
import httpx

from ..compat import SubStatus, start_parent_process_monitor
from ..server import app
from .grid import LinkGrid

log = logging.getLogger(__name__)

FAILURE = 1


def play(grid: Any) -> int:
    """Play the task of a grid, and say how it ended; return the exit status."""
    try:
        app(grid, grid.begin())
    except KeyboardInterrupt:  # stopped, or the parent has ended
        with contextlib.suppress(httpx.HTTPError):
            grid.end(SubStatus.FAILED, "the process that played the run was asked to end", is_patient=False)
        return FAILURE
    except Exception as error:
        log.exception("the run failed")
        grid.end(SubStatus.FAILED, f"{type(error).__name__}: {error}")
        return FAILURE
    grid.end(SubStatus.COMPLETED, "")
    return 0


def main() -> None:
    """Play a run, with the arguments that the module describes."""
    parser = argparse.ArgumentParser(prog="umbel-play", description="A process that plays one run.")
    parser.add_argument("parent", type=int, help="process id; when that process ends, so does this one")
    parser.add_argument("address", help="of the SuperLink, host:port")
    parser.add_argument("--authority", type=Path, help="certificates that are trusted, PEM; none: without TLS")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name != "flwr")  # Flower writes its own lines
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request
    token = sys.stdin.readline().strip()
    start_parent_process_monitor(options.parent)
    sys.exit(play(LinkGrid(options.address, token, options.authority)))


if __name__ == "__main__":
    main()
