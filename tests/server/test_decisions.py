"""Samplers, schedules and callbacks: pure functions, checked by their laws."""

import math

import numpy as np
import pytest

from federations import federation
from umbel import (
    AllClients,
    ConfigError,
    Constant,
    Cosine,
    EarlyStopping,
    ExponentialDecay,
    FixedCohort,
    KeepBest,
    Local,
    PoissonCohort,
    ReduceOnPlateau,
    RunStopped,
    StepDecay,
    StopAt,
    WarmUp,
    WeightedCohort,
    derive,
)
from umbel.core.reading.directions import NO_DIRECTIONS, Measures
from umbel.core.types import RoundRecord
from umbel.server.watched import check_watched, watching


def records(*values, metric="test_loss", directions=NO_DIRECTIONS):
    return [
        RoundRecord(
            position + 1, 1, 0, {} if value is None else {metric: value}, 0.0, None, None, None, None, directions
        )
        for position, value in enumerate(values)
    ]


SIZES = np.arange(1, 101)
SAMPLERS = [AllClients(), FixedCohort(10), PoissonCohort(0.1), WeightedCohort(10)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_cohorts_are_distinct_ascending_members_and_repeatable(sampler):
    clients, sizes = range(1000, 1100), np.arange(1, 1101)
    cohorts = [sampler.sample(clients, lambda: sizes, derive(0, "round", number)) for number in range(20)]
    assert cohorts == [sampler.sample(clients, lambda: sizes, derive(0, "round", number)) for number in range(20)]
    for cohort in cohorts:
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(clients)
    assert isinstance(sampler, AllClients) or len({tuple(cohort) for cohort in cohorts}) > 15


def frequencies(sampler, rounds=3000):
    count = np.zeros(100)
    for number in range(rounds):
        count[sampler.sample(range(100), lambda: SIZES, derive(1, number))] += 1
    return count / rounds


@pytest.mark.parametrize("sampler", [FixedCohort(10), PoissonCohort(0.1)], ids=repr)
def test_uniform_samplers_are_uniform(sampler):
    deviation = (frequencies(sampler) - 0.1) / math.sqrt(0.1 * 0.9 / 3000)
    assert np.abs(deviation).max() < 4.5


def test_poisson_cohort_sizes_are_binomial():
    sizes = [len(PoissonCohort(0.1).sample(range(100), lambda: SIZES, derive(2, number))) for number in range(3000)]
    assert np.mean(sizes) == pytest.approx(10, abs=0.3)
    assert np.var(sizes) == pytest.approx(9, rel=0.15)
    assert PoissonCohort(1e-9).sample(range(100), lambda: SIZES, derive(0)) == []


def test_weighted_cohort_favours_large_clients():
    found = frequencies(WeightedCohort(1))
    assert np.abs(found - SIZES / SIZES.sum()).max() < 0.01


@pytest.mark.parametrize("sampler", [FixedCohort(101), WeightedCohort(101)], ids=repr)
def test_more_than_there_are(sampler):
    with pytest.raises(RunStopped, match="size=101 ≤ 100 clients"):
        sampler.sample(range(100), lambda: SIZES, derive(0))


@pytest.mark.parametrize(
    "make", [lambda: FixedCohort(0), lambda: PoissonCohort(0.0), lambda: PoissonCohort(1.5), lambda: WeightedCohort(-1)]
)
def test_bad_samplers(make):
    with pytest.raises(ConfigError):
        make()


def rates(schedule, rounds=10, history=()):
    return np.array([schedule.at(number, history) for number in range(1, rounds + 1)])


def test_schedules_have_their_closed_forms():
    number = np.arange(10)
    np.testing.assert_allclose(rates(Constant(0.3)), 0.3)
    np.testing.assert_allclose(rates(StepDecay(1.0, every=4, factor=0.5)), 0.5 ** (number // 4))
    np.testing.assert_allclose(rates(ExponentialDecay(0.2, 0.9)), 0.2 * 0.9**number)
    np.testing.assert_allclose(rates(Cosine(1.0, 10, floor=0.1)), 0.1 + 0.45 * (1 + np.cos(np.pi * number / 9)))
    np.testing.assert_allclose(rates(WarmUp(5, Constant(1.0)))[:6], [0.2, 0.4, 0.6, 0.8, 1, 1])
    assert rates(Cosine(1.0, 3), 9)[-1] == 0


def test_plateau_halves_the_rate_once_per_patience():
    schedule = ReduceOnPlateau(1.0, patience=2)
    losses = [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, None, 0.4]
    found = [schedule.at(position + 1, records(*losses[:position])) for position in range(len(losses) + 1)]
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_plateau_of_an_accuracy_is_a_maximum():
    schedule = ReduceOnPlateau(1.0, metric="test_accuracy", patience=1, floor=0.3)
    assert schedule.at(3, records(0.1, 0.9, metric="test_accuracy")) == 1
    assert schedule.at(4, records(0.1, 0.9, 0.8, 0.7, metric="test_accuracy")) == 0.3


def test_early_stopping_waits_for_its_patience():
    stopping = EarlyStopping(patience=2, restore_best=True)
    losses = records(1.0, 0.5, 0.6, None, 0.7)
    assert [stopping.decide(losses[:count]) is not None for count in range(1, 6)] == [False, False, False, False, True]
    assert stopping.best_round(losses) == 2
    assert EarlyStopping(patience=2).best_round(losses) is None


def test_stop_at_and_keep_best():
    accuracies = records(0.1, 0.96, 0.95, metric="test_accuracy")
    assert StopAt("test_accuracy", 0.96).decide(accuracies[:2]) == "test_accuracy reached 0.9600"
    assert StopAt("test_accuracy", 0.97).decide(accuracies) is None
    assert KeepBest("test_accuracy").best_round(accuracies) == 2
    assert KeepBest("test_loss").best_round(accuracies) is None
    assert KeepBest().best_round(records(float("nan"), 2.0)) == 2


VALUES = (1.0, 0.5, 0.6, float("nan"), 0.7, 0.4, 0.45, 0.5)


@pytest.mark.parametrize("directions", [{"error": "min"}, {"error": None}, {}], ids=str)
def test_what_falls_and_its_negative_that_rises_are_decided_alike(directions):
    """By the direction that the records know, or by the mode that is given."""
    mode = None if directions.get("error") else "min"
    opposite = {name: "max" if direction else None for name, direction in directions.items()}
    falling = records(*VALUES, metric="test_error", directions=directions)
    rising = records(*(-value for value in VALUES), metric="test_error", directions=opposite)
    for make in (
        lambda mode: EarlyStopping("test_error", patience=3, restore_best=True, mode=mode),
        lambda mode: KeepBest("test_error", mode=mode),
    ):
        one, other = make(mode), make(mode and "max")
        for count in range(1, len(VALUES) + 1):
            assert (one.decide(falling[:count]) is None) == (other.decide(rising[:count]) is None)
            assert one.best_round(falling[:count]) == other.best_round(rising[:count])
    assert KeepBest("test_error", mode=mode).best_round(falling) == 6
    plateau = ReduceOnPlateau(1.0, metric="test_error", patience=2, mode=mode)
    mirrored = ReduceOnPlateau(1.0, metric="test_error", patience=2, mode=mode and "max")
    assert plateau.at(9, falling) == mirrored.at(9, rising) < 1.0
    stops = [StopAt("test_error", 0.45, mode=mode).decide(falling[:count]) for count in range(1, 9)]
    assert [bool(stop) for stop in stops] == [False] * 5 + [True, True, False]
    assert StopAt("test_error", -0.45, mode=mode and "max").decide(rising[:6]) == "test_error reached -0.4000"


def test_an_unknown_direction_is_asked_for():
    unknown = records(1.0, metric="test_psnr")
    for callback in (EarlyStopping("test_psnr"), StopAt("test_psnr", 2.0)):
        with pytest.raises(ConfigError, match=r"'test_psnr' is to fall or to rise.* say mode="):
            callback.decide(unknown)
    with pytest.raises(ConfigError, match="to be 'min', 'max' or None"):
        StopAt("test_psnr", 2.0, mode="up")


def test_parts_inside_others_are_seen_to_watch():
    warm = WarmUp(3, WarmUp(2, ReduceOnPlateau(0.1, metric="test_psnr")))
    recipe = federation(local=Local(learning_rate=warm), callbacks=(KeepBest(),)).resolved
    assert list(watching(recipe)) == [(KeepBest(), "test_loss"), (warm, "test_psnr")]
    with pytest.raises(ConfigError, match=r"ReduceOnPlateau.* say mode="):
        check_watched(recipe, Measures({"loss": "min", "psnr": None}, is_complete=True), is_live=False)
