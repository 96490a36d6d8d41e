"""Server optimizers on convex quadratics: their first steps in closed form, their fixed point, their schedules."""

import dataclasses

import numpy as np
import pytest

from engines import SOONEST
from federations import federation
from umbel import ConfigError, Simulation, run
from umbel.core import serial
from umbel.core.reading.overrides import override
from umbel.core.types import NOTHING, Mean
from umbel.server import Constant, Cosine, ReduceOnPlateau, StepDecay, WarmUp
from umbel.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

SIZE, CLIENTS, CLIENT_LR = 8, 5, 0.1
OPTIMIZERS = (FedAvg(0.5), FedAvgM(0.5, 0.9), FedAdagrad(0.3), FedAdam(0.3), FedYogi(0.3))
ids = pytest.mark.parametrize("strategy", OPTIMIZERS, ids=lambda strategy: type(strategy).__name__)


def quadratics():
    """f_k(w) = ½ (w − c_k)ᵀ A_k (w − c_k): positive definite A_k, shape (clients, d, d), and c_k."""
    generator = np.random.default_rng(7)
    roots = generator.normal(size=(CLIENTS, SIZE, SIZE)) / np.sqrt(SIZE)
    return roots @ roots.transpose(0, 2, 1) + np.eye(SIZE), generator.normal(size=(CLIENTS, SIZE))


def mean_delta(w):
    """Δ after each client's one step of gradient descent, float64."""
    curvatures, centres = quadratics()
    return -CLIENT_LR * np.einsum("kij,kj->i", curvatures, w - centres) / CLIENTS


def minimum():
    curvatures, centres = quadratics()
    return np.linalg.solve(curvatures.sum(0), np.einsum("kij,kj->i", curvatures, centres))


def trajectory(strategy, w, rounds):
    """The params after each round, from w."""
    state, found = strategy.init(w), []
    for _ in range(rounds):
        state, w = strategy.update(state, w, Mean(mean_delta(w).astype(np.float32), NOTHING, {}))
        found.append(w)
    return found


def start():
    return np.random.default_rng(3).normal(size=SIZE).astype(np.float32)


def first_two_steps(strategy, w):
    """Written out, in float64: what the paper's formulas give from m = v = 0."""
    eta, d1 = strategy.server_lr, mean_delta(w)
    if isinstance(strategy, FedAvg):
        w1 = w + eta * d1
        return w1, w1 + eta * mean_delta(w1)
    if isinstance(strategy, FedAvgM):
        w1 = w + eta * d1
        return w1, w1 + eta * (strategy.momentum * d1 + mean_delta(w1))
    b1, b2, tau = strategy.beta_1, getattr(strategy, "beta_2", None), strategy.tau
    if isinstance(strategy, FedAdagrad):
        w1 = w + eta * (1 - b1) * d1 / (np.abs(d1) + tau)
        d2 = mean_delta(w1)
        return w1, w1 + eta * (b1 * (1 - b1) * d1 + (1 - b1) * d2) / (np.sqrt(d1**2 + d2**2) + tau)
    v1 = (1 - b2) * d1**2
    rates = [eta, eta]
    if isinstance(strategy, FedAdam):
        rates = [eta * np.sqrt(1 - b2) / (1 - b1), eta * np.sqrt(1 - b2**2) / (1 - b1**2)]
    w1 = w + rates[0] * (1 - b1) * d1 / (np.sqrt(v1) + tau)
    d2 = mean_delta(w1)
    yogi = v1 - (1 - b2) * d2**2 * np.where(v1 > d2**2, 1, -1)
    v2 = yogi if isinstance(strategy, FedYogi) else b2 * v1 + (1 - b2) * d2**2
    return w1, w1 + rates[1] * (b1 * (1 - b1) * d1 + (1 - b1) * d2) / (np.sqrt(v2) + tau)


