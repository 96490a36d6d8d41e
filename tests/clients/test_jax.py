"""Keras on JAX: many clients in one step. It equals the TensorFlow engine to rounding, client by client.

Each backend has a process of its own: `jax_cases.py` plays a case there, and writes what came of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")
pytestmark = pytest.mark.filterwarnings("ignore")
CASES = Path(__file__).parent / "jax_cases.py"


def play(folder, backend, *cases):
    """Play cases in a process with that backend; return what each came to."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, str(CASES), str(folder), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return tmp_path_factory.mktemp("initial")


@pytest.fixture(scope="module")
def tensorflow(initial):
    return play(initial, "tensorflow", "default")


@pytest.fixture(scope="module")
def jax(initial, tensorflow):  # after it: it begins with the weights that TensorFlow drew
    return play(initial, "jax", "default", "alone", "summed", "refusals", "outputs")


@pytest.fixture(scope="module")
def more(initial):
    return play(initial, "tensorflow", "rest"), play(initial, "jax", "rest", "resume")


@pytest.mark.parametrize("case", ["scaffold", "per_example"])
def test_both_engines_agree_on_uneven_clients(initial, tensorflow, jax, case):
    """With DP-SGD: on the same batches, clipped alike, and the same noise."""
    assert_agree(initial, case, tensorflow, jax)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sgd", "batch_norm", "adam", "proximal_own", "cohort_of_many"])
def test_both_engines_agree(initial, more, case):
    assert_agree(initial, case, *more)


def assert_agree(initial, case, tensorflow, jax):
    on_tensorflow, on_jax = (np.load(initial / f"{case}-{backend}.npy") for backend in ("tensorflow", "jax"))
    assert on_jax.shape == on_tensorflow.shape
    assert np.abs(on_jax - on_tensorflow).max() <= 1e-5 * max(1.0, np.abs(on_tensorflow).max())
    assert np.abs(on_jax - np.load(initial / f"{case}-start.npy")).max() > 1e-2
    for name, value in tensorflow[case].items():
        assert jax[case][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_losses_of_single_outputs_are_those_of_fit(jax):
    """Keras on JAX weighs them by a batch's size; in TensorFlow's graphs each batch counts 1."""
    assert {"train_one_loss", "train_two_loss", "train_two_accuracy", "test_one_loss"} <= set(jax["outputs"])
    for name, (ours, theirs) in jax["outputs"].items():
        assert ours == pytest.approx(theirs, rel=1e-5), name


def test_a_client_is_what_it_is_alone_whoever_else_is_in_its_block(jax):
    assert jax["alone"]["same_bits_among_others"]
    assert jax["alone"]["largest_difference_alone"] <= 1e-6


def test_a_failing_client_leaves_its_neighbours_bits_alone(jax):
    assert jax["alone"]["failed"] == ["non_finite"]
    assert jax["alone"]["same_bits_beside_a_failure"]


def test_a_sum_on_the_device_has_the_bits_of_one_by_one_on_any_number_of_lanes(jax):
    """Metrics, failures and bytes too, of uneven clients, of whom one is not finite."""
    assert jax["summed"]["streamed failures"] == 1
    assert jax["summed"]["streamed"] == [True, True]
    assert jax["summed"]["resident"] == [True, True]


def test_the_model_is_never_written_and_tensorflow_never_imported(jax):
    assert jax["alone"]["model_is_as_built"]
    assert not jax["alone"]["tensorflow_is_imported"]


def test_few_programs_are_compiled(jax):
    assert jax["alone"]["programs"] <= jax["alone"]["batch_size"] + 3


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_and_keeps_its_block(more):
    _, jax = more
    assert jax["resume"]["same_bits"]
    assert jax["resume"]["choices"]["backend"] == "jax"
    assert int(jax["resume"]["choices"]["block"]) == jax["resume"]["block"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("split", "cuts the model in two"),
        ("replicas", "replicas=2 divide"),
        ("devices", "devices=['CPU:0'] are TensorFlow's names"),
        ("optimizer", "DeltaSGD computes on TensorFlow alone"),
        ("frozen later", "compile it after trainable is set"),
        ("whole model", "Whole models are exported on TensorFlow alone"),
        ("resumed", "the run began with Keras on tensorflow, and this is jax: set KERAS_BACKEND=tensorflow"),
        ("graph", "compile='graph' is TensorFlow's"),
        ("train_step", "is written for TensorFlow"),
        ("text", "are no numbers"),
        ("label", "client 1: label 3 is out of range: the model has 3 outputs"),
        ("validation", "label 3 is out of range: the model has 3 outputs"),
        ("row", "client 1: x has the number 5, and sequential/embedding has 5 rows"),
        ("row of a subclass", "client 1: x has the number 5, and looking/table has 5 rows: 0 to 4"),
        ("flower", "Clients over Flower train on TensorFlow alone"),
    ],
)
def test_what_is_not_carried_is_refused_in_a_sentence(jax, what, says):
    assert says in jax["refusals"][what]
    assert "\n" not in jax["refusals"][what]
