"""Populations: lazy, small, shared, described; the same examples streamed or resident."""

import gc
import pickle
import threading
import time
import tracemalloc
import weakref
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from umbel.core.bases import Population
from umbel.core.errors import ConfigError
from umbel.core.examples import Examples
from umbel.core.experiment import Experiment
from umbel.core.parts.sampling import FixedCohort
from umbel.core.reading.overrides import override
from umbel.data import (
    Arrays,
    ByKey,
    Digits,
    Dirichlet,
    Generated,
    Iid,
    Partitioned,
    PerClient,
    Shards,
    split_clients,
)
from umbel.strategies import FedAvg


@dataclass(frozen=True)
class Counted:
    """A source that counts how often it is read."""

    name: str
    loads: ClassVar[list] = []

    def load(self):
        Counted.loads.append(self.name)
        return Examples(np.arange(40, dtype=np.float32), np.arange(40) % 4)


def experiment(population, **changes):
    return Experiment(name="a", model=dict, population=population, strategy=FedAvg(), sampler=FixedCohort(2), **changes)


def make(client):
    return np.full((client % 3 + 1, 2), client, np.float32), np.full(client % 3 + 1, client % 2)


def test_nothing_is_loaded_before_it_is_needed():
    Counted.loads.clear()
    population = Partitioned(Counted("lazy"), by=Dirichlet(0.5), clients=5)
    assert len(population) == 5
    assert repr(population).startswith("Partitioned(source=Counted(name='lazy'), by=Dirichlet(alpha=0.5), clients=5")
    assert override(population, ["clients=8", "by.alpha=0.1", "seed=3"]).by.alpha == 0.1
    pickle.dumps(population)
    experiment(population).describe()
    assert Counted.loads == []
    population.examples(0)
    assert "lazy" in Counted.loads


def test_a_source_of_somebodys_own_is_not_read_again_for_every_client():
    Counted.loads.clear()
    population = Partitioned(Counted("own"), clients=8)
    one = experiment(population, test=Counted("own"))
    for client in range(8):
        population.examples(client)
        assert population.resident() is population.resident()
        assert one.resolved.test_examples() is one.resolved.test_examples()
    assert len(Counted.loads) <= 4  # for the partition's own needs, for the clients, for the test
    assert len(pickle.dumps(one)) < 2_000  # and none of it travels


def test_clients_default_to_a_hundred_or_to_the_groups():
    assert len(Partitioned(Digits())) == 100
    assert Partitioned(Digits(), clients=1).indices(0).tolist() == list(range(1437))
    assert len(Partitioned(Digits(), ByKey(np.arange(1437) % 7))) == 7


def test_every_kind_is_a_population():
    train, validation = split_clients(Partitioned(Digits()))
    for population in (train, validation, PerClient([make(0)]), Generated(3, make, np.array([1, 2, 3]))):
        assert isinstance(population, Population)
        assert population.sizes().dtype == np.int64


@pytest.mark.parametrize("by", [Iid(), Dirichlet(0.3), Shards()], ids=repr)
def test_streaming_gives_the_same_examples(by):
    resident = Partitioned(Digits(), by, clients=30, stream=False)
    streaming = Partitioned(Digits(), by, clients=30, stream=True)
    assert resident == streaming  # how it is held is no part of what it is
    assert streaming.resident() is None
    for client in (0, 17, 29):
        np.testing.assert_array_equal(resident.resident().x[resident.indices(client)], streaming.examples(client).x)


def test_too_large_for_memory_is_streamed():
    huge = np.broadcast_to(np.float32(0), (1 << 40,))  # 4 TiB by its shape, 4 bytes in truth
    assert Partitioned(Arrays(huge), clients=2).resident() is None
    assert Partitioned(Arrays(huge), clients=2, stream=False).resident() is not None
    assert Partitioned(Arrays(huge[:1000]), clients=2).resident() is not None


def test_weights_and_nested_inputs_go_along():
    rows = np.arange(12)
    population = Partitioned(Arrays({"a": rows, "b": (rows * 2, rows * 3)}, rows % 2, rows / 12), clients=4)
    own = population.examples(2)
    np.testing.assert_array_equal(own.x["b"][1], own.x["a"] * 3)
    np.testing.assert_array_equal(own.sample_weight, own.x["a"] / 12)


def test_equal_populations_share_and_the_last_one_frees():
    source = Arrays(np.random.default_rng(0).random((1000, 3)))
    one, other = Partitioned(source, clients=10), Partitioned(source, clients=10)
    rows = one.indices(0).base
    assert other.indices(5).base is rows
    assert Partitioned(source, clients=10, seed=1).indices(0).base is not rows
    with pytest.raises(ValueError, match="read-only"):
        one.indices(0)[0] = 7
    freed = weakref.ref(rows)
    del rows, one
    gc.collect()
    assert freed() is not None
    del other
    gc.collect()
    assert freed() is None


def test_what_is_computed_does_not_travel_in_a_pickle():
    population = Partitioned(Digits(), Dirichlet(0.5), clients=50)
    before = pickle.dumps(population)
    population.sizes()
    population.resident()
    assert pickle.dumps(population) == before
    copy = pickle.loads(before)
    assert copy == population
    assert hash(copy) == hash(population)
    np.testing.assert_array_equal(copy.indices(7), population.indices(7))


