"""Comparing experiments: equal to running them one by one, and one that cannot go on does not stop the others."""

import dataclasses

import numpy as np
import pytest

from federations import federation
from umbel import ConfigError, FixedCohort, Simulation, compare, run


@pytest.fixture(scope="module")
def simulation():
    runtime = Simulation(workers=1, compile="graph")
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def comparison(simulation):
    two = {"a": federation(), "b": federation(name="other", rounds=2, sampler=FixedCohort(2))}
    return compare(two, simulation, seeds=2)


def test_runs_are_those_of_run(comparison, simulation):
    for seed, history in zip((1, 2), comparison.histories["a"], strict=True):
        assert history.params_sha256 == run(federation(seed=seed), simulation).params_sha256


def test_rows_give_mean_spread_and_median(comparison):
    finals = [history.column("test_accuracy")[-1] for history in comparison.histories["a"]]
    row, _ = comparison.rows(target=0.0)
    assert row.final == pytest.approx(np.mean(finals))
    assert row.spread == pytest.approx(np.std(finals, ddof=1))
    assert (row.reached, row.rounds_to_target, row.seeds) == (2, 1, 2)
    assert row.virtual_seconds_to_target is None
    assert [row.reached for row in comparison.rows(target=2.0)] == [0, 0]


def test_a_run_that_cannot_go_on_is_noted(simulation):
    local = dataclasses.replace(federation().local, learning_rate=1e30)
    found = compare([federation(name="mad", local=local), federation(rounds=1)], simulation)
    mad, good = found.rows()
    assert "learning_rate" in mad.stopped[0]
    assert np.isnan(mad.final)
    assert good.stopped == ()
    assert good.final > 0


def test_frame_and_plot(comparison, tmp_path):
    assert list(comparison.to_frame().index) == ["a", "b"]
    comparison.plot(str(tmp_path / "plot.png"), over="bytes")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_it_is_shown_in_brief(comparison):
    assert repr(comparison).startswith("Comparison(2 experiments, ")
    assert len(repr(comparison)) < 100
    assert "<table" in comparison._repr_html_()


def test_bad_requests(comparison, simulation):
    with pytest.raises(ConfigError, match="different names"):
        compare([federation(), federation()], simulation)
    with pytest.raises(ConfigError, match="no round has 'nonsense'"):
        comparison.rows("nonsense")
    with pytest.raises(ConfigError, match="over='years'"):
        comparison.plot(over="years")
