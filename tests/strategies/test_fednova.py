"""FedNova: its normalising vectors, its closed form on quadratics, and what it is when all steps are alike."""

import numpy as np
import pytest

from federations import adam, federation
from quadratics import RATE, Quadratics, close, heavy, linear
from umbel import ConfigError, Simulation, run
from umbel.strategies.fednova import FedNova, normaliser

UNEQUAL = [1, 2, 1, 5]
CASES = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.7), (0.5, 0.7)]  # momentum, μ


def test_normaliser_is_the_papers():
    """Section 4: SGD, proximal SGD, momentum SGD."""
    steps, rho, shrinkage = 7, 0.9, 0.03
    assert normaliser(steps, 0.0, 0.0) == steps
    assert normaliser(steps, 0.0, shrinkage) == pytest.approx(sum((1 - shrinkage) ** k for k in range(steps)))
    with_momentum = sum((1 - rho ** (steps - k)) / (1 - rho) for k in range(steps))
    assert normaliser(steps, rho, 0.0) == pytest.approx(with_momentum)
    assert normaliser(0, rho, shrinkage) == 0


def norms_of(clients, momentum, mu):
    return [normaliser(clients.steps(k), momentum, RATE * mu) for k in range(len(clients))]


@pytest.mark.parametrize(("momentum", "mu"), CASES)
@pytest.mark.parametrize("rounds", [1, 2])
def test_first_steps_are_the_closed_form(momentum, mu, rounds):
    clients, simulation, beta = Quadratics(copies=UNEQUAL), Simulation(workers=1), 0.3
    strategy = FedNova(momentum=momentum, mu=mu, server_lr=0.8, server_momentum=beta)
    experiment = clients.experiment(strategy=strategy, model=heavy if momentum else linear, rounds=rounds)
    history = run(experiment, simulation)
    norms, p = norms_of(clients, momentum, mu), clients.weights
    w, v = simulation.initial_params().astype(np.float64), 0.0
    for _ in range(rounds):
        mean = sum(p[k] * clients.delta(k, w, mu=mu, momentum=momentum) / norms[k] for k in range(4))
        v = beta * v + np.dot(p, norms) * mean
        w = w + 0.8 * v
    close(history.params, w)


@pytest.mark.parametrize(("momentum", "mu"), CASES)
def test_fixed_point(momentum, mu):
    """Where the normalised deltas cancel: nearer to the optimum than FedAvg's with the same clients."""
    clients = Quadratics(copies=UNEQUAL)

    def fixed_point(norms):
        def mean(w):
            deltas = [clients.delta(k, w, mu=mu, momentum=momentum) / norms[k] for k in range(4)]
            return sum(p * d for p, d in zip(clients.weights, deltas, strict=True))

        return clients.root(mean)

    strategy = FedNova(momentum=momentum, mu=mu)
    experiment = clients.experiment(strategy=strategy, model=heavy if momentum else linear, rounds=150)
    history = run(experiment, Simulation(workers=1))
    close(history.params, fixed_point(norms_of(clients, momentum, mu)))
    optimum = clients.optimum(clients.weights)
    fedavg, fednova = np.linalg.norm(fixed_point([1] * 4) - optimum), np.linalg.norm(history.params - optimum)
    assert fednova < 0.8 * fedavg


@pytest.mark.parametrize(("momentum", "model"), [(0.0, linear), (0.5, heavy)])
def test_equal_steps_are_fedavg(momentum, model):
    clients, simulation = Quadratics(), Simulation(workers=1)
    fedavg = run(clients.experiment(model=model, rounds=5), simulation)
    fednova = run(clients.experiment(model=model, strategy=FedNova(momentum=momentum), rounds=5), simulation)
    np.testing.assert_allclose(fednova.params, fedavg.params, rtol=1e-5, atol=1e-6)


def test_other_optimizers_are_refused():
    with pytest.raises(ConfigError, match=r"SGD\(momentum=0\.9\).*optimizer is SGD\(momentum=0\)"):
        run(federation(strategy=FedNova(momentum=0.9)), Simulation(workers=1))
    with pytest.raises(ConfigError, match=r"optimizer is Adam"):
        run(federation(model=adam, strategy=FedNova()), Simulation(workers=1))


@pytest.mark.parametrize("bad", [{"momentum": 1.0}, {"server_momentum": -0.1}, {"mu": -1}, {"server_lr": 0}])
def test_bad_values(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        FedNova(**bad)
