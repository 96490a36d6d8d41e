"""The experiments that come with Umbel: they are what they say, small enough to read, and reach what they promise."""

import os
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel import Simulation, run
from umbel.core.loading import experiment_names, load_experiment

FOLDER = Path(umbel.__file__).parent / "experiments"
mnist = pytest.mark.skipif(
    not Path(os.environ.get("UMBEL_DATA", "/nowhere"), "mnist.npz").is_file(), reason="no mnist.npz in $UMBEL_DATA"
)
shakespeare = pytest.mark.skipif(
    not Path(os.environ.get("UMBEL_DATA", "/nowhere"), "shakespeare.txt").is_file(),
    reason="no shakespeare.txt in $UMBEL_DATA",
)


@pytest.mark.parametrize("name", experiment_names())
def test_each_is_named_after_its_file_and_fits_a_screen(name):
    assert load_experiment(name).name == name
    assert len((FOLDER / f"{name}.py").read_text("utf-8").splitlines()) <= 60


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("digits_fedavg", 65 * 64 + 65 * 10),
        ("mnist_2nn", 199_210),  # the figures of McMahan et al. 2017
        ("mnist_2nn_shards", 199_210),
        ("mnist_cnn", 1_663_370),
        ("mnist_cnn_shards", 1_663_370),
        # Embedding, two LSTMs of four gates each, softmax.
        ("shakespeare_lstm", 87 * 8 + 4 * 256 * (8 + 256 + 1) + 4 * 256 * (256 + 256 + 1) + 257 * 87),
    ],
)
def test_models_have_the_published_number_of_parameters(name, parameters):
    assert load_experiment(name).model().count_params() == parameters


def test_the_default_reaches_93_percent_within_60_rounds():
    experiment = load_experiment("digits_fedavg")
    assert (len(experiment.population), experiment.rounds) == (100, 60)
    history = run(experiment, Simulation(compile="graph"))
    assert history.rounds_to(0.93) is not None
    assert history.column("test_accuracy")[-10:].min() > 0.9


@mnist
@pytest.mark.parametrize("model", ["2nn", "cnn"])
def test_mnist_is_shared_as_published(model):
    iid, shards = (load_experiment(f"mnist_{model}{kind}").population for kind in ("", "_shards"))
    labels = iid.resident().y
    assert set(iid.sizes()) == set(shards.sizes()) == {600}
    assert min(len(np.unique(labels[iid.indices(client)])) for client in range(100)) == 10
    # Two shards of one digit each, or of two where a shard lies on the border between digits.
    kinds = [len(np.unique(labels[shards.indices(client)])) for client in range(100)]
    assert (np.median(kinds), max(kinds) <= 4) == (2, True)


@shakespeare
def test_shakespeare_has_a_client_per_speaker():
    experiment = load_experiment("shakespeare_lstm")
    speakers = experiment.population.source.groups()
    for client in (0, 100, len(experiment.population) - 1):
        assert len(np.unique(speakers[experiment.population.indices(client)])) == 1
    assert len(experiment.population) == len(np.unique(speakers))
