"""A client's round is played again bit for bit: what a cohort sent is by how much the model moved."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from federations import blobs, federation
from umbel import AllClients, ConfigError, IncompatibleError, PrivacyPlan, SecureSum, Simulation, data, run
from umbel.cli.main import execute
from umbel.server.store import Store
from umbel.studies.replay import replay

x, y = blobs(24)
TWO = data.PerClient([(x[:10], y[:10]), (x[10:], y[10:])])  # both take part in each round
EXPERIMENT = federation(name="mine", population=TWO, sampler=AllClients())


class Interrupts:
    def on_start(self, *_):
        pass

    def on_round(self, record, failures):
        if record.round == 2:
            raise KeyboardInterrupt

    on_end = on_start


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a run of three rounds, and before it the same run, paused after the second."""
    folder = tmp_path_factory.mktemp("replayed")
    with Store.open(f"sqlite:///{folder}/runs.db") as opened:
        simulation = Simulation(workers=1, compile="graph")
        with pytest.raises(KeyboardInterrupt):
            run(EXPERIMENT, simulation, store=opened, watchers=[Interrupts()])
        run(EXPERIMENT, simulation, store=opened, progress=False)
        simulation.close()
        yield opened


def paused(store):
    return next(one.run for one in store.views.overviews() if one.state == "paused")


def test_what_a_cohort_sent_is_by_how_much_the_model_moved(store):
    marks = store.views.marks()
    first, second = (replay(EXPERIMENT, store, "latest", round=2, client=one, workers=1) for one in (0, 1))
    later = replay(EXPERIMENT, store, "latest", round=3, client=0, workers=1)
    weights = np.array([one.sent.weight for one in (first, second)])
    mean = (weights @ np.stack([first.sent.delta, second.sent.delta])) / weights.sum()
    np.testing.assert_allclose(later.params - first.params, mean, atol=1e-6)
    assert first.is_checked
    assert later.is_checked
    for one in (first, second, later):
        assert one.difference <= 1e-6
        assert np.linalg.norm(one.sent.delta) > 0.01
    assert sorted(first.deltas()) == sorted(
        f"sequential/{name}" for name in ("dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias")
    )
    # The round after the last that is stored begins from the stored state, and is the same client's same work.
    same = replay(EXPERIMENT, store, paused(store), round=3, client=0, workers=1)
    np.testing.assert_array_equal(same.sent.delta, later.sent.delta)
    assert not same.is_checked
    assert store.views.marks() == marks  # the store was read alone
    assert store.views.details(paused(store)).overview.state == "paused"


def test_a_round_that_comes_to_other_numbers_is_not_the_runs(store, monkeypatch):
    stored = store.load_run("latest")
    other = stored.records[0]._replace(metrics={**stored.records[0].metrics, "train_loss": 0.5})
    changed = dataclasses.replace(stored, records=[other, *stored.records[1:]])
    monkeypatch.setattr(store, "load_run", lambda run: changed)
    with pytest.raises(ConfigError, match=r"round 1 comes to other numbers than run .*, train_loss: it was"):
        replay(EXPERIMENT, store, "latest", round=2, client=0, workers=1)


@pytest.mark.parametrize(
    ("changes", "round", "error", "said"),
    [
        ({}, 5, ConfigError, "has 3 rounds; round=5 was not played"),
        ({"seed": 9}, 2, ConfigError, "seed was 1, is now 9"),
        ({"secure_aggregation": SecureSum(limit=4.0)}, 2, IncompatibleError, "SecureSum keeps single updates"),
        (
            {
                "plan": PrivacyPlan(epsilon=8.0, delta=1e-3, rounds=3, population=2, sampling_rate=1.0, clip_norm=1.0),
                "sampler": None,
            },
            2,
            IncompatibleError,
            "PrivacyPlan keeps single updates",
        ),
    ],
)
def test_what_is_nobodys_to_see_or_was_not_played_is_refused(store, changes, round, error, said):
    with pytest.raises(error, match=said):
        replay(dataclasses.replace(EXPERIMENT, **changes), store, "latest", round=round, client=0)


FILE = """
from federations import blobs, federation
from umbel import AllClients, data
x, y = blobs(24)
two = data.PerClient([(x[:10], y[:10]), (x[10:], y[10:])])
experiment = federation(name="mine", population=two, sampler=AllClients())
"""


def test_the_command_prints_and_keeps_what_was_sent(store, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    words = ["replay", "latest", "--round", "2", "--client", "1", "--experiment", "mine.py", "--workers", "1"]
    assert execute([*words, "--store", store.address, "-o", "sent.npz", "--json"]) == 0
    row = json.loads(capfd.readouterr().out)
    with np.load("sent.npz") as arrays:
        deltas = {name.removeprefix("delta/"): arrays[name] for name in arrays.files if name.startswith("delta/")}
    assert row["norms"] == pytest.approx({name: np.linalg.norm(array) for name, array in deltas.items()})
    assert row["checked"] is True
    assert execute([*words[:4], "--client", "9", *words[6:], "--store", store.address]) == 2
    assert "client 9 did not take part in round 2; those who did: 0, 1" in capfd.readouterr().err


def test_the_command_plays_a_whole_run_and_says_where_it_is_another(store, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    words = ["replay", "latest", "--experiment", "mine.py", "--workers", "1", "--store", store.address]
    assert execute([*words, "--json"]) == 0
    row = json.loads(capfd.readouterr().out)
    stored = store.load_run("latest")
    assert (row["rounds"], row["landings"]) == (3, 0)
    assert row["params_sha256"] == hashlib.sha256(stored.server_state.params.tobytes()).hexdigest()
    assert execute([*words, "--round", "2"]) == 2
    assert "expected both --round and --client" in capfd.readouterr().err
    moved = stored.server_state._replace(params=stored.server_state.params + 1)
    monkeypatch.setattr(Store, "load_run", lambda self, run: dataclasses.replace(stored, server_state=moved))
    assert execute(words) == 2
    assert "the last model of run" in capfd.readouterr().err
