"""docs/deploy.md, followed word for word: the commands of its first section, as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import umbel
from umbel.runtimes.flower.processes import free_ports

pytestmark = pytest.mark.deployment

PAGE = Path(umbel.__file__).parent / "docs" / "deploy.md"


@pytest.fixture
def commands():
    """The page's shell block."""
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M)
    return [shlex.split(line) for line in block.splitlines()]


def test_the_page_works_as_it_is_written(commands, tmp_path, command):
    """On a port of this test's own, by the variable that the option --port reads."""
    assert [words[1:3] for words in commands][:3] == [["deploy", word] for word in ("init", "up", "status")]
    (port,) = free_ports(1)
    said = {}
    try:
        for words in commands:
            assert words[0] == "umbel"
            done = command(tmp_path, *words[1:], UMBEL_PORT=str(port))
            assert done.returncode == 0, (words, done.stderr)
            said[" ".join(words[1:3])] = done.stdout
    finally:
        subprocess.run([sys.executable, "-m", "umbel", "deploy", "stop", tmp_path / "fed"])
    assert "all clients are connected" in said["deploy up"]
    assert re.findall(r"^(\w+) +online", said["deploy status"], re.M) == ["north", "south", "west"]
    assert "finished" in said["runs --store"]
    assert said["deploy stop"] == "ended: server, north, south, west\n"


def test_every_command_and_setting_of_the_page_exists(command, tmp_path):
    text = PAGE.read_text("utf-8")
    groups = set(re.findall(r"umbel ((?:deploy|server|client) [a-z]+)", text))
    assert {"deploy init", "deploy renew", "server start", "client start", "client digest"} <= groups
    for words in sorted(groups):
        assert command(tmp_path, *words.split(), "--help").returncode == 0, words
    from umbel.clients.policy import SECTIONS

    named = {name for row in re.findall(r"^\| `[a-z]+\.(.*?) \|", text, re.M) for name in re.findall(r"\w+", row)}
    assert {name for section in ("limits", "privacy") for name in SECTIONS[section]} <= named
