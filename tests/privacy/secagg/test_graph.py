import math

import numpy as np
import pytest
from scipy.stats import hypergeom

from umbel.core.errors import ConfigError
from umbel.privacy.secagg import Graph, Topology
from umbel.privacy.secagg.graph import COMPLETE_UP_TO, CORRECTNESS_BITS, CORRUPT, DROPPING, SECURITY_BITS

SEED = bytes(32)


@pytest.mark.parametrize("clients", [3, 4, 10, 63, 64])
def test_small_cohorts_are_complete(clients):
    topology = Topology.of(clients)
    assert topology.threshold == math.ceil(2 * clients / 3)
    graph = Graph(topology, SEED)
    assert all(graph.neighbours(one) == [other for other in range(clients) if other != one] for one in range(clients))


@pytest.mark.parametrize(
    ("clients", "degree", "threshold"),
    [(65, 16, 12), (100, 16, 12), (101, 44, 33), (300, 44, 33), (1_000, 56, 41), (1_001, 68, 50), (10_000, 68, 50)],
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
    "weaker",
    [
        *((100, 16, 11), (100, 14, 12), (100, 17, 12), (100, 16, 18), (100, 24, 12), (64, 16, 43), (64, 63, 42)),
        (100, 18, 12),  # two neighbours more, and with five of them corrupt both secrets of a client come to light
        (100, 99, 51),  # everyone with everyone, and two of them corrupt
    ],
)
def test_weaker_graphs_are_told(weaker):
    assert not Topology(*weaker).is_at_least(Topology.of(weaker[0]))


def test_stronger_graphs_are_accepted():
    assert Topology(100, 16, 13).is_at_least(Topology.of(100))
    assert Topology(100, 99, 67).is_at_least(Topology.of(100))


def test_every_cohort_size_withstands_what_the_module_says():
    """All three tails, for every size that has a graph; and just below the bound where they are tightest."""
    clients = np.arange(COMPLETE_UP_TO + 1, 10_001)
    degree, threshold = np.array([(Topology.of(n).degree, Topology.of(n).threshold) for n in clients]).T
    corrupt, dropping = np.floor(CORRUPT * clients), np.floor(DROPPING * clients)
    others = clients - 1

    def more_than(bad, drawn, of):
        """P(more than `bad` of `of` bad clients are among `drawn` others)."""
        return hypergeom.sf(bad, others, of, drawn)

    both_secrets = clients * more_than(2 * threshold - degree - 2, degree, corrupt)
    stretch = threshold - 1 - degree // 2  # that many corrupt of k/2 in a row, twice
    one_stretch = clients * more_than(stretch - 1, degree // 2, corrupt)
    two_parts = np.where(2 * stretch <= corrupt, one_stretch**2 / 2, 0)
    assert (both_secrets + two_parts).max() <= 2.0 ** (1 - SECURITY_BITS)
    assert max(both_secrets.max(), two_parts.max()) <= 2.0**-SECURITY_BITS
    lost = clients * more_than(degree + 1 - threshold, degree, dropping)  # a survivor's seed
    lost += dropping * more_than(degree - threshold, degree, np.maximum(dropping - 1, 0))  # the key of one that dropped
    assert lost.max() <= 2.0**-CORRECTNESS_BITS
    assert both_secrets.max() > 2.0**-60, "a test that computes nothing would pass as well"


def test_five_of_a_hundred_read_nobody():
    """The table's first edition had t = 11, with which five corrupt neighbours read a client's update."""
    assert Topology(100, 16, 11).corrupt_neighbours == 4
    assert Topology.of(100).corrupt_neighbours == 6
    assert [Topology.of(n).corrupt_neighbours for n in (3, 10, 64)] == [0, 3, 21]


@pytest.mark.parametrize("clients", [0, 1, 2, 10_001])
def test_cohorts_that_have_no_graph(clients):
    with pytest.raises(ConfigError, match=f"clients={clients}"):
        Topology.of(clients)
