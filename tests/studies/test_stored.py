"""Stored runs beside one another, and a run that is rehearsed: what is said is what runs came to."""

import pytest

import umbel
from federations import federation
from umbel import Simulation, override
from umbel.cli.rehearsal import priced
from umbel.core.errors import ConfigError, StoreError
from umbel.privacy import PrivacyPlan
from umbel.server.store import Store
from umbel.studies.stored import compare_stored


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store with two seeds of one experiment and one of another, and the histories."""
    url = f"sqlite:///{tmp_path_factory.mktemp('kept')}/runs.db"
    experiments = [
        federation(rounds=2),
        federation(rounds=2, seed=4),
        override(federation(rounds=2), ["local.learning_rate=0.01"]),
    ]
    return url, [umbel.run(one, Simulation(1, "graph"), store=url, watchers=()) for one in experiments]


def test_stored_runs_compare_as_runs_that_were_just_played(kept):
    url, histories = kept
    with Store.open(url) as store:
        comparison, differences = compare_stored(store, [history.run for history in histories], ["test_accuracy"])
    first, second = comparison.rows()
    last = [history.column("test_accuracy")[-1] for history in histories]
    assert (first.seeds, second.seeds) == (2, 1)
    assert first.final == pytest.approx(sum(last[:2]) / 2)
    assert second.final == last[2]
    assert [row.path for row in differences] == ["local.learning_rate"]
    assert list(differences[0].values.values())[1] == "0.01"


def test_a_run_without_a_round_is_noted_and_none_is_refused(kept, tmp_path):
    url, histories = kept
    with Store.open(url) as store:
        with pytest.raises(ConfigError, match="is named twice"):
            compare_stored(store, [histories[0].run, histories[0].run[:-1]], ["test_accuracy"])
        with pytest.raises(StoreError, match="no run 'nobody'"):
            compare_stored(store, ["nobody"], ["test_accuracy"])
    with Store.open(f"sqlite:///{tmp_path}/empty.db") as store:
        from shown import begin, go_on

        empty, begun = begin(store, "empty", 5), begin(store, "begun", 5)
        with pytest.raises(ConfigError, match="nothing to compare"):
            compare_stored(store, [empty], ["test_accuracy"])
        go_on(store, begun, [1])
        comparison, _ = compare_stored(store, [empty, begun], ["test_accuracy"])
        assert comparison.stopped == {"empty": [f"run {empty}: no round was finished"], "begun": []}


@pytest.mark.parametrize("rounds", [3, 8])
def test_the_price_that_is_foretold_is_the_price_that_is_paid(rounds):
    plan = PrivacyPlan(epsilon=8.0, delta=1e-2, rounds=5, population=8, sampling_rate=0.5, clip_norm=1.0)
    one = federation(rounds=rounds, plan=plan, sampler=None)
    foretold, lasting = priced(one.resolved)
    paid = []
    try:
        umbel.run(one, Simulation(1, "graph"), watchers=[Noting(paid)])
    except umbel.RunStopped:
        assert rounds > 5
    assert lasting == len(paid)
    assert foretold == paid[-1]


class Noting:
    """Notes ε after each round."""

    def __init__(self, paid):
        self._paid = paid

    def on_start(self, experiment, runtime, run, records):
        """Nothing yet."""

    def on_round(self, record, failures):
        """What it cost."""
        self._paid.append(record.epsilon)

    def on_end(self, history):
        """Nothing more."""