@ids
def test_the_first_two_steps_are_the_papers(strategy):
    for found, expected in zip(trajectory(strategy, start(), 2), first_two_steps(strategy, start()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@ids
def test_the_minimum_is_where_they_stay_and_what_they_reach(strategy):
    at_minimum = minimum().astype(np.float32)
    still = strategy.update(strategy.init(at_minimum), at_minimum, Mean(np.zeros(SIZE, np.float32), NOTHING, {}))[1]
    np.testing.assert_array_equal(still, at_minimum)
    falling = dataclasses.replace(strategy, server_lr=Cosine(strategy.server_lr, 400))
    np.testing.assert_allclose(trajectory(falling, start(), 400)[-1], at_minimum, atol=2e-3)


def test_fedavgm_without_momentum_is_fedavg():
    for one, other in zip(trajectory(FedAvgM(0.7, 0.0), start(), 5), trajectory(FedAvg(0.7), start(), 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fedadam_without_bias_correction_is_algorithm_2():
    """η stays what it is: Reddi et al. write no correction."""
    plain, b1, b2, tau, d1 = FedAdam(0.3, bias_correction=False), 0.9, 0.99, 1e-3, mean_delta(start())
    expected = start() + 0.3 * (1 - b1) * d1 / (np.sqrt((1 - b2) * d1**2) + tau)
    np.testing.assert_allclose(trajectory(plain, start(), 1)[0], expected, rtol=1e-4, atol=1e-6)


def test_fedadam_is_keras_adam_with_minus_delta_for_gradient():
    import keras

    variable, optimizer = keras.Variable(start()), keras.optimizers.Adam(0.3, beta_1=0.9, beta_2=0.99, epsilon=1e-3)
    for w in trajectory(FedAdam(0.3), start(), 5):
        optimizer.apply([keras.ops.convert_to_tensor(-mean_delta(variable.numpy()).astype(np.float32))], [variable])
        np.testing.assert_allclose(w, variable.numpy(), rtol=1e-4, atol=1e-5)


def test_a_block_more_or_less_changes_nothing():
    """Long vectors are worked through in blocks: each number goes its own way."""
    strategy, long = FedYogi(0.1), np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    whole = strategy.update(strategy.init(long), long, Mean(long, NOTHING, {}))[1]
    tail = strategy.update(strategy.init(long[-9:]), long[-9:], Mean(long[-9:], NOTHING, {}))[1]
    np.testing.assert_array_equal(whole[-9:], tail)


class TestServerRate:
    @ids
    def test_a_constant_schedule_is_its_rate(self, strategy):
        scheduled = dataclasses.replace(strategy, server_lr=Constant(strategy.server_lr))
        for one, other in zip(trajectory(scheduled, start(), 3), trajectory(strategy, start(), 3), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_schedule_counts_rounds_from_1(self):
        steps = np.diff(np.array([start(), *trajectory(FedAvg(StepDecay(1.0, every=2)), start(), 3)]), axis=0)
        w = start()
        for step, rate in zip(steps, (1.0, 1.0, 0.1), strict=True):
            np.testing.assert_allclose(step, rate * mean_delta(w), rtol=1e-3, atol=1e-6)
            w = w + step

    @ids
    def test_a_resumed_schedule_goes_on_where_it_was(self, strategy):
        """The round's number is in the state, which the store keeps."""
        falling = dataclasses.replace(strategy, server_lr=StepDecay(0.5, every=1))
        w, state, expected = start(), falling.init(start()), trajectory(falling, start(), 3)
        for after in expected:
            state = serial.loads(serial.dumps(state), like=falling.init(w))
            state, w = falling.update(state, w, Mean(mean_delta(w).astype(np.float32), NOTHING, {}))
            np.testing.assert_array_equal(w, after)

    @pytest.mark.parametrize("rate", [ReduceOnPlateau(0.1), WarmUp(3, ReduceOnPlateau(0.1))], ids=["bare", "inside"])
    def test_a_schedule_that_needs_records_is_refused_when_built(self, rate):
        """A strategy does not see them: it would keep the first rate for ever, in silence."""
        with pytest.raises(ConfigError, match=r"server_lr=.*not the records"):
            FedAdam(server_lr=rate)

    def test_it_can_be_set_from_the_command_line(self):
        assert override(FedAdam(), ["server_lr=0.5"]) == FedAdam(0.5)
        assert override(FedAvg(Constant(1.0)), ["server_lr.rate=0.5"]) == FedAvg(Constant(0.5))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: FedAvgM(momentum=1.0), "momentum=1.0 < 1"),
        (lambda: FedAvgM(momentum=-0.1), "momentum=-0.1"),
        (lambda: FedAdam(beta_1=1.0), "beta_1=1.0 < 1"),
        (lambda: FedYogi(beta_2=1.5), "beta_2=1.5 < 1"),
        (lambda: FedAdagrad(tau=0.0), "tau=0.0"),
        (lambda: FedAdam(server_lr=0.0), "server_lr=0.0"),
        (lambda: FedAdam(bias_correction="yes"), "bias_correction='yes'"),
    ],
)
def test_bad_values(make, name):
    with pytest.raises(ConfigError, match=name):
        make()


@pytest.mark.parametrize(
    "strategy",
    [FedAvg(Cosine(1.0, 6)), FedAvgM(0.5), FedAdagrad(0.1), FedAdam(StepDecay(0.1, every=2)), FedYogi(0.1)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_run_learns_and_resumes_to_the_same_bits(strategy, tmp_path):
    store, simulation = f"sqlite:///{tmp_path / 'runs.db'}", Simulation(workers=1, compile=SOONEST)
    begun = run(federation(strategy=strategy), simulation, store=store)
    resumed = run(federation(strategy=strategy, rounds=6), simulation, store=store, resume=begun.run)
    whole = run(federation(strategy=strategy, rounds=6), simulation)
    assert resumed.params_sha256 == whole.params_sha256
    assert whole.rounds[-1].metrics["test_loss"] < whole.rounds[0].metrics["test_loss"]
