"""What a round takes at the server: a model is large, and there are few of it at any time."""

import tracemalloc

import numpy as np

from federations import Nowhere, federation
from umbel import AllClients, FedAvg
from umbel.core.runtime import Arrival, Opened, Subtotal
from umbel.core.spec import ModelSpec
from umbel.core.summation import Summation
from umbel.core.types import NOTHING, ServerState, Shape, Total
from umbel.server.rounds import RoundSetup, play_round

SIZE = 2_000_000
MODEL = 4 * SIZE


class Federation:
    """A runtime whose clients have answered already."""

    is_live = False

    def client_ids(self):
        return [0, 1]

    def train(self, work, summation):
        """Both in one sum."""
        clients = tuple(assignment.client for assignment in work)
        sum_of_both = Total(np.full(SIZE, 3, np.float32), NOTHING, 2.0, 2, {})
        yield Arrival(clients, Subtotal(sum_of_both, {}, ()), {}, 0, 0)

    def results(self, step, metrics):
        return {}


def test_a_round_is_concluded_in_the_memory_of_two_models():
    """Besides the one it began with: the sum and its mean, then the mean and the next model."""
    state = ServerState(0, np.ones(SIZE, np.float32), (), (), {})
    experiment = federation(strategy=FedAvg(server_lr=0.5), sampler=AllClients(), weighting="uniform")
    summation = Summation(experiment.aggregator, Shape(SIZE, 0))
    table = RoundSetup(experiment.resolved, Federation(), Opened(ModelSpec(()), summation), Nowhere())
    tracemalloc.start()
    try:
        after, record, _ = play_round(table, state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(after.params, np.float32(1.75))
    assert (record.clients, after.round) == (2, 1)
    assert peak < 2.2 * MODEL
