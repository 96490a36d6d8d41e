"""BatchNorm's statistics follow the clients' plain weighted mean, whatever a strategy does with the weights."""

import numpy as np
import pytest

from federations import FEATURES
from normalised import far_apart, normalised, statistics_of
from simulations import play
from umbel import FedAvg, FixedCohort, strategies
from umbel.core.parts.devices import Around, Devices
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import NOTHING, ClientUpdate, Mean
from umbel.server.statistics import followed, rebased

SPEC = ModelSpec(
    (
        VariableSpec("dense/kernel", (2,), "float32", True, 0),
        VariableSpec("norm/gamma", (3,), "float32", True, 2),
        VariableSpec("norm/moving_mean", (3,), "float32", False, 5),
        VariableSpec("norm/moving_variance", (3,), "float32", False, 8),
        VariableSpec("head/kernel", (2,), "float32", True, 11),
    )
)
OTHERS = [
    strategies.FedAvg(0.5),
    strategies.FedAvgM(),
    strategies.FedAdam(),
    strategies.FedYogi(),
    strategies.FedDyn(),
    strategies.FedNova(server_momentum=0.5),
    strategies.Scaffold(),
]


@pytest.fixture(scope="module")
def averaged():
    return play(normalised())


def test_places():
    assert SPEC.statistics == (slice(5, 11),)
    assert SPEC.moments == ((slice(5, 8), slice(8, 11)),)
    one_at_home = SPEC.variables[2]._replace(offset=None)
    alone = ModelSpec((SPEC.variables[0], one_at_home, SPEC.variables[3]._replace(offset=2)))
    assert alone.moments == ()


def test_a_model_without_statistics_is_not_copied():
    params = np.zeros(5, np.float32)
    spec = ModelSpec(SPEC.variables[:2])
    update = ClientUpdate(params, NOTHING, 1.0, {})
    assert followed(params, params, params, spec) is params
    assert rebased(update, params, params, spec) is update


@pytest.mark.parametrize("strategy", OTHERS, ids=repr)
def test_statistics_equal_those_of_fedavg(strategy, averaged):
    """Bit for bit: what BatchNorm sees here does not depend on the weights. The weights go elsewhere."""
    history = play(normalised(strategy=strategy))
    np.testing.assert_array_equal(statistics_of(history), statistics_of(averaged))
    assert (history.params != averaged.params).sum() > FEATURES
    assert min(history.params[place].min() for _, place in history.spec.moments) > 0


def test_a_server_optimizer_would_have_made_a_variance_negative():
    """Why this is done: variances fall from 1 to 0.01 in one round, and momentum would carry them on."""
    strategy, variance = strategies.FedAvgM(), np.ones(1, np.float32)
    state = strategy.init(variance)
    for _ in range(2):
        state, variance = strategy.update(state, variance, Mean(0.01 - variance, NOTHING, {}))
    assert variance < 0


def test_noise_makes_no_variance_negative():
    before, delta = np.ones(13, np.float32), np.full(13, -3, np.float32)
    params = followed(before + 5, before, delta, SPEC)
    np.testing.assert_array_equal(params, [6] * 5 + [-2] * 3 + [0] * 3 + [6] * 2)


def test_a_late_update_is_a_step_towards_the_clients_own_statistics():
    """s·(v_k − v) with v of now: a weighted mean of v and v_k, whichever params the client began from."""
    generator = np.random.default_rng(0)
    own, base, params = generator.normal(size=(3, 13)).astype(np.float32)
    found = rebased(ClientUpdate(own - base, NOTHING, 1.0, {}), base, params, SPEC).delta
    np.testing.assert_allclose(found[5:11], (own - params)[5:11], atol=1e-6)
    np.testing.assert_array_equal(found[:5], (own - base)[:5])


@pytest.mark.parametrize("server", [FedAvg(), strategies.FedAdam()], ids=repr)
def test_late_statistics_stay_among_those_that_clients_measured(server):
    """In every round between the least and the largest of any client and of the start, however late updates are."""
    uneven = Devices(Around(20.0, 1.0), Around(1e4, 0.5), Around(1e3, 0.5))
    settings = {"strategy": strategies.FedBuff(2, server), "devices": uneven, "sampler": FixedCohort(4)}
    measured = np.stack([x.var(0) for x, _ in far_apart()] + [np.ones(FEATURES)])
    for rounds in range(1, 5):
        history = play(normalised(**settings, rounds=rounds))
        ((_, place),) = history.spec.moments
        assert (history.params[place] >= 0.999 * measured.min(0)).all()
        assert (history.params[place] <= 1.001 * measured.max(0)).all()
    assert max(record.metrics["staleness"] for record in history.rounds) >= 1
