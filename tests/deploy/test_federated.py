"""An experiment that is submitted is found by every party, as it is here; or the error says what to do."""

import hashlib
from dataclasses import replace

import pytest

from umbel import ConfigError, FedAdam, override
from umbel.core.reading.loading import load_experiment, source_digest
from umbel.core.types import RoundRecord
from umbel.deploy.federated import Flower, follow, locate
from umbel.server.events import Finished, RoundDone, Started

FILE = "from federations import federation\ndef model():\n    pass\nexperiment = federation(model=model)\n"


@pytest.fixture
def file(tmp_path):
    """A file of an experiment whose model is its own."""
    (tmp_path / "small.py").write_text(FILE)
    return tmp_path / "small.py"


def assert_found(experiment, place, settings):
    assert override(load_experiment(place), settings).describe() == experiment.describe()
    assert override(load_experiment(place), settings).rounds == experiment.rounds


def test_what_can_be_named_is_found_with_its_settings(file, tmp_path):
    """One of Umbel's own, a file by its model, a file of the kit by its name; each also when settings were changed."""
    for given, place in [("digits_fedavg", "digits_fedavg"), (str(file), str(file))]:
        experiment = load_experiment(given)
        assert locate(experiment, None, tmp_path / "none") == (place, [])
        changed = override(experiment, ["seed=7", "rounds=9", "local.epochs=3", "strategy.server_lr=0.5"])
        found, settings = locate(changed, None, tmp_path / "none")
        assert found == place
        assert len(settings) == 4
        assert_found(changed, found, settings)
    elsewhere = load_experiment(str(file))
    elsewhere.model.__module__ = "__main__"  # as a notebook's
    assert locate(elsewhere, None, tmp_path) == (str(file), [])
    assert locate(elsewhere, "small.py", tmp_path) == (str(file), [])


def test_what_exists_in_a_notebook_alone_is_refused_with_the_remedy(file, tmp_path):
    experiment = load_experiment(str(file))
    experiment.model.__module__ = "__main__"
    with pytest.raises(ConfigError, match=r"%%writefile small\.py.* experiments of every kit.*Flower\(kit, \"small"):
        locate(experiment, None, tmp_path / "none")
    with pytest.raises(ConfigError, match="there is no file"):
        locate(experiment, str(tmp_path / "other.py"), tmp_path)


def test_a_change_that_no_setting_makes_is_named(file, tmp_path):
    changed = replace(load_experiment(str(file)), strategy=FedAdam(0.01))
    with pytest.raises(
        ConfigError, match=r"small' is not the one of .*small\.py: strategy is FedAdam here, and FedAvg"
    ):
        locate(changed, None, tmp_path)


def test_what_is_no_kit_is_said_before_anything_is_begun(tmp_path, file):
    from umbel import run

    with pytest.raises(ConfigError, match="is no kit of an operator: make kits"):
        run(load_experiment(str(file)), Flower(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["small.py"]


def test_of_a_store_that_is_elsewhere_all_is_shown_that_was_told():
    """As where the operator's host has not the server's store: said before the first round; the model is not there."""
    experiment, record = (
        load_experiment("digits_fedavg"),
        RoundRecord(1, 3, 0, {"train_loss": 0.5}, 0.1, None, 1, 1, None),
    )
    final = {"run": "r1", "params_sha256": "ab", "model_version": 4, "rounds": 2, "seconds": 0.2}

    def told():
        yield Started(None, None, "r1", (record,))
        yield RoundDone(record._replace(round=2), [])
        yield Finished(final, None)

    notice, started, _, finished = follow(told(), experiment, None)
    assert "is not reached from here" in notice.text
    assert started.experiment is experiment
    history = finished.history
    assert ([one.round for one in history.rounds], history.final()) == ([1, 2], final)
    assert (history.run, history.model_version, history.params_sha256) == ("r1", 4, "ab")
    with pytest.raises(ConfigError, match="in the store of the federation's server, which is not reached from here"):
        history.load_into(None)


def test_a_file_is_known_by_its_bytes(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("experiment = 1\n")
    assert source_digest(str(file)) == source_digest(f"{file}:one") == hashlib.sha256(b"experiment = 1\n").hexdigest()
    assert source_digest("digits_fedavg") == source_digest(str(tmp_path / "other.py")) == ""
