"""A process that asks a SuperLink for runs, and starts another for each: what `flower-superexec` does.

    python -m umbel.runtimes.flower.link.executor PARENT ADDRESS [--authority FILE --secret FILE]

It ends with the process PARENT, and what it started with it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

# httpx: Flower's clients raise its errors.
import httpx

from ..calls import runtime_client
from ..compat import (
    AcquireTaskRequest,
    SubStatus,
    SuperExecAuthHttpInterceptor,
    TaskType,
    start_parent_process_monitor,
    warn_of_another_release,
)
from .grid import LinkGrid

POLL_SECONDS = 0.25  # time between two questions; each costs the SuperLink
PLAY = f"{LinkGrid.__module__.rpartition('.')[0]}.play"


def execute(address: str, authority: Path | None, secret: bytes | None) -> None:
    """Start a process for every run that the SuperLink has, until this one ends."""
    methods = ["/flwr.proto.Runtime/AcquireTask"]
    proofs = [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods)] if secret else []
    client = runtime_client(address, authority, "SuperExec", proofs)
    question = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    playing: dict[subprocess.Popen, str] = {}
    while True:
        for process in [one for one in playing if one.poll() is not None]:
            _bury(process.returncode, LinkGrid(address, playing.pop(process), authority))
        reply = client.AcquireTask(question)
        if reply.HasField("task") and reply.token:
            playing[_started(address, authority, reply.token)] = reply.token
        time.sleep(POLL_SECONDS)


def _bury(status: int, grid: LinkGrid) -> None:
    """Say that a run has ended whose process could not say so itself: nobody waits until it is missed."""
    if status != 0:
        with contextlib.suppress(httpx.HTTPError):  # it has said so
            grid.end(SubStatus.FAILED, f"the process that played the run ended with status {status}", is_patient=False)


def _started(address: str, authority: Path | None, token: str) -> subprocess.Popen:
    options = [] if authority is None else ["--authority", str(authority)]
    words = [sys.executable, "-P", "-m", PLAY, str(os.getpid()), address, *options]
    process = subprocess.Popen(words, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process.stdin as line:  # not on its command line, which every user of the machine can read
        line.write(token.encode() + b"\n")
    return process


def main() -> None:
    """Ask a SuperLink for runs, with the arguments that the module describes."""
    parser = argparse.ArgumentParser(prog="umbel-executor", description="A process that starts runs.")
    parser.add_argument("parent", type=int, help="process id; when that process ends, so does this one")
    parser.add_argument("address", help="of the SuperLink, host:port")
    parser.add_argument("--authority", type=Path, help="certificates that are trusted, PEM; none: without TLS")
    parser.add_argument("--secret", type=Path, help="what it proves itself by to the SuperLink")
    options = parser.parse_args()
    start_parent_process_monitor(options.parent)
    warn_of_another_release()
    secret = None if options.secret is None else options.secret.read_bytes()
    with contextlib.suppress(KeyboardInterrupt):  # the parent has ended
        execute(options.address, options.authority, secret)


if __name__ == "__main__":
    main()
