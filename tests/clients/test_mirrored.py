"""One client on several devices, in a process of its own: TensorFlow divides a device before its first use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from federations import dense, federation, normalised
from umbel import ConfigError, Local, PerExample, Simulation, run
from umbel.clients.tensorflow.devices import shared_out
from umbel.clients.tensorflow.engine import TensorFlowEngine
from umbel.strategies import SplitFed

# Batches of 5 on two devices: 3 and 2, a last one of 1 to 4, once of a single example.
SCRIPT = """
import json
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
import keras
from federations import CLASSES, FEATURES, adam, blobs, dense, federation
from umbel import FedProx, FixedCohort, Local, Scaffold, Simulation, data, run

def compiled(model, optimizer, loss, **settings):
    model.compile(optimizer, loss, **settings)
    return model

def regularised():
    penalty = keras.regularizers.L2(0.01)
    hidden = keras.layers.Dense(8, "tanh", kernel_regularizer=penalty, activity_regularizer=penalty)
    model = keras.Sequential([hidden, keras.layers.Dense(CLASSES, kernel_regularizer=penalty)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5)
    return compiled(model, optimizer, loss, weighted_metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(
        from_logits=True)])

def averaged(y, predicted):
    return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, predicted, from_logits=True)) ** 2

def by_itself():
    return compiled(dense(), "sgd", averaged)

def two_outputs():
    x = keras.Input((FEATURES,))
    y = keras.layers.Embedding(9, 4)(keras.layers.Lambda(lambda x: tf.cast(tf.abs(x[:, :2]), tf.int32))(x))
    hidden = keras.layers.Dense(8, "relu")(keras.layers.Concatenate()([keras.layers.Flatten()(y), x]))
    outputs = {"a": keras.layers.Dense(CLASSES, name="a")(hidden), "b": keras.layers.Dense(1, name="b")(x)}
    outputs["not trained"] = keras.layers.Dense(1, name="idle")(x)
    model = keras.Model(x, outputs)
    summed = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    losses, weights = {"a": summed, "b": "mse", "not trained": None}, {"a": 1.0, "b": 0.3, "not trained": 0.0}
    return compiled(model, "adam", losses, loss_weights=weights, metrics={"a": ["accuracy"], "b": ["mae"]})

def weighted(count, seed):
    x, y = blobs(count, seed)
    return x, y, np.random.default_rng(seed).random(count).astype(np.float32)

def labelled(count, seed):
    x, y = blobs(count, seed)
    return x, {"a": y, "b": x.sum(1, keepdims=True), "not trained": x[:, :1]}

plain = data.PerClient([blobs(count, count) for count in (11, 12, 5, 3, 1)])
variants = {
    "weights and penalties": {"model": regularised, "population": data.PerClient(
        [weighted(count, count) for count in (11, 12, 5, 3, 1)])},
    "a loss that averages by itself": {"model": by_itself},
    "two outputs": {"model": two_outputs, "population": data.PerClient([labelled(9, 1), labelled(4, 2)]),
                    "sampler": FixedCohort(2)},
    "FedProx": {"strategy": FedProx(0.5), "local": Local(epochs=2, batch_size=None, learning_rate=0.1)},
    "Scaffold": {"strategy": Scaffold(), "personal": ("dense_1",)},
}
found = {}
for name, changes in variants.items():
    experiment = federation(**{"population": plain, "sampler": FixedCohort(3), "rounds": 2, "test": None} | changes)
    one = run(experiment, Simulation(1, "graph"))
    two = run(experiment, Simulation(replicas=2, devices=["CPU:0", "CPU:1"], debug=name == "FedProx"))
    pairs = [(a.metrics[key], b.metrics[key]) for a, b in zip(one.rounds, two.rounds) for key in a.metrics]
    found[name] = [
        float(np.abs(one.params - two.params).max() / np.abs(one.params).max()),
        max(abs(a - b) / (abs(a) + 1e-3) for a, b in pairs),
    ]
experiment = federation(model=adam, rounds=1, test=None)
three = Simulation(workers=2, replicas=2, devices=["CPU:1", "CPU:2"])
history = run(experiment, three)
shared = three._team[0].prototype.training.shared
print(json.dumps({
    "found": found,
    "workers": run(experiment, Simulation(1, replicas=2, devices=["CPU:1", "CPU:2"])).params_sha256
               == history.params_sha256,
    "placed": sorted({value.device[-5:] for weight in shared for value in weight.value.values}),
}))
"""


@pytest.fixture(scope="module")
def found():
    """What a process with three logical devices found."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_devices_compute_what_one_does(found):
    """To rounding: uneven parts, single examples, weights, penalties, losses and rules of every kind; metrics too."""
    assert len(found["found"]) == 5
    for name, (params, metrics) in found["found"].items():
        assert params < 1e-4, name
        assert metrics < 1e-4, name


def test_copies_lie_on_their_devices_whatever_the_number_of_workers(found):
    assert found["placed"] == ["CPU:1", "CPU:2"]
    assert found["workers"]


def test_devices_are_shared_out():
    four = ["GPU:0", "GPU:1", "GPU:2", "GPU:3", "GPU:4"]
    assert shared_out(four, 2) == [("GPU:0", "GPU:1"), ("GPU:2", "GPU:3")]
    assert shared_out(four, 5) == [tuple(four)]
    with pytest.raises(ConfigError, match=r"replicas=2 needs as many devices, got CPU:0\..*logical_device"):
        run(federation(), Simulation(replicas=2))


def without_a_loss():
    hidden = keras.layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1))
    model = keras.Sequential([keras.Input((6,)), hidden])
    model.compile("sgd")
    return model


def custom():
    class Own(keras.Sequential):
        def train_step(self, batch):
            return super().train_step(batch)

    model = Own([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": normalised}, r"'batch_normalization' would normalise by each device's part of a batch"),
        ({"model": lambda: dense(dropout=0.4)}, r"draws random numbers"),
        ({"model": without_a_loss}, r"Sequential is compiled without a loss"),
        ({"model": custom}, r"Own has a train_step of its own"),
        (
            {"local": Local(per_example=PerExample(1.0, 1.0))},
            r"PerExample.* trains on one device",
        ),
        ({"strategy": SplitFed("dense")}, r"SplitFed.* trains on one device"),
    ],
)
def test_what_does_not_divide(changes, message):
    with pytest.raises(ConfigError, match=message):
        TensorFlowEngine(federation(**changes), replicas=["CPU:0", "CPU:0"])


def test_xla_is_refused():
    with pytest.raises(ConfigError, match=r"replicas=2 are compiled as a graph"):
        Simulation(replicas=2, compile="xla")
