"""The privacy parts together, through `run`: what must not change a run's bits, and by how much noise does."""

import contextlib
import dataclasses

import numpy as np
import pytest

from federations import federation
from simulations import play
from umbel import AllClients, Chain, IncompatibleError, PrivacyPlan, RunStopped, SecureSum, Simulation, run
from umbel.privacy import LocalPlan
from umbel.privacy.budget import step_of
from umbel.privacy.noise import NoiseStream
from umbel.server.store import Store

BASE = federation()
NUMBERS = {"epsilon": 500.0, "delta": 1e-3, "rounds": 3, "population": 8}
HIDDEN = SecureSum(4.0, metrics=())
PLAN = PrivacyPlan(
    **NUMBERS,
    clip_norm=0.5,
    sampling_rate=0.7,
    noise_multiplier=1.0,
    rounding=step_of(HIDDEN),
    secret_cohort=False,
)


def private(**changes):
    """Differential privacy under secure aggregation."""
    fields = {"sampler": None, "weighting": None, "plan": PLAN, "secure_aggregation": HIDDEN}
    return dataclasses.replace(BASE, **fields | changes)


def figures(history):
    """A history without its times and bytes."""
    return [record._replace(seconds=0, eval_seconds=None, bytes_up=None, bytes_down=None) for record in history.rounds]


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A transform that does nothing, in a chain that is not empty."""

    def init(self, spec):
        return ()

    def encode(self, state, update, key):
        return update

    def decode(self, state, total, key):
        return state, total


@pytest.mark.parametrize("chain", [Chain(), Chain(Chain()), Chain(Nothing(), Chain())])
def test_a_chain_without_noise_and_clip_is_fedavg_bit_for_bit(chain):
    plain = play(BASE)
    chained = play(dataclasses.replace(BASE, transforms=chain, secure_aggregation=None, plan=None))
    np.testing.assert_array_equal(chained.params, plain.params)
    assert figures(chained) == figures(plain)
    assert chained.privacy == {}


UNCLIPPED = {
    "clip_norm": 60.0,
    "sampling_rate": 1.0,
    "noise_multiplier": 0.01,
    "epsilon": 1e4,
}  # no update's norm comes near


@pytest.fixture(scope="module")
def uniform():
    """A round in which every client counts alike."""
    return play(dataclasses.replace(BASE, sampler=AllClients(), weighting="uniform", rounds=1))


def one_round(**changes):
    return private(plan=PrivacyPlan(**NUMBERS | UNCLIPPED | changes), secure_aggregation=None, rounds=1)


def test_a_plan_that_clips_nothing_moves_fedavg_by_its_noise_and_no_more(uniform):
    """And by 3/2 of it, or 2/3, for a plan that claims so: 83 numbers tell them apart."""
    for claimed in (2 / 3, 1.0, 3 / 2):
        moved = (play(one_round()).params - uniform.params) * 8
        ratio = moved.std() / (0.01 * 60.0 * claimed)
        assert (abs(ratio - 1) < 0.25) == (claimed == 1.0)


def test_without_the_noise_it_is_fedavg(uniform, monkeypatch):
    monkeypatch.setattr(NoiseStream, "add_to", lambda self, vector, scale: vector)
    np.testing.assert_allclose(play(one_round()).params, uniform.params, rtol=1e-5, atol=1e-6)
    clipped = play(one_round(clip_norm=0.01)).params
    assert 0 < np.linalg.norm(clipped - initial()) <= 0.01


def initial():
    """The params that every run of the federation begins with."""
    with contextlib.closing(Simulation(1, "graph")) as simulation:
        simulation.open(BASE, None)
        return simulation.initial_params()


@pytest.fixture(scope="module")
def reference():
    """Clipping, noise and hidden sums, by arithmetic, on one worker."""
    return play(private())


@pytest.mark.parametrize(("workers", "mode"), [(1, "protocol"), (2, "arithmetic"), (4, "protocol")])
def test_workers_and_modes_of_aggregation_give_the_same_bits(reference, workers, mode):
    with contextlib.closing(Simulation(workers, "graph", aggregation=mode)) as simulation:
        history = run(private(), simulation)
    np.testing.assert_array_equal(history.params, reference.params)
    assert figures(history) == figures(reference)
    assert history.privacy == reference.privacy | {"aggregation": mode}


def test_hidden_sums_learn_what_open_ones_do(reference):
    """The same clients, noise and price: what is left are the grid's steps, and the clip norm kept free for them."""
    plain = play(private(secure_aggregation=None))
    np.testing.assert_allclose(plain.params, reference.params, atol=2e-3)
    for one, other in zip(figures(plain), figures(reference), strict=True):
        assert (one.clients, one.failures, one.epsilon) == (other.clients, other.failures, other.epsilon)
        assert one.metrics == pytest.approx(other.metrics, abs=0.05)


