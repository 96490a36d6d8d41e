"""Devices, in a process of their own: TensorFlow divides a device before its first use or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from federations import adam, federation
from umbel import Simulation, run
one = run(federation(model=adam), Simulation(workers=1))
two = Simulation(workers=3, devices=["CPU:0", "CPU:1"])
history = run(federation(model=adam), two)
print(json.dumps({
    "same": one.params_sha256 == history.params_sha256,
    "devices": [worker.device for worker in two._team],
    "placed": [worker.model.weights[0].value.device[-5:] for worker in two._team],
    "threads": tf.config.threading.get_intra_op_parallelism_threads(),
}))
"""


def test_workers_share_out_two_logical_devices():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["devices"] == ["CPU:0", "CPU:1", "CPU:0"]
    assert found["placed"] == ["CPU:0", "CPU:1", "CPU:0"]
    assert found["threads"] == 1
