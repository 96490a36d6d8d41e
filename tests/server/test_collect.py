"""A round's sum while its updates arrive."""

import numpy as np

from federations import Nowhere, federation
from umbel import derive
from umbel.core.runtime import Arrival, Assignment
from umbel.core.summation import Summation
from umbel.core.types import NOTHING, Broadcast, ClientUpdate, Failure, Shape
from umbel.server.collect import collect


class Home(Nowhere):
    """What clients keep at home."""

    def __init__(self):
        self.kept = {}

    def write(self, client, arrays):
        self.kept[client] = arrays


def train(work, summation):
    """Everybody answers, and has learnt something to keep."""
    for assignment in work:
        update = ClientUpdate(np.ones(2, np.float32), NOTHING, 1.0, {})
        yield Arrival((assignment.client,), update, {assignment.client: [np.ones(1)]}, 0, 0)


def test_what_a_client_learnt_is_kept_only_where_its_update_counts():
    """Where the server refuses an update, the next round begins as if it had not been."""

    def counts_as(client, sent):
        return Failure(client, "stale", "of another round") if client == 1 else sent

    home, broadcast = Home(), Broadcast(1, np.zeros(2, np.float32), NOTHING, (), None)
    work = [Assignment(broadcast, client, derive(0)) for client in range(3)]
    summation = Summation(federation().aggregator, Shape(2, 0))
    result = collect(train, work, summation, home, counts_as=counts_as)
    assert [failure.client for failure in result.failures] == [1]
    assert result.total.clients == 2
    assert sorted(home.kept) == [0, 2]
