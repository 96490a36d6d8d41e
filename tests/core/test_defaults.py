"""What is taken for granted where nothing is said, that it is said aloud, and what can be silenced."""

import subprocess
import sys

import pytest

import umbel
from umbel import AllClients, Experiment, FedAvg, FixedCohort, Local, PrivacyPlan, Simulation, data
from umbel.core.errors import ConfigError

SCRIPT = """
import umbel
import keras
def model():
    found = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    found.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return found
clients = umbel.data.Partitioned(umbel.data.Digits("train"), by=umbel.data.Iid(), clients=4)
umbel.run(umbel.Experiment(model=model, population=clients, rounds=1){more})
"""


def build_model():
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def experiment(clients=20, **more):
    population = data.Partitioned(data.Digits("train"), by=data.Iid(), clients=clients)
    return Experiment(model=build_model, population=population, rounds=2, local=Local(learning_rate=0.1), **more)


@pytest.mark.parametrize(
    ("clients", "sampler"), [(20, FixedCohort(10)), (11, FixedCohort(10)), (10, AllClients()), (3, AllClients())]
)
def test_the_smallest_experiment_is_the_one_that_is_written_out(clients, sampler):
    short, written = experiment(clients), experiment(clients, name="experiment", strategy=FedAvg(), sampler=sampler)
    assert short.describe() == written.describe()
    assert short.assumed == {"strategy": FedAvg(), "sampler": sampler}
    assert written.assumed == {}
    assert short.strategy is None  # it keeps what it was given
    assert umbel.run(short, watchers=()).params_sha256 == umbel.run(written, Simulation(1), watchers=()).params_sha256


def test_a_plan_brings_its_sampler():
    plan = PrivacyPlan(epsilon=8.0, delta=1e-3, rounds=2, population=20, sampling_rate=0.5, clip_norm=1.0)
    one = experiment(plan=plan)
    assert one.resolved.sampler == plan.sampler
    assert one.assumed == {"strategy": FedAvg()}


def test_progress_is_shown_unless_it_is_not_wanted(capsys):
    short = experiment(4)
    umbel.run(short, Simulation(1))
    assert "by default strategy FedAvg(server_lr=1.0), sampler AllClients(), in a Simulation" in capsys.readouterr().err
    umbel.run(short, Simulation(1), progress=False)
    umbel.run(short, Simulation(1), watchers=())
    assert capsys.readouterr() == ("", "")
    umbel.run(short, Simulation(1), watchers=(), progress=True)
    assert "round 2/2" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected progress='no' to be True or False"):
        umbel.run(short, progress="no")


@pytest.mark.parametrize(("more", "lines"), [("", 3), (", progress=False", 0)])
def test_a_script_shows_what_umbel_says_and_nothing_of_tensorflow(tmp_path, more, lines):
    (tmp_path / "script.py").write_text(SCRIPT.format(more=more))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
