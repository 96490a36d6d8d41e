"""Splits and folds: nothing lost, nothing twice, nobody left without examples to train on."""

import pickle

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.data import (
    Arrays,
    ByKey,
    Digits,
    Generated,
    LogNormal,
    Partitioned,
    kfold_clients,
    kfold_within,
    split_clients,
)

SKEWED = Partitioned(Digits(), LogNormal(1.5), clients=60)
STREAMED = Partitioned(Digits(), LogNormal(1.5), clients=60, stream=True)


def rows_of(population, client):
    return sorted(population.indices(client))


@pytest.mark.parametrize("validation", [0.01, 0.2, 0.5, 0.99])
def test_a_split_divides_each_clients_examples(validation):
    train, held_out = split_clients(SKEWED, validation)
    assert len(train) == len(held_out) == 60
    np.testing.assert_array_equal(train.sizes() + held_out.sizes(), SKEWED.sizes())
    for client in range(60):
        assert sorted(rows_of(train, client) + rows_of(held_out, client)) == rows_of(SKEWED, client)
        assert len(rows_of(train, client)) == train.sizes()[client] >= 1
    sizes = SKEWED.sizes()
    expected = np.clip(np.rint(validation * sizes), 1, sizes - 1)
    np.testing.assert_array_equal(held_out.sizes(), expected)


def test_a_client_with_one_example_trains_on_it():
    train, held_out = split_clients(Partitioned(Arrays(np.arange(5.0)), ByKey(np.array([0, 1, 1, 1, 1]))))
    assert train.sizes().tolist() == [1, 3]
    assert held_out.sizes().tolist() == [0, 1]
    assert held_out.examples(0).count == 0


def test_a_split_is_seeded_and_survives_a_pickle():
    train, _ = split_clients(SKEWED, seed=1)
    same, other = split_clients(SKEWED, seed=1)[0], split_clients(SKEWED, seed=2)[0]
    copy = pickle.loads(pickle.dumps(train))
    assert train == same == copy != other
    assert len(pickle.dumps(train)) < 1000
    for client in range(60):
        assert rows_of(train, client) == rows_of(same, client) == rows_of(copy, client)
    assert any(rows_of(train, client) != rows_of(other, client) for client in range(60))


def test_held_out_rows_are_chosen_evenly():
    population = Partitioned(Arrays(np.arange(20_000.0)), ByKey(np.repeat(np.arange(2000), 10)))
    held_out = split_clients(population, 0.2)[1]
    places = np.concatenate([held_out.indices(client) - 10 * client for client in range(2000)])
    counts = np.bincount(places, minlength=10)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)


@pytest.mark.parametrize("cut", [lambda one: split_clients(one)[0], lambda one: next(kfold_within(one, 3))[1],
                                 lambda one: next(kfold_clients(one, 3))[1]])  # fmt: skip
def test_views_of_a_streamed_population_give_the_same_examples(cut):
    population = Partitioned(Digits(), clients=60)
    streamed = Partitioned(Digits(), clients=60, stream=True)
    one, other = cut(population), cut(streamed)
    assert other.resident() is None
    assert one.resident() is population.resident()
    for client in range(len(one)):
        np.testing.assert_array_equal(one.examples(client).x, other.examples(client).x)
        np.testing.assert_array_equal(one.resident().x[one.indices(client)], one.examples(client).x)
        assert one.examples(client).count == one.sizes()[client]


def test_generated_clients_split_too():
    population = Generated(5, lambda client: (np.arange(8) + 10 * client,), 8)
    train, held_out = split_clients(population, 0.25)
    assert held_out.sizes().tolist() == [2] * 5
    both = np.concatenate([train.examples(3).x, held_out.examples(3).x])
    assert sorted(both) == list(range(30, 38))


@pytest.mark.parametrize("folds", [2, 5])
def test_every_example_is_held_out_in_exactly_one_fold(folds):
    population = Partitioned(Digits(), LogNormal(0.5), clients=40)
    held_out_rows = []
    for train, held_out in kfold_within(population, folds):
        np.testing.assert_array_equal(train.sizes() + held_out.sizes(), population.sizes())
        assert train.sizes().min() >= 1
        for client in range(40):
            assert sorted(rows_of(train, client) + rows_of(held_out, client)) == rows_of(population, client)
        held_out_rows += [held_out.indices(client) for client in range(40)]
        assert np.abs(held_out.sizes() - population.sizes() / folds).max() < 1
    assert sorted(np.concatenate(held_out_rows)) == list(range(1437))


def test_small_clients_are_held_out_in_different_folds():
    population = Partitioned(Arrays(np.arange(2000.0)), ByKey(np.repeat(np.arange(1000), 2)))
    totals = [held_out.sizes().sum() for _, held_out in kfold_within(population, 10)]
    assert sum(totals) == 2000
    assert min(totals) > 120


def test_folds_within_refuse_a_single_example():
    train, _ = next(kfold_within(Partitioned(Arrays(np.arange(3.0)), ByKey(np.array([0, 0, 1]))), 2))
    with pytest.raises(ConfigError, match=r"expected two examples per client; 1 have one \(client 1\)"):
        train.sizes()


@pytest.mark.parametrize("folds", [2, 7, 60])
def test_every_client_is_held_out_in_exactly_one_fold(folds):
    everyone = sorted(tuple(rows_of(SKEWED, client)) for client in range(60))
    held_out_clients = []
    for train, held_out in kfold_clients(SKEWED, folds):
        assert len(held_out) in (60 // folds, 60 // folds + 1)
        kept, left = ([tuple(rows_of(one, client)) for client in range(len(one))] for one in (train, held_out))
        assert sorted(kept + left) == everyone
        assert held_out.sizes().tolist() == [len(rows) for rows in left]
        held_out_clients += left
    assert sorted(held_out_clients) == everyone


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: split_clients(SKEWED, 0.0), "validation=0.0"),
        (lambda: split_clients(SKEWED, 1.0), "validation=1.0 < 1"),
        (lambda: split_clients(SKEWED, seed=-1), "seed=-1"),
        (lambda: kfold_within(SKEWED, 1), "folds=1"),
        (lambda: kfold_clients(SKEWED, 1), "folds=1"),
        (lambda: len(next(kfold_clients(SKEWED, 61))[0]), "folds=61 ≤ 60 clients"),
        (lambda: split_clients(SKEWED)[0].indices(60), r"client=60 in \[0, 60\)"),
        (lambda: next(kfold_clients(SKEWED, 2))[0].examples(-1), "client=-1"),
    ],
)
def test_values_out_of_bounds_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
