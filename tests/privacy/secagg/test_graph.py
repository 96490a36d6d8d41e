import math

import pytest

from umbel.core.errors import ConfigError
from umbel.privacy.secagg import Graph, Topology

SEED = bytes(32)


@pytest.mark.parametrize("clients", [3, 4, 10, 63, 64])
def test_small_cohorts_are_complete(clients):
    topology = Topology.of(clients)
    assert topology.threshold == math.ceil(2 * clients / 3)
    graph = Graph(topology, SEED)
    assert all(graph.neighbours(one) == [other for other in range(clients) if other != one] for one in range(clients))


@pytest.mark.parametrize(
    ("clients", "degree", "threshold"),
    [(65, 16, 11), (100, 16, 11), (101, 52, 37), (1_000, 52, 37), (1_001, 62, 44), (10_000, 62, 44)],
)
def test_large_cohorts_are_harary_graphs(clients, degree, threshold):
    topology = Topology.of(clients)
    assert (topology.degree, topology.threshold) == (degree, threshold)
    graph = Graph(topology, SEED)
    neighbours = [set(graph.neighbours(one)) for one in range(clients)]
    assert all(len(around) == degree and one not in around for one, around in enumerate(neighbours))
    assert all(one in neighbours[other] for one, around in enumerate(neighbours) for other in around)
    reached, front = {0}, {0}
    while front:
        front = set().union(*(neighbours[one] for one in front)) - reached
        reached |= front
    assert len(reached) == clients


def test_the_ring_depends_on_the_session():
    topology = Topology.of(100)
    assert Graph(topology, SEED).neighbours(0) == Graph(topology, SEED).neighbours(0)
    assert Graph(topology, SEED).neighbours(0) != Graph(topology, b"\1" * 32).neighbours(0)


@pytest.mark.parametrize("clients", [3, 5, 64, 65, 100, 500, 5_000])
def test_two_sets_of_answers_never_give_both_secrets(clients):
    topology = Topology.of(clients)
    assert topology.is_at_least(topology)
    assert 2 * topology.threshold > topology.degree + 1 >= topology.threshold


@pytest.mark.parametrize(
    "weaker", [(100, 16, 10), (100, 14, 11), (100, 17, 11), (100, 16, 18), (100, 22, 11), (64, 16, 43), (64, 63, 42)]
)
def test_weaker_graphs_are_told(weaker):
    assert not Topology(*weaker).is_at_least(Topology.of(weaker[0]))


def test_stronger_graphs_are_accepted():
    assert Topology(100, 18, 12).is_at_least(Topology.of(100))
    assert Topology(100, 99, 67).is_at_least(Topology.of(100))


@pytest.mark.parametrize("clients", [0, 1, 2, 10_001])
def test_cohorts_that_have_no_graph(clients):
    with pytest.raises(ConfigError, match=f"clients={clients}"):
        Topology.of(clients)
