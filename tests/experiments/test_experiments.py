"""The experiments that come with Umbel: they are what they say, small enough to read, and reach what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import umbel
from optional import needs_tenseal
from umbel import Simulation, run
from umbel.core.reading.loading import experiment_names, load_experiment, load_experiments

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
        ("mnist_dp", 199_210),
        ("mnist_secagg", 199_210),
        ("mnist_he", 199_210),
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


@pytest.mark.slow
def test_adapters_learn_what_the_body_never_saw_also_in_private():
    for experiment, accuracy in zip(load_experiments("digits_lora").values(), (0.85, 0.8), strict=True):
        history = run(experiment, Simulation(workers=1, compile="graph"))
        assert history.column("test_accuracy")[-1] > accuracy
        assert history.rounds[-1].trainable_bytes == 4 * 1349 == history.params.nbytes
        assert history.base.nbytes == 4 * 2 * (64 * 64 + 64)
    assert 7.5 < history.privacy["epsilon"] <= 8.0


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


def test_importing_private_experiments_loads_nothing_that_they_need_later():
    code = (
        "import sys; from umbel.core.reading.loading import load_experiment;"
        "[load_experiment(f'mnist_{name}') for name in ('dp', 'secagg', 'he')];"
        "print([name for name in ('dp_accounting', 'tenseal', 'tensorflow', 'keras') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@mnist
@pytest.mark.parametrize("name", ["mnist_secagg", pytest.param("mnist_he", marks=needs_tenseal)])
def test_hidden_sums_saturate_nothing_and_the_protocol_changes_no_bit(name, tmp_path):
    ends = []
    for mode in ("arithmetic", "protocol"):
        words = [name, "--set", "rounds=1", "--clients", "6", "--compile", "graph", "--aggregation", mode, "--json"]
        command = [Path(sys.executable).with_name("umbel"), "run", *words, "--store", f"sqlite:///{tmp_path}/runs.db"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        *rounds, last = [json.loads(line) for line in done.stdout.splitlines()]
        # Six clients have larger updates than a hundred, and the share itself is rounded at random.
        assert max(one["train_saturated"] for one in rounds) < 1e-5
        assert last["final"]["privacy"]["aggregation"] == mode
        ends.append(last["final"]["params_sha256"])
    assert ends[0] == ends[1]


@mnist
def test_a_private_round_is_paid_for():
    experiment = load_experiment("mnist_dp", ["rounds=2", "evaluate_every=2"])
    history = run(experiment, Simulation(compile="graph"))
    epsilon = history.column("epsilon")
    assert 0 < epsilon[0] < epsilon[1] < experiment.plan.epsilon
    assert history.final()["privacy"]["noise"] == "seeded"


@shakespeare
def test_shakespeare_has_a_client_per_speaker():
    experiment = load_experiment("shakespeare_lstm")
    speakers = experiment.population.source.groups()
    for client in (0, 100, len(experiment.population) - 1):
        assert len(np.unique(speakers[experiment.population.indices(client)])) == 1
    assert len(experiment.population) == len(np.unique(speakers))
