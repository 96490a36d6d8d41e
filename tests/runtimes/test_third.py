"""Whatever an experiment asks for, a runtime that only carries gives it the simulation's bits."""

import functools

import numpy as np
import pytest
from third import Third

import umbel.strategies as strategies
from engines import SOONEST
from optional import needs_tenseal
from seam import CASES, experiment, same
from simulations import play, simulation
from umbel import Simulation, run
from umbel.runtimes.attacked import Attacked
from umbel.runtimes.canaries import WithCanaries
from umbel.strategies.attacks import SignFlip


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_tenseal if "Homo" in name else ()) for name in CASES])
def test_it_has_the_bits_of_a_simulation(name):
    asked = experiment(**CASES[name])
    third = Third()
    same(run(asked, third), play(asked))


def test_its_edge_servers_add_up():
    third = Third()
    history = run(experiment(), third)
    assert third.parts == 2 * 2  # of 16 and 4 clients, in each of two rounds
    assert history.rounds[0].failures > 0


def test_it_plays_the_whole_protocol():
    asked = experiment(**CASES["SecureSum"], rounds=1)
    third, other = Third(), Simulation(1, SOONEST, aggregation="protocol")
    history = run(asked, other)
    third.hidden_sum = other.hidden_sum
    same(run(asked, third), history)


def direction(size, number):
    vector = np.random.default_rng(number).normal(size=size).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


@pytest.mark.parametrize("name", ["FedAvg", "Scaffold", "Agnostic", "SecureSum", "Sign(error_feedback=True)", "Median"])
def test_with_attackers_on_top(name):
    """They read every update: a run that was added up elsewhere would pass them by."""
    asked = experiment(**CASES[name] if name in CASES else {"codec": strategies.Sign()})
    histories = [run(asked, Attacked(runtime, SignFlip(), (0, 3, 11))) for runtime in (Third(), simulation(asked))]
    same(*histories)
    assert histories[0].params_sha256 != play(asked).params_sha256


@pytest.mark.parametrize("name", ["FedAvg", "SecureSum"])
def test_with_canaries_on_top(name):
    asked = experiment(**CASES[name])
    towards = functools.partial(direction, len(play(asked).params))
    same(*(run(asked, WithCanaries(runtime, 3, towards, 1.0)) for runtime in (Third(), simulation(asked))))