def test_nobody_in_the_cohort_releases_the_same_noise(tmp_path):
    """An empty round that was skipped would tell that nobody was sampled."""
    plan = dataclasses.replace(PLAN, sampling_rate=1e-6, rounding=0.0, clip_norm=0.5)
    store = f"sqlite:///{tmp_path}/runs.db"
    history = play(private(plan=plan, secure_aggregation=None), store=store)
    assert [record.clients for record in history.rounds] == [0, 0, 0]
    scale = 3**0.5 * 0.5 / plan.expected_cohort  # of three rounds' noise, over the public divisor
    assert (history.params - initial()).std() == pytest.approx(scale, rel=0.25)
    with Store.open(store) as opened:
        assert opened.load_run("latest").ledger == {str(plan.round_event): 3}


@dataclasses.dataclass(frozen=True)
class Poison(Nothing):
    """Makes the updates of a share of clients infinite."""

    share: float = 0.5

    def encode(self, state, update, key):
        is_bad = key.generator().random() < self.share
        return update._replace(delta=update.delta + np.float32("inf")) if is_bad else update


def test_updates_that_are_not_finite_are_left_out_and_the_divisor_stays(monkeypatch):
    """As if those clients had not been sampled: whoever is in the sum, it is divided by what is public."""
    monkeypatch.setattr(NoiseStream, "add_to", lambda self, vector, scale: vector)
    plan = dataclasses.replace(PLAN, rounding=0.0, clip_norm=60.0, sampling_rate=1.0)
    poisoned = play(private(plan=plan, secure_aggregation=None, transforms=Chain(Poison()), rounds=1))
    full = play(private(plan=plan, secure_aggregation=None, rounds=1))
    assert 0 < np.linalg.norm(poisoned.params - initial()) < np.linalg.norm(full.params - initial())
    assert [one._replace(metrics={}) for one in figures(poisoned)] == [
        one._replace(metrics={}) for one in figures(full)
    ], "the record of a secret cohort tells what is expected, not who failed"


def test_a_round_in_which_everybody_fails_is_one_like_any_other():
    """A run that ended would tell that somebody was sampled, and failed."""
    plan = dataclasses.replace(PLAN, rounding=0.0, sampling_rate=1.0)
    usual = play(private(plan=plan, secure_aggregation=None, rounds=1))
    diverging = dataclasses.replace(BASE.local, learning_rate=1e38)
    failing = play(private(plan=plan, secure_aggregation=None, local=diverging, rounds=1))
    (record,), (other,) = usual.rounds, failing.rounds
    timeless = {"seconds": 0, "eval_seconds": 0, "metrics": {}}
    assert record._replace(**timeless) == other._replace(**timeless)
    assert (failing.params != initial()).any()
    with pytest.raises(IncompatibleError, match="min_clients=2 ends a run for who was sampled"):
        private(plan=plan, secure_aggregation=None, min_clients=2)


def test_an_update_of_zero_stays_zero_and_counts():
    still = dataclasses.replace(BASE.local, learning_rate=1e-30)
    assert np.isfinite(play(private(local=still, secure_aggregation=None)).params).all()


def test_a_failing_clients_own_metrics_are_told_to_nobody(tmp_path):
    """The loss of one client would be a release that nothing pays for, or that secure aggregation was to hide."""
    diverging = dataclasses.replace(BASE.local, learning_rate=1e38)
    plans = {
        "plan": private(local=diverging, secure_aggregation=None),
        "local": private(
            local=diverging, secure_aggregation=None, plan=LocalPlan(**NUMBERS, clip_norm=0.5, noise_multiplier=1.0)
        ),
        "secure_aggregation": dataclasses.replace(
            BASE, local=diverging, secure_aggregation=SecureSum(1.0), weighting="uniform"
        ),
        "nothing": dataclasses.replace(BASE, local=diverging),
    }
    for name, experiment in plans.items():
        store, told = f"sqlite:///{tmp_path}/{name}.db", ""
        with contextlib.suppress(RunStopped):
            told = repr(play(experiment, store=store))
        with Store.open(store) as opened:
            stored = opened.load_run("latest")
        assert ("training loss" in f"{told}{stored.reason}{stored.records}") == (name == "nothing")
        assert bool(stored.reason) == (name in ("secure_aggregation", "nothing"))
