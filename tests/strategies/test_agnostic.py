"""Agnostic weights: FedAvg without a step, the closed form with one, and a model for those that lose most."""

import functools

import numpy as np
import pytest

from engines import SOONEST
from federations import dense, federation
from interruptions import CRASH_POINTS, Killed, kill_at
from quadratics import EPOCHS, RATE, Quadratics, close, cohorts
from simulations import play
from umbel import (
    ConfigError,
    Devices,
    FedBuff,
    FixedCohort,
    IncompatibleError,
    Local,
    PerExample,
    PowerOfChoice,
    Quantised,
    SecureSum,
    Simulation,
    data,
    run,
)
from umbel.core.experiment import Experiment
from umbel.core.types import Reweighed
from umbel.strategies import IFCA, Agnostic, FedAvgM
from umbel.strategies.agnostic import Mixture, projected

METHODS = ("projected", "multiplicative")
each_method = pytest.mark.parametrize("method", METHODS)


def climbed(shares, climb, method):
    """One step of λ in float64, by bisection on what is taken off every number."""
    if method == "multiplicative":
        grown = shares * np.exp(climb)
        return grown / grown.sum()
    low, high = (shares + climb).min() - 1, (shares + climb).max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(shares + climb - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(shares + climb - low, 0)


def by_hand(clients, w, cohort_of_rounds, agnostic, weights):
    """Rounds in float64; a client's loss is the mean over its steps."""
    p = weights / weights.sum()
    shares = p.copy()
    for cohort in cohort_of_rounds:
        ratio = shares[cohort] / p[cohort]
        say = weights[cohort] * (ratio + agnostic.least * (1 - ratio))
        deltas, climb = [], np.zeros(len(clients))
        for k in cohort:
            x, y = clients.examples[k][0][: len(clients.examples[k][0]) // clients.copies[k]], None
            y = clients.examples[k][1][: len(x), 0]
            local, losses = w, []
            for _ in range(clients.steps(k)):
                losses.append(np.mean((x @ local - y) ** 2))
                local = local - RATE * clients.gradient(k, local)
            deltas.append(local - w)
            climb[k] = agnostic.step * np.mean(losses) * len(clients) / len(cohort)
        w = w + say @ np.stack(deltas) / say.sum()
        shares = climbed(shares, climb, agnostic.method)
    return w


@each_method
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_rounds_are_the_closed_form(method, weighting):
    clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(1, SOONEST)
    agnostic = Agnostic(0.05, method)
    history = run(clients.experiment(reweighting=agnostic, weighting=weighting, rounds=4), simulation)
    weights = np.array(clients.copies, float) if weighting == "examples" else np.ones(4)
    start = simulation.initial_params().astype(np.float64)
    found = by_hand(clients, start, [[0, 1, 2, 3]] * 4, agnostic, weights)
    close(history.params, found)
    assert np.linalg.norm(found - by_hand(clients, start, [[0, 1, 2, 3]] * 4, Agnostic(0.0), weights)) > 1e-3


@each_method
def test_sampled_cohorts_climb_by_what_everyone_would_on_average(method):
    clients, simulation = Quadratics(), Simulation(1, SOONEST)
    agnostic = Agnostic(0.02, method)
    tried = clients.experiment(reweighting=agnostic, weighting="uniform", sampler=FixedCohort(2), rounds=6)
    history, chosen = run(tried, simulation), cohorts(tried, 4)
    close(history.params, by_hand(clients, simulation.initial_params(), chosen, agnostic, np.ones(4)))


def with_dropout():
    return dense(dropout=0.4)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("projected", {}),
        ("multiplicative", {"weighting": "uniform", "codec": Quantised(8)}),
        ("projected", {"strategy": IFCA(2)}),
    ],
    ids=["FedAvg", "codec", "IFCA"],
)
def test_without_a_step_nothing_changes_a_bit(method, changes):
    """FedAvg is FedAvg, records and bytes included; so with a codec, and where clusters are summed apart."""
    plain, other = (
        run(federation(model=with_dropout, **changes, **each), Simulation(2, SOONEST))
        for each in ({}, {"reweighting": Agnostic(0.0, method)})
    )
    assert other.params_sha256 == plain.params_sha256
    for record, expected in zip(other.rounds, plain.rounds, strict=True):
        assert record._replace(seconds=0, eval_seconds=0) == expected._replace(seconds=0, eval_seconds=0)


def test_one_domain_is_fedavg_bit_for_bit():
    plain, other = (
        run(federation(**each), Simulation(2, SOONEST))
        for each in ({}, {"reweighting": Agnostic(0.5, domains=np.zeros(8, int))})
    )
    assert other.params_sha256 == plain.params_sha256


@each_method
def test_it_tends_to_the_worst_mixture(method):
    """One step a round, so that a client's loss is that of the params: in the end both clients lose as much, where
    FedAvg leaves the one with fewer examples behind."""
    clients = Quadratics(copies=[8, 1])
    local = Local(epochs=1, batch_size=None, learning_rate=RATE, shuffle=False)
    plain, fair = (
        run(clients.experiment(rounds=600, local=local, **each), Simulation(1, SOONEST)).params.astype(np.float64)
        for each in ({}, {"reweighting": Agnostic(0.003 if method == "projected" else 0.01, method)})
    )

    def losses(w):
        return [np.mean((x @ w - y[:, 0]) ** 2) for x, y in clients.examples]

    assert max(losses(fair)) < 0.7 * max(losses(plain))
    assert np.ptp(losses(fair)) < 0.02 * np.ptp(losses(plain))


