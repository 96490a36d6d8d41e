"""The benchmark of a cluster: what it pairs, and that it notices other bits."""

import pytest

from federations import federation
from simulations import simulation
from umbel import Simulation
from umbel.benchmarks import cluster
from umbel.runtimes.wrapping import Wrapping


class Counting(Wrapping):
    """A runtime that says that each round brought so many bytes."""

    def __init__(self, runtime):
        super().__init__(runtime)
        self.fetched = 0

    def train(self, work, summation):
        self.fetched += 1000
        return self.runtime.train(work, summation)


class Other(Wrapping):
    """A runtime that begins from other weights."""

    def initial_params(self):
        return self.runtime.initial_params() + 1


def test_rounds_by_turns():
    asked = federation(rounds=5)
    own = Counting(Simulation(1, "graph"))
    row = cluster.paired(asked, simulation(asked), own, lambda: own.fetched)
    assert (row.model, row.cohort, row.bytes_to_driver) == ("small", 4, 1000)
    assert row.bytes_of_updates == 4 * 4 * row.numbers
    assert row.low <= row.ratio <= row.high
    assert row.here > 0
    assert row.saved == row.bytes_of_updates / 1000
    assert cluster.table([row]).row_count == 1
    own.close()


def test_other_bits_are_noticed():
    asked, own = federation(rounds=3), Simulation(1, "graph")
    with pytest.raises(AssertionError, match="bits are not those of one process"):
        cluster.paired(asked, simulation(asked), Other(own))
    own.close()


def test_workloads_are_experiments():
    asked = cluster.experiment("digits", 3)
    assert asked.resolved.population.sizes().min() > 0
    assert len(asked.population) == 2_000
