"""Examples that are on devices: found by a variable there, and nowhere else."""

import numpy as np
import pytest

from umbel import ConfigError, Experiment, FedAvg, FixedCohort, Simulation, run
from umbel.data import OnDevice

LIKE = (np.zeros((1, 3), "f4"), np.zeros(1, "i8"))


@pytest.fixture
def device(tmp_path, monkeypatch):
    """Put arrays on this device."""

    def put(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        monkeypatch.setenv("UMBEL_CLIENT_DATA", str(tmp_path / "data.npz"))

    monkeypatch.delenv("UMBEL_CLIENT_DATA", raising=False)
    return put


def test_every_client_finds_its_own_file(device):
    x, y = np.arange(6, dtype="f4").reshape(2, 3), np.array([1, 0])
    device(x=x, y=y)
    population = OnDevice(3, LIKE, most=2)
    for client in range(3):
        own = population.examples(client)
        np.testing.assert_array_equal(own.x, x)
        np.testing.assert_array_equal(own.y, y)
    np.testing.assert_array_equal(population.sizes(), [2, 2, 2])


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x": np.zeros((3, 3), "f4"), "y": np.zeros(3, "i8")}, "holds 3 examples, expected 1 to 2"),
        ({"x": np.zeros((0, 3), "f4"), "y": np.zeros(0, "i8")}, "holds 0 examples"),
        ({"x": np.zeros((2, 4), "f4"), "y": np.zeros(2, "i8")}, "client 1 has"),
        ({"x": np.zeros((2, 3), "?"), "y": np.zeros(2, "i8")}, "client 1 has"),
        ({"x": np.zeros((2, 3), "f4")}, "holds no array 'y'"),
        ({"x": np.array([None, None]), "y": np.zeros(2, "i8")}, "Python objects"),
    ],
)
def test_what_is_not_like_the_sample_is_refused(device, arrays, complaint):
    device(**arrays)
    with pytest.raises(ConfigError, match=complaint):
        OnDevice(3, LIKE, most=2).examples(1)


def test_a_simulation_has_no_examples_to_train_on(device):
    """A blank sample must not be trained on in their place."""

    def build_model():
        import keras

        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    population = OnDevice(2, LIKE, most=2)
    experiment = Experiment(
        name="mine", model=build_model, population=population, strategy=FedAvg(), sampler=FixedCohort(2), rounds=1
    )
    with pytest.raises(ConfigError, match="are on its clients: umbel client start KIT --data"):
        run(experiment, Simulation(workers=1, compile="graph"))


def test_a_sample_is_one_example():
    with pytest.raises(ConfigError, match="expected like to be one example, got 2"):
        OnDevice(2, (np.zeros((2, 3)), np.zeros(2)), most=2)