def test_projection_is_the_nearest_point_of_the_simplex():
    generator = np.random.default_rng(0)
    for size in (1, 2, 7):
        for scale in (0.1, 1.0, 30.0):
            vector = scale * generator.normal(size=size)
            found = projected(vector)
            assert found.min() >= 0
            assert found.sum() == pytest.approx(1)
            np.testing.assert_allclose(found, climbed(vector, 0, "projected"), atol=1e-9)
            others = generator.dirichlet(np.ones(size), 200)
            assert (np.linalg.norm(others - vector, axis=1) >= np.linalg.norm(found - vector) - 1e-12).all()
            np.testing.assert_allclose(projected(found), found, atol=1e-12)


@each_method
def test_domains_share_a_fate(method):
    """Equal losses leave λ as it is; a domain's is the mean of its clients', and none that is empty gains."""
    agnostic = Agnostic(0.1, method, domains=[0, 0, 2, 2, 2])
    state = agnostic.init(np.array([10.0, 20.0, 5.0, 5.0, 20.0]))
    np.testing.assert_allclose(state.first, [0.5, 0, 0.5])
    alike = agnostic.heard(state, {0: 1.0, 1: 3.0, 2: 2.0, 4: 2.0})
    np.testing.assert_allclose(alike.shares, state.first)
    worse = agnostic.heard(state, {0: 1.0, 1: 3.0, 2: 4.0})
    assert worse.shares[2] > worse.shares[0] > worse.shares[1] == 0
    factors = agnostic.factors(worse, [0, 1, 2, 4])
    assert factors[0] == factors[1] < 1 < factors[2] == factors[3]
    assert agnostic.heard(state, {0: float("nan")}) is state
    alone = Mixture(state.first, np.array([1.0, 0, 0]))
    np.testing.assert_allclose(agnostic.factors(alone, [2]), [0.01])


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_and_resumed_it_has_the_bits_of_one_that_was_not(point, tmp_path, monkeypatch, uninterrupted):
    """λ is in the server's state, beside what the sampler knows of losses."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    with monkeypatch.context() as patched:
        kill_at(patched, point, 2)
        with pytest.raises(Killed):
            play(stateful(), 2, store=url)
    resumed = play(stateful(), 4, store=url, resume="latest")
    assert resumed.params_sha256 == uninterrupted.params_sha256
    assert [record.metrics for record in resumed.rounds] == [record.metrics for record in uninterrupted.rounds]


@functools.cache
def stateful() -> Experiment:
    sampler = PowerOfChoice(4, candidates=6)
    return federation(strategy=FedAvgM(), reweighting=Agnostic(0.2), sampler=sampler, model=with_dropout, rounds=4)


@pytest.fixture(scope="module")
def uninterrupted():
    history = play(stateful())
    assert history.params_sha256 != play(stateful_without()).params_sha256
    return history


def stateful_without() -> Experiment:
    return federation(strategy=FedAvgM(), sampler=PowerOfChoice(4, candidates=6), model=with_dropout, rounds=4)


def test_it_goes_with_simulated_devices():
    devices = Devices(dropout=0.3)
    plain, other = (
        run(federation(devices=devices, rounds=4, **each), Simulation(2, SOONEST))
        for each in ({}, {"reweighting": Agnostic(0.0)})
    )
    assert other.params_sha256 == plain.params_sha256
    assert [r.failures for r in other.rounds] == [r.failures for r in plain.rounds]
    assert sum(r.failures for r in plain.rounds) > 0


def test_clients_that_fail_are_left_out():
    parts = [tuple(federation().population.examples(client))[:2] for client in range(6)]
    parts[2][0][0, 0] = np.inf
    history = run(
        federation(population=data.PerClient(parts), reweighting=Agnostic(0.1), sampler=FixedCohort(6)),
        Simulation(2, SOONEST),
    )
    assert [(record.clients, record.failures) for record in history.rounds] == [(5, 1)] * 3
    assert np.isfinite(history.params).all()


def test_it_is_a_value():
    one, two = (Agnostic(0.1, domains=domains) for domains in ([0, 1], np.array([0, 1])))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Agnostic(0.1, domains=[1, 0]) != Agnostic(0.1)
    assert federation(reweighting=one).digest == federation(reweighting=two).digest != federation().digest
    assert Reweighed((), ()).heard == ()


def test_refusals():
    for bad in ({"step": -1}, {"method": "sideways"}, {"least": 0}, {"domains": [-1]}, {"domains": [[1]]}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Agnostic(**bad)
    with pytest.raises(ConfigError, match="domains of 8 clients, got 3"):
        run(federation(reweighting=Agnostic(domains=[0, 1, 2])), Simulation(1))
    for changes, message in (
        ({"secure_aggregation": SecureSum(limit=1.0)}, "needs each client's loss"),
        (
            {"local": Local(per_example=PerExample(clip_norm=1.0, noise_multiplier=1.0))},
            "loss, which local",
        ),
        ({"strategy": FedBuff(2)}, "needs rounds with a cohort"),
    ):
        with pytest.raises(IncompatibleError, match=message):
            federation(reweighting=Agnostic(), **changes)
    assert EPOCHS > 1  # so that a client's loss while it trains is not that of the params it received
