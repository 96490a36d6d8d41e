"""What a round takes at the server: a model is large, and there are few of it at any time."""

import tracemalloc

import numpy as np

from federations import federation
from umbel import AllClients, FedAvg
from umbel.core.types import NOTHING, RoundResult, ServerState, Total
from umbel.server.rounds import play_round

SIZE = 2_000_000
MODEL = 4 * SIZE


class Federation:
    """A runtime whose clients have answered already."""

    is_live = False

    def client_ids(self):
        return [0, 1]

    def collect(self, broadcast, cohort, key):
        return RoundResult(Total(np.full(SIZE, 3, np.float32), NOTHING, 2.0, 2, {}), [], 0, 0)


def test_a_round_is_concluded_in_the_memory_of_two_models():
    """Besides the one it began with: the sum and its mean, then the mean and the next model."""
    state = ServerState(0, np.ones(SIZE, np.float32), (), (), {})
    experiment = federation(strategy=FedAvg(server_lr=0.5), sampler=AllClients(), weighting="uniform")
    tracemalloc.start()
    try:
        after, record, _ = play_round(experiment, Federation(), state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(after.params, np.float32(1.75))
    assert (record.clients, after.round) == (2, 1)
    assert peak < 2.2 * MODEL
