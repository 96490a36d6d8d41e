"""A store that version 0.1.0 wrote (first/make.py makes it): all of it can be read, and none of its runs is resumed."""

import lzma
from pathlib import Path

import numpy as np
import pytest

from umbel import ConfigError, Experiment, FedAvg, FixedCohort, Local, Simulation, data, run
from umbel.server.store import Store

WRITTEN = Path(__file__).with_name("first") / "umbel-0.1.0.sqlite.xz"
STATES = {"plain": "finished", "remembered": "finished", "private": "finished", "paused": "paused", "failed": "stopped"}


@pytest.fixture
def store(tmp_path):
    """The store, in a place where it may be written to."""
    (tmp_path / "runs.db").write_bytes(lzma.decompress(WRITTEN.read_bytes()))
    with Store.open(f"sqlite:///{tmp_path}/runs.db") as opened:
        yield opened


def runs_by_name(store):
    """The newest run of each experiment."""
    return {summary.experiment: summary.run for summary in reversed(store.runs())}


def test_its_runs_are_listed_as_they_ended(store):
    assert {summary.experiment: summary.state for summary in store.runs()} == STATES
    assert len(store.runs()) == 6


def test_its_records_and_states_are_read(store):
    runs = runs_by_name(store)
    for name, rounds in (("plain", 3), ("remembered", 3), ("private", 3), ("paused", 2), ("failed", 0)):
        stored = store.load_run(runs[name])
        assert [record.round for record in stored.records] == list(range(1, rounds + 1))
        assert stored.server_state.round == rounds
        assert stored.server_state.params.shape == (650,)
        assert all(0 <= record.metrics["test_accuracy"] <= 1 for record in stored.records)
    assert sum(store.load_run(runs["private"]).ledger.values()) == 3


def test_its_models_are_verified_and_loaded(store):
    assert store.models.verify("plain") == 2
    assert store.models.aliases("plain") == {"production": 1}
    version, params = store.models.get("private")
    assert version.epsilon == pytest.approx(19.97, abs=0.01)
    np.testing.assert_array_equal(params, store.load_run(runs_by_name(store)["private"]).server_state.params)


def test_it_is_sound_and_a_run_is_deleted(store):
    assert store.check() == []
    store.delete_run(runs_by_name(store)["failed"])
    assert len(store.runs()) == 5


def build_model():
    raise AssertionError("no model is needed to refuse")


def test_none_of_its_runs_is_resumed(store):
    clients = data.Partitioned(data.Digits("train"), by=data.Iid(), clients=10)
    experiment = Experiment(
        name="paused", model=build_model, population=clients, strategy=FedAvg(), sampler=FixedCohort(4), rounds=3,
        local=Local(epochs=1, batch_size=32, learning_rate=0.1), test=data.Digits("test"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"is of Umbel 0\.1\.0, a preview: .* run the experiment again"):
        run(experiment, Simulation(1), store=store, resume=runs_by_name(store)["paused"])
