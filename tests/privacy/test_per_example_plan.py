"""Plans for single examples: noise and price from the same numbers, the dearest client's, and an end to the budget."""

import dataclasses

import numpy as np
import pytest

from federations import blobs, federation
from umbel import ConfigError, IncompatibleError, Local, PoissonCohort, RunStopped, Simulation, data, override, run
from umbel.privacy.accounting import epsilon, parse_event
from umbel.privacy.per_example import NoMetrics, PerExample, PerExamplePlan

NUMBERS = {"epsilon": 4.0, "delta": 1e-3, "rounds": 3, "population": 4, "clip_norm": 1.0, "batch_size": 5} | {
    "smallest_client": 15,
    "steps": 6,
}


def plan(**changes):
    return PerExamplePlan(**(NUMBERS | changes))


def clients(*sizes):
    return data.PerClient([blobs(size, seed=size) for size in sizes])


def experiment(chosen, **changes):
    base = {"population": clients(15, 22, 40, 31), "local": Local(batch_size=5, learning_rate=0.1), "plan": chosen}
    return federation(**(base | {"sampler": None, "weighting": None} | changes))


def test_the_plan_brings_its_noise_to_the_clients():
    chosen = plan(noise_multiplier=2.0)
    built = experiment(chosen)
    assert built.resolved.local.per_example == PerExample(1.0, 2.0, 6) == chosen.per_example
    assert built.resolved.local.steps_of(15) == built.resolved.local.steps_of(40) == 6


def test_noise_and_price_are_of_the_same_numbers():
    chosen = plan()
    event = chosen.round_event
    assert float(chosen.per_example.noise_multiplier) == event.noise_multiplier
    assert event.sampling_rate == pytest.approx(5 / 15)
    spent = chosen.spent(chosen.charge(chosen.charge(chosen.charge({}))))
    assert 0.97 * 4.0 < spent <= 4.0
    assert chosen.spent(chosen.charge({})) == pytest.approx(epsilon({str(event): 6}, 1e-3).pld, rel=1e-3)


def test_the_ledger_counts_steps_of_the_dearest_client():
    chosen = plan(noise_multiplier=1.5)
    ledger = chosen.charge(chosen.charge({}))
    assert ledger == {str(chosen.round_event): 12}
    assert parse_event(*ledger) == chosen.round_event
    dearest = epsilon(ledger, 1e-3).pld
    for size in (22, 31, 40):  # every other client of the federation pays less
        assert epsilon(plan(noise_multiplier=1.5, smallest_client=size).charge({}), 1e-3).pld < dearest


def test_a_client_smaller_than_its_batch_takes_every_example():
    assert plan(smallest_client=3).sampling_rate == 1.0


def test_a_run_reports_what_it_spent_and_no_training_metrics():
    chosen = plan()
    history = run(experiment(chosen), Simulation(workers=2, compile="graph"))
    spent = [record.epsilon for record in history.rounds]
    assert spent == sorted(spent)
    assert spent[-1] <= chosen.epsilon
    assert history.privacy["noise"] == "seeded"
    assert not [name for record in history.rounds for name in record.metrics if name.startswith("train")]


def test_a_run_stops_before_the_round_that_would_exceed_the_budget():
    chosen = plan()
    with pytest.raises(RunStopped, match="per example, and another"):
        run(experiment(chosen, rounds=4), Simulation(workers=1, compile="graph"))


def test_noise_is_what_keeps_updates_apart():
    """The same run with the plan's noise, and with clipping alone: only the first differs by the noise's size."""
    noisy = run(experiment(plan(), rounds=1), Simulation(workers=1, compile="graph"))
    quiet = experiment(None, sampler=plan().sampler, weighting="uniform", rounds=1)
    local = Local(batch_size=5, learning_rate=0.1, per_example=PerExample(1.0, 0, 6))
    clipped = run(dataclasses.replace(quiet, local=local), Simulation(workers=1, compile="graph"))
    expected = 0.1 * float(plan().round_event.noise_multiplier) / 5 * np.sqrt(6 / 4)  # rate·zC/batch·√(steps/clients)
    found = np.std(noisy.params - clipped.params)
    assert expected / 1.5 < found < expected * 1.5


def test_a_round_without_clients_changes_nothing():
    chosen = plan(sampler=PoissonCohort(1e-9))
    history = run(experiment(chosen, rounds=1), Simulation(workers=1, compile="graph"))
    assert history.rounds[0].clients == 0
    assert history.rounds[0].epsilon > 0  # rounds are paid for, whoever is in them


def test_replacing_the_plan_replaces_its_noise():
    built = override(experiment(plan(noise_multiplier=2.0)), ["plan.noise_multiplier=3.0"])
    assert built.resolved.local.per_example == PerExample(1.0, 3.0, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": Local(batch_size=6)}, "local.batch_size=6"),
        ({"local": Local(batch_size=5, per_example=PerExample(1.0, 0.1))}, "is not the plan's"),
        ({"population": clients(14, 22, 40, 31)}, "smallest_client=15 ≤ 14"),
        ({"population": clients(15, 22, 40)}, "plan.population=4"),
        ({"weighting": "examples"}, "'uniform'"),
        ({"validation": clients(5, 5, 5, 5)}, "validation needs metrics of single clients"),
    ],
)
def test_experiments_that_would_cost_more_are_refused(changes, words):
    with pytest.raises((ConfigError, IncompatibleError), match=words):
        experiment(plan(noise_multiplier=2.0), **changes)


@pytest.mark.parametrize(
    "changes", [{"clip_norm": 0.0}, {"steps": 0}, {"batch_size": 0}, {"smallest_client": 0}, {"delta": 0.5}]
)
def test_numbers_out_of_bounds_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        plan(**changes)


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (float("nan"), 1.0), (1.0, -1.0), (1.0, float("inf"))])
def test_noise_out_of_bounds_is_refused(numbers):
    with pytest.raises(ConfigError):
        PerExample(*numbers)


def test_a_plan_is_calibrated_when_needed_and_not_before():
    import sys

    before = "dp_accounting" in sys.modules
    built = experiment(plan(epsilon=1e-9, delta=1e-12))  # no noise keeps it, which only calibration finds
    assert ("dp_accounting" in sys.modules) == before
    with pytest.raises(ConfigError, match="no noise multiplier"):
        float(built.resolved.local.per_example.noise_multiplier)


def test_metrics_are_dropped_and_an_empty_total_has_a_mean():
    from umbel.core.types import ClientUpdate, Total, Weighted

    vector, key = np.ones(3, np.float32), None
    update = NoMetrics().encode((), ClientUpdate(vector, vector, 1.0, {"loss": Weighted(1, 1)}), key)
    assert not update.metrics
    _, total = NoMetrics().decode((), Total(0 * vector, 0 * vector, 0.0, 0, {}), key)
    assert not total.mean().delta.any()
