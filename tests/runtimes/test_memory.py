"""What is left in memory of experiments that are over: nothing that grows with their number."""

import gc
import subprocess
import sys

import keras
import numpy as np
import pytest

from engines import SOONEST
from umbel import Experiment, FixedCohort, Local, Simulation, run
from umbel.data import Arrays, Partitioned
from umbel.strategies import FedAvg

GENERATOR = np.random.default_rng(0)
EXAMPLES = Arrays(GENERATOR.normal(size=(24, 4)).astype(np.float32), GENERATOR.integers(0, 3, 24).astype(np.int32))


def play(number):
    """A run of an experiment that is like no other: its layers have names of their own."""

    def build_model():
        layers = [keras.layers.Dense(8, "relu", name=f"hidden_{number}"), keras.layers.Dropout(0.1)]
        model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3, name=f"logits_{number}")])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
        return model

    experiment = Experiment(
        name="of-many",
        model=build_model,
        population=Partitioned(EXAMPLES, clients=3),
        strategy=FedAvg(),
        sampler=FixedCohort(3),
        local=Local(epochs=1, batch_size=4),
        rounds=1,
        test=EXAMPLES,
    )
    return run(experiment, Simulation(workers=1, compile=SOONEST))


def graphs():
    """Number of graphs in memory."""
    gc.collect()
    return sum(type(value).__name__ == "FuncGraph" for value in gc.get_objects())


def test_no_graph_is_left_of_an_experiment_that_is_over():
    counts = [graphs() for number in range(4) if play(number)]
    assert counts[-1] <= counts[1], counts


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_experiments():
    """At most 20 MB from the 20th to the 200th, as graphs."""
    done = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    first, last = map(float, done.stdout.split()[-2:])
    assert last - first < 20


def resident():
    """Megabytes of memory in use, once what is free was given back."""
    import ctypes

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as pages:
        return int(pages.read().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    for number in range(200):
        play(number)
        if number in (19, 199):
            print(resident())
