"""Comparing experiments: equal to running them one by one, and one that cannot go on does not stop the others."""

import contextlib
import dataclasses

import numpy as np
import pytest

from federations import blobs, dense, federation
from umbel import ConfigError, FixedCohort, Simulation, compare, data, run
from umbel.studies.comparison import Comparison, grid_of


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
    assert np.isnan([row.final for row in found.rows("validation_accuracy")]).all()
    assert np.isnan(mad.final)
    assert good.stopped == ()
    assert good.final > 0


def test_frame_and_plot(comparison, tmp_path):
    assert list(comparison.to_frame().index) == ["a", "b"]
    comparison.plot(str(tmp_path / "plot.png"), over="bytes")
    assert (tmp_path / "plot.png").stat().st_size > 5000


@pytest.fixture(scope="module")
def crossed(simulation):
    """Two groups of two; the second alone has validation examples."""
    held_out = data.Partitioned(data.Arrays(*blobs(64, seed=7)), clients=8)
    parts = {"plain": {}, "held out": {"validation": held_out}}
    named = {
        f"{group}/{size}": federation(sampler=FixedCohort(size), rounds=1, **changes)
        for group, changes in parts.items()
        for size in (2, 4)
    }
    return compare(named, simulation, metrics=("test_loss", "validation_accuracy"))


def test_a_metric_that_some_measure_is_missing_in_the_others(crossed):
    assert [row.final for row in crossed.rows()] == [row.final for row in crossed.rows("test_loss")]
    finals = {row.name: row.final for row in crossed.rows("validation_accuracy")}
    assert [name for name, value in finals.items() if np.isnan(value)] == ["plain/2", "plain/4"]


def test_a_grid_has_the_numbers_of_the_rows(crossed):
    grid = crossed.to_grid("test_loss")
    assert (list(grid.columns), list(grid.index)) == (["plain", "held out"], ["2", "4"])
    for row in crossed.rows("test_loss"):
        group, variant = row.name.split("/")
        assert grid.loc[variant, group] == row.final
    shown = crossed._repr_html_()
    assert shown.count("<table") == 2
    assert f"{row.final:.4f}" in shown


@pytest.mark.parametrize("names", [[], ["a"], ["a/1", "a/2"], ["a/1", "b/1"], ["a/1", "a/2", "b/1"], ["a/1", "b"]])
def test_other_names_form_no_grid(names):
    assert grid_of(names) is None
    with pytest.raises(ConfigError, match="group/variant"):
        Comparison({name: [] for name in names}, {name: [] for name in names}).to_grid()


def test_a_loss_is_best_where_it_is_smallest_and_reaches_a_target_from_above(comparison):
    losses = np.array([history.column("test_loss") for history in comparison.histories["a"]])
    row, _ = comparison.rows("test_loss", target=losses.max(axis=0)[1])
    assert row.best == pytest.approx(losses.min(axis=1).mean())
    assert (row.reached, row.rounds_to_target) == (2, 2)


def test_a_model_is_built_once_per_seed(monkeypatch):
    built = []
    build = Simulation._build
    monkeypatch.setattr(Simulation, "_build", lambda self, *given: (built.append(given[0].seed), build(self, *given)))
    two = {str(size): federation(sampler=FixedCohort(size), rounds=1) for size in (2, 3)}
    with contextlib.closing(Simulation(workers=1, compile="graph")) as fresh:
        found = compare(two, fresh, seeds=2)
    assert built == [1, 2]
    assert {name: len(histories) for name, histories in found.histories.items()} == {"2": 2, "3": 2}


def test_it_is_shown_in_brief(comparison):
    assert repr(comparison).startswith("Comparison(2 experiments, ")
    assert len(repr(comparison)) < 100
    assert "<table" in comparison._repr_html_()


def test_bad_requests(comparison, simulation):
    with pytest.raises(ConfigError, match="different names"):
        compare([federation(), federation()], simulation)
    with pytest.raises(ConfigError, match="no round has 'nonsense'"):
        comparison.rows("nonsense")
    with pytest.raises(ConfigError, match="no experiment has validation examples, on which 'validation_loss'"):
        compare([federation()], simulation, metrics=("test_loss", "validation_loss"))
    with pytest.raises(ConfigError, match="no round has 'test_acuracy'; did you mean 'test_accuracy'"):
        compare([federation(rounds=1)], simulation, metrics="test_acuracy")
    with pytest.raises(ConfigError, match="over='years'"):
        comparison.plot(over="years")
    with pytest.raises(ConfigError, match="no run measured 'virtual_seconds' where it measured 'test_accuracy'"):
        comparison.plot(over="virtual_seconds")


def regression():
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, metrics=[keras.metrics.MeanMetricWrapper(loss.fn, name="cost")])
    return model


def test_directions_decide_what_is_best_and_what_reaches_a_target(simulation):
    found = compare([federation(model=regression)], simulation, metrics="test_cost")
    costs = found.histories["small"][0].column("test_cost")
    (row,) = found.rows(target=costs[0])
    assert (row.best, row.reached, row.rounds_to_target) == (costs.min(), 1, 1)
    (row,) = Comparison(found.histories, found.stopped, ("test_cost",), {"test_cost": "max"}).rows()
    assert row.best == costs.max()


def test_a_metric_of_ones_own_needs_a_direction_before_the_first_round(simulation):
    rounds = []

    def margin():
        import keras

        model = dense()
        model.compile(model.optimizer, model.loss, metrics=[keras.metrics.MeanMetricWrapper(distance, name="far")])
        return model

    def distance(y, p):
        return p[:, 0]

    experiment, watch = federation(model=margin), Each(rounds)
    for metrics, modes, message in (
        ("test_far", None, "a comparison needs to know whether 'test_far' is to fall"),
        ("test_fax", None, "no round has 'test_fax'; did you mean 'test_far'"),
        ("test_far", {"test_far": "up"}, "to be 'min' or 'max'"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare([experiment], simulation, metrics=metrics, modes=modes, watchers=lambda name, seed: [watch])
    assert not rounds
    found = compare([experiment], simulation, metrics="test_far", modes={"test_far": "min"})
    assert found.rows()[0].best == found.histories["small"][0].column("test_far").min()


class Each:
    """A watcher that notes rounds."""

    def __init__(self, rounds):
        self.rounds = rounds

    def on_start(self, *what):
        pass

    def on_round(self, record, failures):
        self.rounds.append(record)

    def on_end(self, history):
        pass
