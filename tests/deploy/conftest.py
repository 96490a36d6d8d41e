"""Kits and processes of a federation on this machine."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from umbel.deploy import kits
from umbel.runtimes.flower.processes import free_ports

COMMAND = [sys.executable, "-c", "from umbel.cli import main; main()"]
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
    kits.make(tmp_path / "fed", "127.0.0.1", None, ["north", "south"], free_ports(1)[0])
    return tmp_path / "fed"


@pytest.fixture(scope="module")
def folder():
    """A folder for a module's federation."""
    path = Path(tempfile.mkdtemp(prefix="umbel-deploy-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
