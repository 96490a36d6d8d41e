"""A sweep is a function of its arguments: cut off and begun again it comes to the same; under a plan all trials pay."""

import json
import math

import numpy as np
import pytest

from federations import federation
from umbel import ConfigError, PrivacyPlan, Simulation, sweep
from umbel.cli.main import execute
from umbel.server.store import Store
from umbel.studies.ranges import Choices, Range, read_range
from umbel.studies.sweep_plot import place, ticks

pytest.importorskip("optuna")

RATES = {"local.learning_rate": "0.00001:1.0:log", "strategy.server_lr": "0.5,1.0"}
# Without sampling a price has a closed form, and takes no time.
PLAN = PrivacyPlan(epsilon=4.0, delta=1e-3, rounds=8, population=8, sampling_rate=1.0, clip_norm=1.0)


@pytest.fixture(scope="module")
def simulation():
    return Simulation(workers=1, compile="graph")


def outcomes(found):
    return [trial._replace(run=None) for trial in found.trials]


def runs(store):
    return {one.run: one.rounds_done for one in store.views.overviews()}


@pytest.fixture(scope="module")
def uninterrupted(simulation):
    """Nine trials in memory."""
    return sweep(federation(), RATES, trials=9, runtime=simulation)


class Interrupts:
    """Ends the second trial after its second round, as Ctrl-C does."""

    def __init__(self, number):
        self.number = number

    def on_start(self, *_):
        pass

    def on_round(self, record, failures):
        if (self.number, record.round) == (1, 2):
            raise KeyboardInterrupt

    on_end = on_start


def test_a_sweep_that_is_cut_off_and_begun_again_comes_to_the_same(uninterrupted, simulation, tmp_path):
    url, experiment = f"sqlite:///{tmp_path}/runs.db", federation()
    with pytest.raises(KeyboardInterrupt):
        sweep(experiment, RATES, store=url, runtime=simulation, watchers=lambda number, settings: [Interrupts(number)])
    with Store.open(url) as store:
        assert sorted(runs(store).values()) == [2, 3]
    fewer = sweep(experiment, RATES, trials=4, store=url, runtime=simulation)
    assert outcomes(fewer) == outcomes(uninterrupted)[:4]
    whole = sweep(experiment, RATES, trials=9, store=url, runtime=simulation)
    assert outcomes(whole) == outcomes(uninterrupted)
    assert whole.importance == uninterrupted.importance
    with Store.open(url) as store:
        before = runs(store)
        again = sweep(experiment, RATES, trials=9, store=store, runtime=simulation)
        assert runs(store) == before  # nothing was played
    assert again.trials == whole.trials
    assert set(before) == {trial.run for trial in again.trials}


def test_other_seeds_search_elsewhere(uninterrupted, simulation):
    other = sweep(federation(), RATES, trials=2, seed=1, runtime=simulation)
    assert outcomes(other) != outcomes(uninterrupted)[:2]


def test_trials_that_are_worse_than_the_median_end_early(uninterrupted):
    pruned = [trial for trial in uninterrupted.trials if trial.state == "pruned"]
    finished = [trial for trial in uninterrupted.trials if trial.state == "finished"]
    assert pruned
    assert all(trial.rounds == 3 for trial in finished)
    assert all(trial.number >= 5 for trial in pruned)  # the median is of five trials at least
    assert uninterrupted.best.value == max(trial.value for trial in finished)
    rates = [float(trial.settings["local.learning_rate"]) for trial in uninterrupted.trials]
    assert min(rates) >= 1e-5
    assert max(rates) <= 1
    assert {trial.settings["strategy.server_lr"] for trial in uninterrupted.trials} == {"0.5", "1.0"}
    assert sum(uninterrupted.importance.values()) == pytest.approx(1)
    frame = uninterrupted.to_frame()
    assert frame["strategy.server_lr"].tolist() == [t.settings["strategy.server_lr"] for t in uninterrupted.trials]


def test_a_trial_whose_loss_is_not_finite_fails_and_the_others_go_on(simulation):
    ranges = {"local.learning_rate": Choices(("1e30", "0.1"))}
    found = sweep(federation(rounds=1), ranges, trials=4, metric="test_loss", runtime=simulation)
    states = {trial.settings["local.learning_rate"]: trial.state for trial in found.trials}
    assert states["0.1"] == "finished"
    assert states.get("1e30", "failed") == "failed"
    assert found.mode == "min"
    assert found.best.settings == {"local.learning_rate": "0.1"}


