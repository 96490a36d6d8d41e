"""Ray clusters that tests start, each in a folder of its own, and what they share otherwise."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbel import data
from umbel.runtimes.ray.crew import Crew

OPEN = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}


@contextlib.contextmanager
def cluster(nodes: int, cpus: int = 1, **settings: Any) -> Iterator[Any]:
    """Start a head that has no processors, and nodes beside it, all on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="umbel-test-", dir="/tmp")
    patch = pytest.MonkeyPatch()
    for name, value in OPEN.items():
        patch.setenv(name, value)
    # It would leave a note on this machine that another process's plain ray.init() follows.
    patch.setattr("ray._private.utils.write_ray_address", lambda *arguments: None)
    try:
        head = {"num_cpus": 0, "temp_dir": folder, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes):
                made.add_node(num_cpus=cpus, **settings)
            made.wait_for_nodes()
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
    finally:
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


def signal_in_mid_round(patch: pytest.MonkeyPatch, number: int, sent: signal.Signals = signal.SIGKILL) -> list[int]:
    """Send a signal to a host as it begins a call to train, the `number`-th one; return where its process is noted."""
    begin, hit = Crew.begin, []
    calls = iter(range(1 << 30))

    def begin_and_hit(self, member, job, place, queue):
        begin(self, member, job, place, queue)
        if job.method == "train" and next(calls) == number and not hit:
            hit.append(member.process)
            os.kill(member.process, sent)

    patch.setattr(Crew, "begin", begin_and_hit)
    return hit


def processes_with(text: str) -> list[str]:
    """List the command lines of this machine's processes that have text in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [words] if text in words else []
    return found


def wait_until(holds: Any, seconds: float) -> bool:
    """Wait until something holds; return whether it does."""
    until = time.monotonic() + seconds
    while not (does := holds()) and time.monotonic() < until:
        time.sleep(0.2)
    return bool(does)


def embedded() -> Any:
    """Make a model that takes words 0 to 4, and fails with any other."""
    import keras

    layers = [keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 2), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def words(unknown_to: int) -> data.PerClient:
    """Make six clients, one of which has a word that `embedded` does not know."""
    generator = np.random.default_rng(0)
    clients = []
    for client in range(6):
        x = generator.integers(0, 5, (4, 3)).astype(np.int32)
        x[2, 1] = 9 if client == unknown_to else x[2, 1]
        clients.append((x, generator.integers(0, 2, 4).astype(np.int32)))
    return data.PerClient(clients)
