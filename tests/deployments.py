"""A federation of real processes that tests share, and how to look into it."""

import contextlib
import time
from pathlib import Path

import numpy as np

from umbel.deploy.kits import OperatorKit

CLIENTS = ("north", "south", "west")
SIZES = (40, 60, 50)
EXPERIMENT = """
import numpy as np
from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import OnDevice

def build_model():
    import keras
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

experiment = Experiment(
    name="mine", model=build_model, population=OnDevice(3, (np.zeros((1, 4), "f4"), np.zeros(1, "i8")), most=60),
    strategy=FedAvg(), sampler=FixedCohort(3), local=Local(epochs=1, batch_size=10), rounds=1,
)
"""


PARITY = """
from umbel import Experiment, FedAvg, FedBuff, FixedCohort, Local, Scaffold, TopK
from umbel.data import Arrays, LogNormal, Partitioned
import numpy as np

def build_model():
    import keras
    layers = [keras.Input((8,)), keras.layers.Dense(12, "relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

generator = np.random.default_rng(0)
y = generator.integers(0, 3, 120).astype("int32")
x = (np.eye(8, dtype="float32")[y] + generator.normal(size=(120, 8))).astype("float32")
common = dict(
    model=build_model, population=Partitioned(Arrays(x, y), by=LogNormal(sigma=0.4), clients=3), rounds=3,
    sampler=FixedCohort(3), local=Local(epochs=2, batch_size=8, learning_rate=0.05), weighting="uniform",
)
experiments = {
    "scaffold": Experiment(name="scaffold", strategy=Scaffold(), **common),
    "fedbn": Experiment(name="fedbn", strategy=FedAvg(), personal=("batch_normalization",), codec=TopK(0.2), **common),
    "fedbuff": Experiment(name="fedbuff", strategy=FedBuff(2), personal=("batch_normalization",), **common),
}
"""


def wait_for(condition, seconds=60, every=0.2):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every)


def children(process):
    """Return {command line: process} of what a process started."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found[(entry / "cmdline").read_text().replace("\0", " ")] = int(entry.name)
    return found


def has_begun(log, since):
    """Tell whether a worker has begun to train, by its log from byte `since` on."""
    return b"train: begun" in log.read_bytes()[since:]


def connection(fed):
    kit = OperatorKit.load(fed / "operator")
    return kit.address, kit.authority.read_bytes(), kit.token, len(kit.clients)


def write_kits(fed, experiments):
    """Give each client of a folder of kits its own examples, and every party the files {name: text}."""
    random = np.random.default_rng(0)
    for name, size in zip(CLIENTS, SIZES, strict=True):
        kit = fed / "clients" / name
        np.savez(kit / "data.npz", x=random.normal(size=(size, 4)).astype("f4"), y=random.integers(0, 2, size))
        policy = (kit / "policy.toml").read_text()
        policy = policy.replace('# source = "/data/patients.npz"', f'source = "{kit}/data.npz"')
        if name == "west":
            policy = policy.replace("max_rounds = 10000", "max_rounds = 16")  # all runs of a file together
        (kit / "policy.toml").write_text(policy)
    for file, text in experiments.items():
        for party in ("server", *(f"clients/{name}" for name in CLIENTS)):
            (fed / party / "experiments" / file).write_text(text)
        (fed.parent / file).write_text(text)