def test_under_a_plan_all_trials_are_charged_to_one_budget(simulation, tmp_path):
    """Four trials of two rounds cost what a run of eight rounds does; a fifth is not begun."""
    experiment = federation(plan=PLAN, sampler=None, rounds=2)
    rates = {"local.learning_rate": "0.01:0.5:log"}
    with Store.open(f"sqlite:///{tmp_path}/runs.db") as store:
        found = sweep(experiment, rates, trials=9, store=store, runtime=simulation)
        ledgers = [store.load_run(trial.run).ledger for trial in found.trials]
        seeds = [store.views.details(trial.run).overview.seed for trial in found.trials]
    assert [sum(ledger.values()) for ledger in ledgers] == [2, 2, 2, 2]
    (event,) = {event for ledger in ledgers for event in ledger}
    spent = [PLAN.spent({event: 2 * count}) for count in (1, 2, 3, 4)]
    assert [trial.epsilon for trial in found.trials] == pytest.approx(spent)
    assert found.epsilon <= PLAN.epsilon < PLAN.spent({event: 10})
    assert found.delta == PLAN.delta
    assert "4 trials have cost ε=" in found.stopped
    assert len(set(seeds)) == 4  # trials with one noise would tell each other's updates


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"rounds": 5}, {}, "1 of 20 fit.*--set plan.rounds=100"),
        ({"rounds": 2}, {"parameters": {"plan.noise_multiplier": "4.0,8.0"}}, "a sweep varies what costs nothing"),
        ({"rounds": 2}, {"metric": "train_loss"}, "is the clients', and trials chosen by it"),
        ({"rounds": 2}, {"store": None}, "needs a store"),
        ({"rounds": 2, "plan": None}, {"epsilon": 3.0}, "is of a plan, and the experiment has none"),
    ],
)
def test_what_the_budget_does_not_pay_for_is_refused(changes, arguments, said, simulation, tmp_path):
    experiment = federation(**{"plan": PLAN, "sampler": None, **changes})
    given = {"parameters": {"local.learning_rate": "0.01:0.5"}, "store": f"sqlite:///{tmp_path}/runs.db", **arguments}
    with pytest.raises(ConfigError, match=said):
        sweep(experiment, runtime=simulation, **given)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("0.01:0.5:log", Range(0.01, 0.5, is_log=True)),
        ("1:10", Range(1, 10, is_whole=True)),
        ("1.0:10", Range(1.0, 10)),
        ("16, 32,16", Choices(("16", "32"))),
        ("1", None),
        ("5:1", None),
        ("0:1:log", None),
        ("1:2:lin", None),
        ("a:b", None),
        ("1:inf", None),
    ],
)
def test_ranges_are_read_or_refused(text, read):
    if read is not None:
        assert read_range("x", text) == read
        return
    with pytest.raises(ConfigError):
        read_range("x", text)


@pytest.mark.parametrize(
    ("parameters", "metric", "said"),
    [
        ({}, "test_accuracy", "a parameter to vary"),
        ({"local.learning_rat": "1:2"}, "test_accuracy", "did you mean 'learning_rate'"),
        ({"local.batch_size": "-3:5"}, "test_accuracy", "batch_size=-3"),
        ({"local.batch_size": "3:5"}, "test_f1", "test_f1"),
        ({"local.batch_size": "3:5"}, "validation_loss", "no experiment has validation examples"),
    ],
)
def test_what_cannot_be_swept_is_said_before_the_first_trial(parameters, metric, said, simulation):
    with pytest.raises(ConfigError, match=said):
        sweep(federation(), parameters, metric=metric, runtime=simulation)


def test_values_lie_on_their_axes_where_they_should(uninterrupted, tmp_path):
    assert place(Range(0.01, 1.0, is_log=True), "0.1") == pytest.approx(0.5)
    assert place(Range(1, 5, is_whole=True), "2") == pytest.approx(0.25)
    assert [place(Choices(("a", "b", "c")), text) for text in "abc"] == [0, 0.5, 1]
    assert [text for _, text in ticks(Range(0.01, 1.0, is_log=True))] == ["0.01", "0.1", "1"]
    figure = uninterrupted.plot(str(tmp_path / "sweep.png"))
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    lines, bars = (part.axes[0] for part in figure.subfigs)
    curves = [line for line in lines.lines if len(line.get_xdata()) == 3]
    assert len(curves) == sum(trial.value is not None for trial in uninterrupted.trials)
    assert sorted(bar.get_width() for bar in bars.patches) == pytest.approx(sorted(uninterrupted.importance.values()))
    best = max(curves, key=lambda line: line.get_linewidth())
    assert np.asarray(best.get_ydata())[0] == pytest.approx(
        (math.log10(float(uninterrupted.best.settings["local.learning_rate"])) + 5) / 5
    )


FILE = "from federations import federation\nexperiment = federation(name='mine')\n"


def test_the_command_prints_trials_and_the_best(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    words = ["sweep", "mine.py", "--param", "local.learning_rate=0.01:0.5:log", "--trials", "2", "--set", "rounds=1"]
    assert execute([*words, "--json", "--workers", "1"]) == 0
    *rows, final = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["number"] for row in rows] == [0, 1]
    best = max(rows, key=lambda row: row["value"])
    assert final["final"]["best"] == best["number"]
    assert execute([*words, "--workers", "1", "--plot", "out/sweep.png"]) == 0
    output, errors = capfd.readouterr()
    assert (tmp_path / "out" / "sweep.png").is_file()
    rate = best["settings"]["local.learning_rate"]
    assert f"best: umbel run mine.py --set rounds=1 --set local.learning_rate={rate}" in output
    assert best["run"] in output
    assert "trial 1  local.learning_rate=" in errors
    assert execute(["sweep", "mine.py", "--param", "local.learning_rate"]) == 2
    assert "to be KEY=RANGE" in capfd.readouterr().err
