"""SCAFFOLD: its closed form on quadratics, its control variates, and what it refuses."""

import numpy as np
import pytest

from engines import SOONEST
from federations import adam, federation
from quadratics import EPOCHS, RATE, Quadratics, close, cohorts, heavy
from umbel import ConfigError, Cosine, FixedCohort, Local, Simulation, run
from umbel.core.types import Broadcast
from umbel.strategies.scaffold import Scaffold


def by_hand(clients, w, cohort_of_rounds, weights, server_lr=1.0):
    """Algorithm 1, option II, in float64."""
    count = len(clients)
    c, own = np.zeros_like(w), [np.zeros_like(w) for _ in range(count)]
    for cohort in cohort_of_rounds:
        say = np.array([weights[k] for k in cohort]) / sum(weights[k] for k in cohort)
        deltas = [clients.delta(k, w, offset=c - own[k]) for k in cohort]
        fresh = [own[k] - c - d / (clients.steps(k) * RATE) for k, d in zip(cohort, deltas, strict=True)]
        changes = [new - own[k] for k, new in zip(cohort, fresh, strict=True)]
        w = w + server_lr * sum(p * d for p, d in zip(say, deltas, strict=True))
        c = c + len(cohort) / count * sum(p * change for p, change in zip(say, changes, strict=True))
        for k, new in zip(cohort, fresh, strict=True):
            own[k] = new
    return w


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_first_steps_are_the_closed_form(weighting, rounds):
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(workers=1)
    history = run(clients.experiment(strategy=Scaffold(0.8), weighting=weighting, rounds=rounds), simulation)
    weights = clients.weights if weighting == "examples" else np.ones(4)
    close(history.params, by_hand(clients, simulation.initial_params(), [range(4)] * rounds, weights, 0.8))


def test_sampled_cohorts_are_the_closed_form():
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(workers=1)
    experiment = clients.experiment(strategy=Scaffold(), weighting="uniform", sampler=FixedCohort(2), rounds=6)
    history, chosen = run(experiment, simulation), cohorts(experiment, 4)
    assert len({tuple(cohort) for cohort in chosen}) > 1
    close(history.params, by_hand(clients, simulation.initial_params(), chosen, np.ones(4)))


@pytest.mark.parametrize(("weighting", "cohort"), [("uniform", 4), ("uniform", 2), ("examples", 4), ("examples", 2)])
def test_fixed_point_is_the_optimum(weighting, cohort):
    """Whatever the cohort: where FedAvg ends up elsewhere."""
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(workers=1)
    weights = clients.weights if weighting == "examples" else np.ones(4) / 4
    changes = {"weighting": weighting, "sampler": FixedCohort(cohort), "rounds": 200}
    history = run(clients.experiment(strategy=Scaffold(), **changes), simulation)
    close(history.params, clients.optimum(weights))
    fedavg = run(clients.experiment(**changes), simulation)
    assert np.linalg.norm(fedavg.params - clients.optimum(weights)) > 0.01


def test_first_round_is_fedavg():
    fedavg, other = (
        run(federation(rounds=1, **each), Simulation(workers=2, compile=SOONEST))
        for each in ({}, {"strategy": Scaffold()})
    )
    np.testing.assert_array_equal(other.params, fedavg.params)


def test_one_client_is_fedavg_in_every_round():
    """c is its own c_i, bit for bit, so nothing is corrected."""
    clients, simulation = Quadratics(clients=1), Simulation(workers=1)
    both = [
        run(clients.experiment(strategy=strategy, weighting="uniform", rounds=6), simulation)
        for strategy in (Scaffold(), clients.experiment().strategy)
    ]
    np.testing.assert_array_equal(both[0].params, both[1].params)


def test_control_variates_sum_to_the_servers():
    """c = mean of all c_i, those that never took part included."""
    clients, simulation, seen = Quadratics(clients=5), Simulation(workers=1), []

    class Watched(Scaffold):
        def broadcast(self, state):
            seen.append(state.c)
            return state.c

    changes = {"sampler": FixedCohort(2), "rounds": 4}
    run(clients.experiment(strategy=Watched(), **changes | {"rounds": 5}), simulation)  # round 5 broadcasts round 4's c
    run(clients.experiment(strategy=Scaffold(), **changes), simulation)
    kept = [simulation._memory.read(client) for client in range(5)]
    close(seen[-1], sum(memory[0] for memory in kept if memory is not None) / 5)


def test_nothing_is_learnt_without_a_step():
    strategy, params = Scaffold(), np.ones(3, np.float32)
    broadcast = Broadcast(1, params, np.full(3, 2, np.float32), (), 0.1)
    for steps, rate in ((0, 0.1), (5, 0.0)):
        _, extra, kept = strategy.finish(broadcast, params, np.zeros(3, np.float32), steps, rate)
        np.testing.assert_array_equal(extra, 0)
        assert kept is params


def test_a_rate_that_changes_with_the_rounds():
    clients, simulation = Quadratics(), Simulation(workers=1)
    local = Local(epochs=EPOCHS, batch_size=8, learning_rate=Cosine(RATE, rounds=400), shuffle=False)
    history = run(clients.experiment(strategy=Scaffold(), local=local, rounds=200), simulation)
    close(history.params, clients.optimum(clients.weights))


def test_other_optimizers_are_refused():
    with pytest.raises(ConfigError, match=r"SGD\(momentum=0\).*optimizer is Adam"):
        run(federation(model=adam, strategy=Scaffold()), Simulation(workers=1))
    with pytest.raises(ConfigError, match=r"SGD\(momentum=0\).*optimizer is SGD\(momentum=0.5\)"):
        run(Quadratics().experiment(model=heavy, strategy=Scaffold()), Simulation(workers=1))
