"""The same updates through Flower's own strategies: equal, or the test says why ours is right."""

import math
import os

import numpy as np
import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.server.strategy import aggregate as flower_folds
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from umbel.core.aggregators import WeightedSum
from umbel.core.types import NOTHING, ClientUpdate
from umbel.strategies import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Krum,
    Median,
    MultiKrum,
    TrimmedMean,
)

SIZE, COHORT, ROUNDS = 40, 11, 4
WEIGHTS = [float(10 * (client + 1)) for client in range(COHORT)]


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Messages name the task that made them."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def deltas(round):
    """float32, shape (COHORT, SIZE)."""
    return np.random.default_rng(round).normal(size=(COHORT, SIZE)).astype(np.float32) / 10


def start():
    return np.random.default_rng(100).normal(size=SIZE).astype(np.float32)


def ours(strategy):
    """The params after each round."""
    params, found = start(), []
    state = strategy.init(params)
    for round in range(1, ROUNDS + 1):
        aggregator = WeightedSum()
        total = aggregator.zero(SIZE)
        for delta, weight in zip(deltas(round), WEIGHTS, strict=True):
            total = aggregator.add(total, ClientUpdate(delta, NOTHING, weight, {}))
        state, params = strategy.update(state, params, total.mean())
        found.append(params)
    return found


def theirs(strategy, first_round=1):
    """The params after each round of a strategy of Flower's, fed with messages; it counts rounds from first_round."""
    params, found = start(), []
    strategy.initial_arrays = None
    for round in range(1, ROUNDS + 1):
        strategy.current_arrays = current_of(strategy, params)
        replies = [reply(params + delta, weight) for delta, weight in zip(deltas(round), WEIGHTS, strict=True)]
        arrays, _ = strategy.aggregate_train(round - 1 + first_round, replies)
        params = arrays["w"].numpy()
        found.append(params)
    return found


def current_of(strategy, params):
    """What configure_train leaves in the strategy: records in FedAvgM, arrays in the others."""
    is_record = isinstance(strategy, flower.FedAvgM)
    return ArrayRecord({"w": Array(params)}) if is_record else {"w": params}


def reply(params, weight):
    metrics = MetricRecord({"num-examples": int(weight), "loss": 1.0})
    content = RecordDict({"arrays": ArrayRecord({"w": Array(params)}), "metrics": metrics})
    return Message(content=content, dst_node_id=1, message_type="train")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FedAvg(), flower.FedAvg()),
        (FedAvgM(0.5, 0.9), flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9)),
        (FedAdagrad(0.1), flower.FedAdagrad(eta=0.1)),
        (FedYogi(0.01), flower.FedYogi(eta=0.01)),
    ],
    ids=lambda strategy: type(strategy).__module__.split(".")[0],
)
def test_server_halves_agree(one, other):
    for found, expected in zip(ours(one), theirs(other), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


def test_fedadam_agrees_once_flower_counts_updates_from_1():
    """Flower raises β to round + 1, and its rounds begin with 1: its first exponent is 2, for one update done."""
    for found, expected in zip(ours(FedAdam(0.1)), theirs(flower.FedAdam(eta=0.1), first_round=0), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


def test_fedadam_undoes_the_bias_and_flowers_does_not():
    """After one update m = (1 − β1)Δ and v = (1 − β2)Δ². Corrected, they are Δ and Δ², and the step is η·sign(Δ), as
    Kingma & Ba have it (t counts the updates done). With 2 for the exponent it falls short by a quarter."""
    tau, b1, b2 = 1e-12, 0.9, 0.99
    mean = np.average(deltas(1), axis=0, weights=WEIGHTS)
    our_step = ours(FedAdam(0.1, tau=tau))[0] - start()
    np.testing.assert_allclose(our_step, 0.1 * np.sign(mean), rtol=1e-3)
    their_step = theirs(flower.FedAdam(eta=0.1, tau=tau))[0] - start()
    short = math.sqrt(1 + b2) / (1 + b1)
    np.testing.assert_allclose(their_step, 0.1 * short * np.sign(mean), rtol=1e-3)
    assert short < 0.75


class TestAggregators:
    """On deltas: Flower aggregators models, which differ from them by the same params for everybody."""

    def centre(self, aggregator, rows):
        accumulator = aggregator.zero(rows.shape[1])
        for row in rows:
            accumulator = aggregator.add(accumulator, ClientUpdate(row, NOTHING, 1.0, {}))
        return aggregator.total(accumulator).mean().delta

    def results(self, rows):
        """Two layers: Flower's models are lists of arrays."""
        return [([row[:30].reshape(5, 6), row[30:]], 1) for row in rows]

    def flat(self, layers):
        return np.concatenate([np.ravel(layer) for layer in layers])

    @pytest.mark.parametrize("count", [1, 2, 10, 11])
    def test_median(self, count):
        rows = deltas(1)[:count]
        expected = self.flat(flower_folds.aggregate_median(self.results(rows)))
        np.testing.assert_allclose(self.centre(Median(), rows), expected, rtol=1e-6)

    @pytest.mark.parametrize("trim", [0.0, 0.1, 0.2, 0.45])
    def test_trimmed_mean(self, trim):
        expected = self.flat(flower_folds.aggregate_trimmed_avg(self.results(deltas(1)), trim))
        np.testing.assert_allclose(self.centre(TrimmedMean(trim), deltas(1)), expected, rtol=1e-4, atol=1e-7)

    def test_trimmed_mean_cuts_as_many_as_asked(self):
        """29 % of 100 clients are 29, where Flower cuts 28, as 0.29·100 is 28.999…96: one of 29 attackers is left."""
        rows = np.full((100, SIZE), 1.0, np.float32)
        rows[:29] = 1e9
        assert flower_folds.aggregate_trimmed_avg(self.results(rows), 0.29)[0].max() > 1e6
        np.testing.assert_array_equal(self.centre(TrimmedMean(0.29), rows), 1.0)

    @pytest.mark.parametrize("byzantine", [0, 2, 4])
    def test_krum(self, byzantine):
        expected = self.flat(flower_folds.aggregate_krum(self.results(deltas(1)), byzantine, to_keep=0))
        np.testing.assert_allclose(self.centre(Krum(byzantine), deltas(1)), expected, rtol=1e-6)

    @pytest.mark.parametrize("keep", [1, 4, 11])
    def test_multikrum(self, keep):
        """For equal weights: Flower's mean of the chosen believes the numbers of examples that clients claim."""
        expected = self.flat(flower_folds.aggregate_krum(self.results(deltas(1)), 2, to_keep=keep))
        np.testing.assert_allclose(self.centre(MultiKrum(2, keep), deltas(1)), expected, rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize("byzantine", [0, 1, 2])
    def test_bulyan(self, byzantine):
        """Of two updates that are each other's nearest Flower chooses the first to arrive, ours the more central,
        since replies arrive in any order. They agree when the more central arrive first."""
        rows = deltas(2)
        distances = ((rows[:, None] - rows) ** 2).sum(2)
        central = rows[np.argsort(np.median(distances, axis=1))]
        krum = flower_folds.aggregate_krum
        expected = self.flat(flower_folds.aggregate_bulyan(self.results(central), byzantine, krum, to_keep=0))
        np.testing.assert_allclose(self.centre(Bulyan(byzantine), rows), expected, rtol=1e-4, atol=1e-7)
