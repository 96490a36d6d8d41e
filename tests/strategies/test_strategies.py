"""The contract of every strategy, and each one's closed form."""

import numpy as np
import pytest

from umbel import ConfigError, FedAvg
from umbel.core import serial
from umbel.core.aggregators import WeightedSum
from umbel.core.parts.clusters import membership
from umbel.core.recipe import extra_size
from umbel.core.types import NOTHING, ClientUpdate, Mean, Total
from umbel.strategies import ALL_STRATEGIES

PARAMS = np.random.default_rng(0).normal(size=50).astype(np.float32)
DELTA = np.random.default_rng(1).normal(size=50).astype(np.float32)


def mean_for(strategy, delta=DELTA):
    """A round's mean, with the extra that the strategy's clients send, if it has a half of theirs, or an aggregator."""
    size = extra_size(strategy, len(delta))
    if hasattr(strategy, "aggregator"):
        aggregator, update = (
            strategy.aggregator(WeightedSum()),
            ClientUpdate(delta, NOTHING, 2.0, membership(0, strategy.clusters)),
        )
        return aggregator.total(aggregator.add(aggregator.zero(len(delta)), update)).mean()
    return Mean(delta, np.ones(size, np.float32), {})


@pytest.mark.parametrize("make", ALL_STRATEGIES)
class TestContract:
    def test_state_in_state_out(self, make):
        """Pure: equal inputs give equal outputs, and nothing passed in is changed."""
        strategy, params, delta = make(), PARAMS.copy(), DELTA.copy()
        state = strategy.init(params)
        before = serial.dumps(state)
        outcomes = [strategy.update(state, params, mean_for(strategy, delta)) for _ in range(2)]
        np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])
        assert serial.dumps(outcomes[0][0]) == serial.dumps(outcomes[1][0])
        assert serial.dumps(state) == before
        np.testing.assert_array_equal(params, PARAMS)
        np.testing.assert_array_equal(delta, DELTA)

    def test_vectors_stay_float32_of_the_same_shape(self, make):
        strategy = make()
        _, params = strategy.update(strategy.init(PARAMS), PARAMS, mean_for(strategy))
        assert (params.dtype, params.shape) == (np.float32, PARAMS.shape)

    def test_state_survives_the_store(self, make):
        strategy = make()
        state, _ = strategy.update(strategy.init(PARAMS), PARAMS, mean_for(strategy))
        assert serial.dumps(serial.loads(serial.dumps(state), like=state)) == serial.dumps(state)

    def test_repr_rebuilds_it(self, make):
        assert eval(repr(make()), {one.__name__: one for one in (FedAvg, make)}) == make()


def test_fedavg_is_the_weighted_mean_of_the_models():
    models = [PARAMS + DELTA * scale for scale in (1.0, -2.0, 0.5)]
    weights = [10.0, 20.0, 30.0]
    total = sum(weight * (model - PARAMS) for weight, model in zip(weights, models, strict=True))
    mean = Total(total, np.zeros(0, np.float32), sum(weights), 3, {}).mean()
    _, params = FedAvg().update((), PARAMS, mean)
    np.testing.assert_allclose(params, np.average(models, axis=0, weights=weights), rtol=1e-5, atol=1e-6)


def test_server_lr_scales_the_step():
    mean = Mean(DELTA, np.zeros(0, np.float32), {})
    _, half = FedAvg(0.5).update((), PARAMS, mean)
    np.testing.assert_allclose(half - PARAMS, DELTA / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), "1"])
def test_bad_rates(rate):
    with pytest.raises(ConfigError, match="server_lr"):
        FedAvg(rate)
