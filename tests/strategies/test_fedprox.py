"""FedProx: its closed form on quadratics, and what it is at μ = 0."""

import numpy as np
import pytest

from engines import SOONEST
from federations import adam, federation
from quadratics import Quadratics, close
from umbel import ConfigError, FedAvg, IncompatibleError, Simulation, run
from umbel.strategies.fedavgm import FedAvgM
from umbel.strategies.fedprox import FedProx, Proximal

MU = 0.7


@pytest.mark.parametrize("rounds", [1, 2])
def test_first_steps_are_the_closed_form(rounds):
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(workers=1)
    history = run(clients.experiment(strategy=FedProx(MU), rounds=rounds), simulation)
    w = simulation.initial_params().astype(np.float64)
    for _ in range(rounds):
        w = w + sum(p * clients.delta(k, w, mu=MU) for k, p in enumerate(clients.weights))
    close(history.params, w)


def test_fixed_point():
    """Where the weighted deltas cancel: not the optimum, but nearer to it than FedAvg's, and nearer for a larger μ."""
    clients = Quadratics(copies=[1, 2, 1, 3])

    def fixed_point(mu):
        return clients.root(lambda w: sum(p * clients.delta(k, w, mu=mu) for k, p in enumerate(clients.weights)))

    history = run(clients.experiment(strategy=FedProx(MU), rounds=150), Simulation(workers=1))
    close(history.params, fixed_point(MU))
    optimum = clients.optimum(clients.weights)
    distances = [np.linalg.norm(fixed_point(mu) - optimum) for mu in (0.0, MU, 4.0)]
    assert distances[0] > distances[1] > distances[2] > 1e-3


@pytest.mark.parametrize("changes", [{"strategy": FedProx(0.0)}, {"rule": Proximal(0.0)}])
def test_mu_zero_is_fedavg(changes):
    fedavg, other = (run(federation(**each), Simulation(workers=2, compile=SOONEST)) for each in ({}, changes))
    assert other.params_sha256 == fedavg.params_sha256


def test_a_rule_composes_with_any_strategy():
    """Proximal with FedAvg is FedProx; with server momentum it is momentum over FedProx's deltas."""
    simulation = Simulation(workers=2)
    both = [run(federation(**each), simulation) for each in ({"rule": Proximal(MU)}, {"strategy": FedProx(MU)})]
    assert both[0].params_sha256 == both[1].params_sha256

    clients, beta = Quadratics(), 0.5
    history = run(clients.experiment(strategy=FedAvgM(momentum=beta), rule=Proximal(MU)), simulation)
    w, v = simulation.initial_params().astype(np.float64), 0.0
    for _ in range(2):
        v = beta * v + np.mean([clients.delta(k, w, mu=MU) for k in range(len(clients))], axis=0)
        w = w + v
    close(history.params, w)


def test_works_with_an_optimizer_that_has_state():
    plain, held = (
        run(federation(model=adam, **each), Simulation(workers=2)) for each in ({}, {"rule": Proximal(10.0)})
    )
    start = run(federation(model=adam, strategy=FedAvg(1e-12), rounds=1), Simulation(workers=1)).params
    assert np.linalg.norm(held.params - start) < 0.9 * np.linalg.norm(plain.params - start)


def test_refusals():
    for bad in (-0.1, float("nan"), "1"):
        with pytest.raises(ConfigError, match="mu="):
            FedProx(bad)
        with pytest.raises(ConfigError, match="mu="):
            Proximal(bad)
    with pytest.raises(IncompatibleError, match="a rule for clients of its own, which strategy=FedProx"):
        federation(strategy=FedProx(0.1), rule=Proximal(0.1))
