"""Clients that divide their batches among devices of their host: the bits of a simulation that does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "from federations import federation\nfrom umbel import Scaffold\n" \
        "experiment = federation(strategy=Scaffold(), weighting='uniform')\n"  # fmt: skip
BEGINNING = """
import json, sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from umbel import Simulation, run
from umbel.core.reading.loading import load_experiment

path = sys.argv[1]

def simulated(overrides=(), **settings):
    return run(load_experiment(path, overrides), Simulation(workers=1, compile="graph", **settings)).params_sha256

MIRRORED = {"replicas": 2, "devices": ["CPU:0", "CPU:1"]}
"""
IN_PROCESS = """
from grids import ProcessGrid
from umbel.runtimes.flower import client
from umbel.runtimes.flower.runtime import FlowerRuntime

client.divide_among(2)
flower = run(load_experiment(path), FlowerRuntime(ProcessGrid(path, 8))).params_sha256
print(json.dumps([flower, simulated(**MIRRORED), simulated()]))
"""
REAL = """
from umbel.runtimes.flower.local import LocalFederation, fit_to

if __name__ == "__main__":
    overrides = fit_to(load_experiment(path), 3)
    with LocalFederation(3, memory=path + "-memory", replicas=2) as federation:
        *_, final = federation.submit(path, overrides)
    print(json.dumps([final.final["params_sha256"], simulated(overrides, **MIRRORED), simulated(overrides)]))
"""


def played(folder, script):
    """Play a script in a process of its own, since TensorFlow divides a device before its first use."""
    (folder / "small.py").write_text(SMALL)
    (folder / "script.py").write_text(BEGINNING + script)
    tests = str(Path(__file__).parents[2])
    variables = {**os.environ, "PYTHONPATH": tests, "UMBEL_CLIENT_HOME": str(folder / "clients")}
    words = [sys.executable, folder / "script.py", folder / "small.py"]
    process = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def test_flower_equals_the_simulation_with_as_many_replicas(tmp_path):
    flower, mirrored, alone = played(tmp_path, IN_PROCESS)
    assert flower == mirrored
    assert flower != alone  # to rounding: sums are in another order


@pytest.mark.deployment
def test_real_clients_divide_their_own_host(tmp_path):
    flower, mirrored, alone = played(tmp_path, REAL)
    assert flower == mirrored
    assert flower != alone
