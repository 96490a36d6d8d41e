"""A run may start from weights: a file's or the registry's. They are part of the experiment, known by their hash."""

import json
import pickle
import shutil

import numpy as np
import pytest

from federations import dense, federation, normalised
from umbel import ConfigError, Simulation, StoreError, run
from umbel.cli.main import execute
from umbel.core.runtime import FORGETFUL
from umbel.server import StoredModel


def frozen():
    """Make a model whose first layer is not trained."""
    model = dense()
    model.layers[0].trainable = False
    return model


def wider():
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(9), keras.layers.Dense(3)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def simulation():
    return Simulation(workers=1, compile="graph")


@pytest.fixture(scope="module")
def trained(simulation, tmp_path_factory):
    """A run of one round of a model whose body is frozen; its files, and its store's URL."""
    folder = tmp_path_factory.mktemp("trained")
    url = f"sqlite:///{folder}/runs.db"
    history = run(federation(name="body", model=frozen, rounds=1), simulation, store=url, progress=False)
    for suffix in (".keras", ".npz"):
        history.save(folder / f"body{suffix}")
    history.load_into(frozen()).save_weights(folder / "body.weights.h5")
    return folder, url, history


def opened(simulation, **changes):
    found = simulation.open(federation(model=frozen, seed=9, **changes), FORGETFUL)
    return simulation.initial_params(), found.base


@pytest.mark.parametrize("kind", ["body.keras", "body.npz", "body.weights.h5", "registry"])
def test_a_run_starts_from_what_another_ended_with_frozen_weights_included(kind, trained, without, simulation):
    folder, url, history = trained
    start = StoredModel("body", 1, url) if kind == "registry" else str(folder / kind)
    params, base = opened(simulation, start=start)
    np.testing.assert_array_equal(params, history.params)
    assert base.digest == history.base.digest
    assert not np.array_equal(history.params, without)


@pytest.fixture(scope="module")
def without(simulation):
    """What the same experiment begins with of its own."""
    return opened(simulation)[0]


def test_the_start_is_in_the_description_and_resuming_checks_it(trained, simulation, tmp_path):
    folder, url, _ = trained
    assert "start" not in federation(model=frozen).describe()
    copy, store = tmp_path / "start.keras", f"sqlite:///{tmp_path}/runs.db"
    shutil.copy(folder / "body.keras", copy)
    experiment = federation(model=frozen, rounds=1, start=copy)
    said = experiment.describe()["start"]
    assert said.startswith("start.keras sha256:")
    assert pickle.loads(pickle.dumps(experiment)).describe()["start"] == said
    run(experiment, simulation, store=store, progress=False)
    longer = federation(model=frozen, rounds=2, start=str(copy))
    copy.write_bytes((folder / "body.keras").read_bytes() + b" ")
    with pytest.raises(ConfigError, match=r"start was start\.keras sha256:\w+, is now start\.keras sha256:"):
        run(longer, simulation, store=store, resume="latest", progress=False)
    with pytest.raises(ConfigError, match=r"start was start\.keras sha256:\w+, is now absent"):
        run(federation(model=frozen, rounds=2), simulation, store=store, resume="latest", progress=False)
    with pytest.raises(ConfigError, match="has changed since the run began"):
        federation(start=f"{copy} sha256:{'0' * 16}").describe()
    shutil.copy(folder / "body.keras", copy)
    assert len(run(longer, simulation, store=store, resume="latest", progress=False).rounds) == 2
    registered = StoredModel("body", "latest", url)
    assert federation(start=registered).describe()["start"].startswith("body version 1 sha256:")


def test_the_command_takes_a_start_and_finds_it_again(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    history = run(federation(rounds=1), Simulation(workers=1, compile="graph"), progress=False)
    history.save("start.npz")
    (tmp_path / "mine.py").write_text("from federations import federation\nexperiment = federation(rounds=1)\n")
    words = ["run", "mine.py", "--set", "start=start.npz", "--json", "--workers", "1"]
    assert execute(words) == 0
    first = json.loads(capfd.readouterr().out.splitlines()[0])
    assert first["train_loss"] < history.rounds[0].metrics["train_loss"]  # it begins where the other ended
    assert execute([*words[:4], "--resume", "latest", "--set", "rounds=2", "--quiet", "--workers", "1"]) == 0
    assert execute(["run", "mine.py", "--set", "start=other.npz"]) == 2
    assert "cannot read start='other.npz'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("start", "model", "said"),
    [
        ("body.keras", wider, "do not fit the model"),
        ("body.npz", wider, "do not fit the model"),
        ("body.npz", normalised, "do not fit the model: it lacks sequential"),
        ("body.weights.h5", wider, "do not fit the model"),
        ("body.txt", dense, r"ends in \.keras, \.weights\.h5, \.npz"),
        ("nowhere.keras", dense, "cannot read start="),
        ("broken.keras", dense, "do not fit the model"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_are_said(start, model, said, trained):
    folder = trained[0]
    (folder / "broken.keras").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match=said) as caught:
        federation(start=str(folder / start)).start.load_into(model())
    assert "\n" not in str(caught.value)


def test_a_version_that_is_not_there_is_said(trained, simulation):
    with pytest.raises(StoreError, match="has no version 7"):
        run(federation(start=StoredModel("body", 7, trained[1])), simulation, progress=False)
    with pytest.raises(ConfigError, match=r"to be a value such as 'pretrained.keras'"):
        federation(start=3)
