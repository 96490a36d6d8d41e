"""FedDyn: its closed form on quadratics, and what it is as α → 0."""

import numpy as np
import pytest

from engines import SOONEST
from federations import federation
from quadratics import Quadratics, close, cohorts
from umbel import ConfigError, FixedCohort, Simulation, run
from umbel.strategies.feddyn import FedDyn

ALPHA = 0.5


def by_hand(clients, w, cohort_of_rounds, weights, alpha=ALPHA):
    """Algorithm 1 in float64, each client's problem solved by its steps."""
    count = len(clients)
    h, gradients = np.zeros_like(w), [np.zeros_like(w) for _ in range(count)]
    for cohort in cohort_of_rounds:
        say = np.array([weights[k] for k in cohort]) / sum(weights[k] for k in cohort)
        deltas = [clients.delta(k, w, offset=-gradients[k], mu=alpha) for k in cohort]
        mean = sum(p * d for p, d in zip(say, deltas, strict=True))
        for k, d in zip(cohort, deltas, strict=True):
            gradients[k] = gradients[k] - alpha * d
        h = h - alpha * len(cohort) / count * mean
        w = w + mean - h / alpha
    return w


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_first_steps_are_the_closed_form(weighting, rounds):
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(workers=1)
    history = run(clients.experiment(strategy=FedDyn(ALPHA), weighting=weighting, rounds=rounds), simulation)
    weights = clients.weights if weighting == "examples" else np.ones(4)
    close(history.params, by_hand(clients, simulation.initial_params(), [range(4)] * rounds, weights))


def test_sampled_cohorts_are_the_closed_form():
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(workers=1)
    experiment = clients.experiment(strategy=FedDyn(ALPHA), weighting="uniform", sampler=FixedCohort(2), rounds=6)
    history, chosen = run(experiment, simulation), cohorts(experiment, 4)
    assert len({tuple(cohort) for cohort in chosen}) > 1
    close(history.params, by_hand(clients, simulation.initial_params(), chosen, np.ones(4)))


@pytest.mark.parametrize(("weighting", "cohort"), [("uniform", 4), ("uniform", 2), ("examples", 4), ("examples", 2)])
def test_fixed_point_is_the_optimum(weighting, cohort):
    """Though no client solves its problem to the end."""
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(workers=1)
    weights = clients.weights if weighting == "examples" else np.ones(4) / 4
    changes = {"weighting": weighting, "sampler": FixedCohort(cohort), "rounds": 300}
    history = run(clients.experiment(strategy=FedDyn(1.0), **changes), simulation)
    close(history.params, clients.optimum(weights))


def test_as_alpha_vanishes_clients_do_what_fedavgs_do():
    """The server's own step does not vanish: in the first round it goes on by participation times the mean delta."""
    simulation = Simulation(workers=2, compile=SOONEST)
    fedavg = run(federation(rounds=1, weighting="uniform"), simulation)
    start = simulation.initial_params()
    experiment = federation(rounds=1, weighting="uniform", strategy=FedDyn(1e-30))
    other = run(experiment, Simulation(workers=2, compile=SOONEST))
    mean = fedavg.params - start
    np.testing.assert_allclose(other.params - start, mean * (1 + 4 / 8), rtol=1e-4, atol=1e-6)
    for name in ("train_loss", "train_accuracy"):
        assert other.rounds[0].metrics[name] == pytest.approx(fedavg.rounds[0].metrics[name], rel=1e-6)


@pytest.mark.parametrize("alpha", [0, -1, float("inf")])
def test_bad_alphas(alpha):
    with pytest.raises(ConfigError, match="alpha="):
        FedDyn(alpha)