def test_threads_compute_once():
    Counted.loads.clear()
    population = Partitioned(Arrays(*Counted("threads").load()[:2]), clients=8)
    gate, found = threading.Barrier(4), []

    def ask():
        gate.wait()
        found.append(population.indices(0).base)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(rows is found[0] for rows in found)
    assert len(found) == 4


def test_a_million_clients_are_two_arrays():
    clients, each = 1_000_000, 10
    source = Arrays(np.zeros(clients * each, np.uint8))
    population = Partitioned(source, clients=clients)
    tracemalloc.start()
    start = time.perf_counter()
    assert (population.sizes() == each).all()
    seconds = time.perf_counter() - start
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8 * (clients + 1) + 4 * clients * each + 2**20
    assert seconds < 15
    assert len(population.indices(999_999)) == each
    with pytest.raises(ConfigError, match=r"expected client=1000000 in \[0, 1000000\)"):
        population.examples(clients)


def test_the_population_is_described_and_tells_experiments_apart():
    population = Partitioned(Digits(), Dirichlet(0.5), clients=20)
    described = experiment(population).describe()
    assert described["population.by.alpha"] == "0.5"
    assert described["population.source.split"] == "'train'"
    before = experiment(population).digest
    population.sizes()
    assert experiment(population).digest == before
    train, validation = split_clients(population)
    digests = {
        experiment(one, validation=other).digest
        for one, other in [(population, None), (train, None), (train, validation), (validation, train)]
    }
    assert len(digests) == 4
    one, other = (experiment(PerClient([(np.full(3, value),)])).digest for value in (0, 1))
    assert one != other


def test_a_tuple_and_examples_stand_for_arrays():
    arrays = np.arange(6.0), np.arange(6), np.ones(6)
    for given in (arrays[:2], arrays, Examples(*arrays)):
        assert Partitioned(given, clients=2).source == Arrays(*given)


@dataclass(frozen=True)
class Wrong:
    """A partitioner of a user's that breaks the contract."""

    owners: tuple
    finds_clients = False

    def partition(self, source, clients, generator):
        return np.array(self.owners)


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ((0, 1, 0, 1), "leaves 1 clients without examples"),
        ((0, 1, 2), r"to give 4 integers, 0 ≤ owner < 3, got int64\[3\]"),
        ((0, 1, 2, 3), "0 ≤ owner < 3"),
        ((0, 1, 2, -1), "0 ≤ owner < 3"),
        ((0.0, 1.0, 2.0, 0.0), r"got float64\[4\]"),
    ],
)
def test_a_partitioner_is_held_to_its_contract(owners, message):
    with pytest.raises(ConfigError, match=message):
        Partitioned(Arrays(np.zeros(4)), Wrong(owners), clients=3).sizes()


@pytest.mark.parametrize(
    "wrong", [{"clients": 0}, {"clients": 2.5}, {"seed": -1}, {"stream": "no"}, {"by": 3}, {"source": "mnist"}]
)
def test_values_out_of_bounds_are_refused_when_built(wrong):
    with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))}="):
        Partitioned(**{"source": Digits(), **wrong})


def test_clients_one_by_one():
    population = PerClient([make(client) for client in range(4)])
    assert population.sizes().tolist() == [1, 2, 3, 1]
    assert population.resident() is None
    np.testing.assert_array_equal(population.examples(2).x, make(2)[0])
    assert population == pickle.loads(pickle.dumps(population))
    with pytest.raises(ConfigError, match="streams its clients"):
        population.indices(0)
    with pytest.raises(ConfigError, match="client=-1"):
        population.examples(-1)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([], "got none"),
        ([make(0), (np.zeros((0, 2), np.float32), np.zeros(0, np.int64))], "client 1 has no examples"),
        ([make(0), (np.zeros((2, 2, 3), np.float32), np.zeros(2, np.int64))], r"client 1 has \(float32\[2, 2, 3\]"),
        ([make(0), (np.zeros((2, 2), bool), np.zeros(2, np.int64))], r"client 1 has \(bool\[2, 2\]"),
    ],
)
def test_unlike_clients_are_refused(clients, message):
    with pytest.raises(ConfigError, match=message):
        PerClient(clients)


def test_generated_clients_are_made_when_asked():
    population = Generated(6, make, np.array([1, 2, 3, 1, 2, 3]))
    np.testing.assert_array_equal(population.examples(4).x, make(4)[0])
    assert population.sizes().tolist() == [1, 2, 3, 1, 2, 3]
    assert population == pickle.loads(pickle.dumps(population))
    assert repr(population) == "Generated(clients=6, make=make, size=int64[6])"
    with pytest.raises(ConfigError, match=r"make\(1\) gave 2 examples, where size promised 1"):
        Generated(6, make, 1).examples(1)
    with pytest.raises(ConfigError, match="expected size to be 6 numbers"):
        Generated(6, make, np.array([1, 2]))


def test_a_partitioner_is_a_value_and_numpy_counts_are_counts():
    with pytest.raises(ConfigError, match=r"expected by=Iid to be a value, not a class"):
        Partitioned(Digits(), by=Iid)
    population = Partitioned(Digits(), clients=np.int64(7), seed=np.uint8(1))
    assert population == Partitioned(Digits(), clients=7, seed=1)
    assert repr(population) == repr(Partitioned(Digits(), clients=7, seed=1))
