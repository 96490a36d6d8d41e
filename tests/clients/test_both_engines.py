"""The laws of clients and strategies hold on JAX as on TensorFlow: the same tests, in a process whose Keras is on JAX.

`make test` plays a few of them; `make test-long` all but those that tests/tensorflow.txt names.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
TESTS = Path(__file__).parents[1]
FEW = (
    "clients/test_against_keras.py::test_one_client_is_keras_fit[normalised-auto]",
    "clients/test_private_on_jax.py::test_the_sum_is_that_of_gradients_clipped_by_hand[penalised]",
    "strategies/test_ifca.py::test_one_cluster_is_fedavg_bit_for_bit",
)


def on_jax(folder, *names):
    """Return how many tests passed in a session on JAX; all have to."""
    environment = {
        **os.environ, "KERAS_BACKEND": "jax",
        # Tests build the same small models again and again: each program is compiled once for all.
        "JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *names]
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    return int(passed[1]) if passed else 0


def test_a_few_laws_hold_on_jax(tmp_path):
    assert on_jax(tmp_path, *(f"tests/{name}" for name in FEW)) == len(FEW)


@pytest.mark.long
def test_it_runs_where_there_is_no_tensorflow(tmp_path):
    """Runs, resumes, replays and reports; an audit is refused in a sentence."""
    command = [sys.executable, str(TESTS / "clients" / "without_tensorflow.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done False"
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "An audit trains, and inverts gradients, on TensorFlow alone" in done.stderr
    assert "eagerly: equal to" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize(("part", "at_least"), [("clients", 100), ("strategies", 800)])
def test_all_laws_hold_on_jax(tmp_path, part, at_least):
    assert on_jax(tmp_path, "-m", "not slow and not long", f"tests/{part}") >= at_least
