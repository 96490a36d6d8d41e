"""Published results, from the data sets in $UMBEL_DATA: a short look by default, the whole claim with `-m slow`."""

import dataclasses
import os
from pathlib import Path

import pytest

from umbel import Simulation, run
from umbel.core.reading.loading import load_experiment

DATA = Path(os.environ.get("UMBEL_DATA", "."))
needs_mnist = pytest.mark.skipif(not (DATA / "mnist.npz").is_file(), reason="mnist.npz is not in $UMBEL_DATA")
needs_shakespeare = pytest.mark.skipif(
    not (DATA / "shakespeare.txt").is_file(), reason="shakespeare.txt is not in $UMBEL_DATA"
)

PARAMETERS = {"mnist_2nn": 199_210, "mnist_2nn_shards": 199_210, "mnist_cnn": 1_663_370, "mnist_cnn_shards": 1_663_370}

# McMahan et al. 2017, table 2 (E = 1, B = 10, C = 0.1), and the rounds within which Umbel must get there.
TARGETS = [
    ("mnist_2nn", 0.97, 60),
    ("mnist_2nn_shards", 0.97, 400),
    ("mnist_cnn", 0.99, 45),
    ("mnist_cnn_shards", 0.99, 525),
]


@needs_mnist
@pytest.mark.parametrize("name", PARAMETERS)
def test_published_setting(name):
    experiment = load_experiment(name)
    assert experiment.model().count_params() == PARAMETERS[name]
    assert (len(experiment.population), experiment.sampler.size) == (100, 10)
    assert (experiment.local.epochs, experiment.local.batch_size) == (1, 10)
    assert set(experiment.population.sizes()) == {600}


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_cnn_shards"])
def test_a_round_of_the_large_models_trains(name):
    history = run(dataclasses.replace(load_experiment(name), rounds=1), Simulation(workers=2))
    assert history.column("test_accuracy")[-1] > 0.2


@needs_mnist
def test_mnist_is_learnt_in_three_rounds():
    history = run(dataclasses.replace(load_experiment("mnist_2nn"), rounds=3, evaluate_every=3), Simulation())
    assert history.column("test_accuracy")[-1] > 0.85


@pytest.mark.slow
@needs_shakespeare
def test_shakespeare_loss_falls():
    experiment = load_experiment("shakespeare_lstm")
    history = run(dataclasses.replace(experiment, rounds=3, evaluate_every=3), Simulation())
    losses = history.column("train_loss")
    assert losses[-1] < losses[0] < 4.6  # ln 87, a uniform guess, is 4.47


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize(("name", "target", "rounds"), TARGETS)
def test_target_is_reached(name, target, rounds):
    experiment = load_experiment(name)
    history = run(dataclasses.replace(experiment, rounds=max(rounds, experiment.rounds)), Simulation())
    reached = history.rounds_to(target)
    assert reached is not None
    assert reached <= rounds


@needs_mnist
def test_the_private_setting_is_the_published_one():
    experiment = load_experiment("mnist_dp")
    assert len(experiment.population) == experiment.plan.population == 1000
    assert (experiment.plan.epsilon, experiment.plan.delta) == (8.0, 1e-5)
    assert experiment.rounds == experiment.plan.rounds


@pytest.mark.slow
@needs_mnist
def test_accuracy_is_kept_within_the_budget():
    """Geyer et al. 2017: 92 % with 1,000 clients at ε = 8, δ = 1e-5."""
    history = run(load_experiment("mnist_dp"), Simulation(compile="xla"))
    assert history.column("test_accuracy")[-1] >= 0.90
    assert history.final()["privacy"]["epsilon"] <= 8
