"""Measurement of one contender on one model, in a fresh interpreter."""

from __future__ import annotations

import json
import os
import queue
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from umbel.benchmarks.environments import HERE, InstallError, interpreter

WARM_UP = 2  # number of rounds left out: tracing, compiling, starting actors
TIMEOUT_SECONDS = 300

# Every contender alike: CPU only, byte-compiled packages, no telemetry, nothing asked of the network.
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "JAX_PLATFORMS": "cpu",
    "PYTHONDONTWRITEBYTECODE": "",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Contender:
    """A program in `contenders/`, the environment it runs in (None: Umbel's), and the models it plays."""

    title: str
    script: str
    environment: str | None = None
    models: tuple[str, ...] = ("mlp", "cnn")
    backend: str = "tensorflow"  # Keras's


class Run(NamedTuple):
    """One run in one process."""

    seconds: tuple[float, ...]  # seconds of each round after warm-up
    first_round: float  # seconds from the start of the process to the end of its first round
    accuracy: float  # accuracy on the test set, after the last round
    note: str | None


class Result(NamedTuple):
    """All runs of one contender on one model; reason says why there is none."""

    runs: tuple[Run, ...]
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """Seconds per round: the median over all rounds of all runs."""
        return statistics.median(second for run in self.runs for second in run.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest round."""
        rounds = [second for run in self.runs for second in run.seconds]
        return min(rounds), max(rounds)

    @property
    def first_round(self) -> float:
        """The better first round of the runs: the first may have had to read everything from disk."""
        return min(run.first_round for run in self.runs)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the runs."""
        return statistics.fmean(run.accuracy for run in self.runs)

    @property
    def note(self) -> str:
        """Choices that the contender says it made."""
        return ", ".join(sorted({run.note for run in self.runs if run.note}))


class RunFailed(Exception):
    """A contender that exited early, hung or could not be installed; why, in a line."""


def measure(contender: Contender, model: str, rounds: int) -> Run:
    """Run a contender once. Errors: RunFailed."""
    try:
        python = interpreter(contender.environment)
    except InstallError as error:
        raise RunFailed(f"not installed: {error}") from error
    script = HERE / "contenders" / f"{contender.script}.py"
    command = [str(python), str(script), "--model", model, "--rounds", str(rounds)]
    lines = list(_reports(command, contender.backend))
    if len(lines) != rounds or lines[-1][1]["accuracy"] is None:
        raise RunFailed(f"reported {len(lines)} of {rounds} rounds")
    seconds = tuple(line["seconds"] for _, line in lines[WARM_UP:])
    _, last = lines[-1]
    return Run(seconds, lines[0][0], last["accuracy"], last["note"])


def measure_scale() -> dict[str, Any]:
    """Run `scale.py` in a fresh interpreter: a million clients. Errors: RunFailed."""
    lines = list(_reports([str(interpreter(None)), str(HERE / "scale.py"), "--json"]))
    if not lines:
        raise RunFailed("printed no result")
    return lines[-1][1]


def _reports(command: Sequence[str], backend: str = "tensorflow") -> Iterator[tuple[float, dict]]:
    """Yield (seconds since the process began, report) for each JSON line it prints. Errors: RunFailed."""
    environment = {**os.environ, **QUIET, "KERAS_BACKEND": backend}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryFile("w+") as complaints:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment, start_new_session=True
        )
        arrived: queue.Queue[tuple[float, str] | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, began, arrived), daemon=True).start()
        try:
            while True:
                left = began + TIMEOUT_SECONDS - time.perf_counter()
                line = arrived.get(timeout=max(left, 0.01))
                if line is None:
                    break
                if line[1].startswith("{"):
                    yield line[0], json.loads(line[1])
            code = process.wait(timeout=60)
        except (queue.Empty, subprocess.TimeoutExpired):
            raise RunFailed(f"no end after {TIMEOUT_SECONDS} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if code:
            complaints.seek(0)
            raise RunFailed(_last_error(complaints.read()) or f"exited with {code}")


def _read(process: subprocess.Popen, began: float, arrived: queue.Queue) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        arrived.put((time.perf_counter() - began, line))
    arrived.put(None)


def _last_error(complaints: str) -> str:
    """Return the last line that names an exception, else the last line, at most 200 characters."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0]]
    return (named or lines or [""])[-1][:200]
