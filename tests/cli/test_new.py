"""`umbel new`: what it makes runs as its README says, and nothing is written over."""

import os
import re
import shlex
import subprocess
import sys

import umbel
from umbel import data
from umbel.cli.new import EXPERIMENT, FILES


def test_what_is_made_runs_and_its_test_passes(here, folder):
    status, output, errors = here("new", "mine")
    assert (status, errors) == (0, "")
    assert "umbel run experiment.py" in output
    os.chdir("mine")
    for command in re.findall(r"^    (umbel run .*?)(?: {2,}#.*)?$", FILES["README.md"], re.M):
        status, output, errors = here(*shlex.split(command)[1:], "--set", "rounds=1", "--quiet", "--workers", "1")
        assert status == 0, (command, errors)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_names_in_the_experiment_exist():
    assert [name for name in re.findall(r"data\.(\w+)", EXPERIMENT) if name != "md" and not hasattr(data, name)] == []
    assert umbel.__version__


def test_nothing_is_written_over_and_a_name_that_is_none_is_refused(here, folder):
    (folder / "mine").mkdir()
    for name, said in (("mine", "is there already"), ("../up", "of letters, digits"), ("a b", "of letters, digits")):
        status, output, errors = here("new", name)
        assert (status, output) == (2, "")
        assert said in errors
    assert list((folder / "mine").iterdir()) == []
