"""Kits and processes of a federation on this machine."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deployments import CLIENTS, EXPERIMENT, children, wait_for, write_kits
from umbel.deploy import federation, kits
from umbel.deploy.supervisor import process_of
from umbel.runtimes.flower.processes import free_ports

COMMAND = [sys.executable, "-m", "umbel"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("UMBEL_")}


@pytest.fixture(scope="session")
def command():
    """Run the `umbel` command to its end, in a folder and an environment without Umbel's variables."""
    return _run


def _run(folder, *words, **variables):
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=folder,
        env={**CLEAN, "PYTHONDONTWRITEBYTECODE": "", **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def fed(tmp_path):
    """Kits of a server, two clients and the operator; nothing runs."""
    kits.make(tmp_path / "fed", "127.0.0.1", None, ["north", "south"], free_ports(1)[0], seal=True)
    return tmp_path / "fed"


@pytest.fixture(scope="module")
def running():
    """A federation that runs: three clients, each with its own data, and west with a narrow policy.

    It ends with each file: one that nobody uses any more takes a third of a processor from the tests after it.
    """
    folder = Path(tempfile.mkdtemp(prefix="umbel-deploy-"))
    kits.make(folder / "fed", "127.0.0.1", None, CLIENTS, free_ports(1)[0])
    write_kits(folder / "fed", {"mine.py": EXPERIMENT})
    federation.up(folder / "fed", lambda text: None)
    processes = [process_of(party.state) for party in federation.parties(folder / "fed")]
    assert None not in processes
    yield folder / "fed"
    assert federation.stop(folder / "fed") == ["server", "north", "south", "west"]
    wait_for(lambda: not any(children(process) for process in processes))
    assert federation.stop(folder / "fed") == []
    shutil.rmtree(folder, ignore_errors=True)
