"""Homomorphic encryption in an experiment: its sum, its sessions, its settings."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from federations import federation
from optional import needs_tenseal
from umbel import Simulation, run
from umbel.core.errors import ClientError, ConfigError, RunStopped
from umbel.core.random import derive
from umbel.core.types import ClientUpdate, Failure, Shape, Weighted
from umbel.privacy.homomorphic import HEAD, SUM, ClientContext, EncryptedSum, Homomorphic, ServerContext
from umbel.privacy.schemes import BFV

SHAPE = Shape(5000, 3)


def updates(count: int, weight: float = 1.0, shape: Shape = SHAPE) -> list[ClientUpdate]:
    rng = np.random.default_rng(3)
    return [
        ClientUpdate(
            rng.uniform(-1, 1, shape.delta).astype(np.float32),
            rng.uniform(-1, 1, shape.extra).astype(np.float32),
            weight * (1 + client) if weight != 1 else 1.0,
            {"loss": Weighted(client + 1.0, 2.0), "secret": Weighted(1.0, 1.0)},
        )
        for client in range(count)
    ]


def play(settings: Homomorphic, sent: list[ClientUpdate], is_real: bool, order=None, cohort=None):
    """A session; order: the clients whose contributions arrive, as they arrive."""
    key = derive(0, "round", 1)
    cohort = cohort or range(len(sent))
    session = settings.session(SHAPE, cohort, 1, key, is_real)
    for client in order if order is not None else range(len(sent)):
        session.add(client, session.contribute(client, sent[client], key.derive("client", client)))
    return session.total(), session.bytes_up


def assert_equal(one, other) -> None:
    assert np.array_equal(one.delta, other.delta)
    assert np.array_equal(one.extra, other.extra)
    assert one[2:] == other[2:]


@needs_tenseal
@pytest.mark.parametrize("scheme", ["bfv", "ckks", BFV()], ids=str)
@pytest.mark.parametrize("max_weight", [1, 90])
def test_encryption_and_arithmetic_alone_give_the_same_total(scheme, max_weight):
    if isinstance(scheme, BFV) and max_weight > 1:
        scheme = BFV(bits=8, max_weight=max_weight)
    settings = Homomorphic(1.0, clients=12, max_weight=max_weight, scheme=scheme)
    sent = updates(6, 2.0 if max_weight > 1 else 1.0)
    real, bytes_up = play(settings, sent, True)
    simulated, estimate = play(settings, sent, False)
    assert_equal(real, simulated)
    assert abs(estimate / bytes_up - 1) < 0.005
    step, weights = 1.0 / settings.parameters.levels, np.array([one.weight for one in sent])
    assert real.weight == weights.sum()
    assert real.clients == 6
    assert np.abs(real.delta - sum(one.weight * one.delta.astype(float) for one in sent)).max() < weights.sum() * step
    assert np.abs(real.extra - sum(one.weight * one.extra.astype(float) for one in sent)).max() < weights.sum() * step
    expected = np.average([one.metrics["loss"].mean() for one in sent], weights=weights)
    assert abs(real.metrics["loss"].mean() - expected) < 10 * step
    assert "secret" not in real.metrics


@needs_tenseal
def test_the_order_of_arrival_changes_no_bit_and_dropouts_leave_the_sum_of_the_rest():
    settings, sent = Homomorphic(1.0), updates(5)
    straight, _ = play(settings, sent, True, order=[0, 2, 4])
    reverse, _ = play(settings, sent, True, order=[4, 2, 0])
    alone, _ = play(settings, sent, False, order=[2, 4, 0])
    assert straight.clients == 3
    assert_equal(straight, reverse)
    assert_equal(straight, alone)


@needs_tenseal
def test_contributions_may_be_made_on_several_threads():
    settings, sent, key = Homomorphic(1.0), updates(8), derive(0, "round", 1)
    session = settings.session(SHAPE, range(8), 1, key, True)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda c: session.contribute(c, sent[c], key.derive("client", c)), range(8)))
    for client, contribution in enumerate(made):
        session.add(client, contribution)
    assert_equal(session.total(), play(settings, sent, False)[0])


@needs_tenseal
@pytest.mark.parametrize("is_real", [True, False])
def test_a_session_refuses_what_would_reveal_or_falsify(is_real):
    settings, sent, key = Homomorphic(1.0, clients=5), updates(5), derive(0)
    session = settings.session(SHAPE, range(5), 1, key, is_real)
    made = session.contribute(0, sent[0], key)
    session.add(0, made)
    for stranger in (0, 7):
        with pytest.raises(ClientError, match=f"client {stranger}: .*second contribution"):
            session.add(stranger, made)
    session.add(1, session.contribute(1, sent[1], key))
    with pytest.raises(RunStopped, match="2 clients are in the sum; at least 3"):
        session.total()
    with pytest.raises(ConfigError, match="weighting='uniform'"):
        session.contribute(2, sent[2]._replace(weight=17.0), key)
    with pytest.raises(ConfigError, match=r"round 1: a cohort of 6; Homomorphic\(clients=5\)"):
        settings.session(SHAPE, range(6), 1, key, is_real)
    with pytest.raises(RunStopped, match="round 1: a cohort of 2; at least 3"):
        settings.session(SHAPE, range(2), 1, key, is_real)


@needs_tenseal
@pytest.mark.parametrize("is_real", [True, False])
def test_an_update_that_is_not_finite_costs_its_client_only(is_real):
    settings, sent, key = Homomorphic(1.0), updates(4), derive(0, "round", 1)
    sent[3] = sent[3]._replace(delta=np.full(SHAPE.delta, np.nan, np.float32))
    session = settings.session(SHAPE, range(4), 1, key, is_real)
    made = [session.contribute(client, one, key.derive("client", client)) for client, one in enumerate(sent)]
    assert isinstance(made[3], Failure)
    assert (made[3].client, made[3].reason) == (3, "non_finite")
    for client in range(3):
        session.add(client, made[client])
    assert_equal(session.total(), play(settings, updates(3), False)[0])


@needs_tenseal
def test_an_experiment_learns_the_same_with_its_updates_hidden():
    aggregation, arithmetic = Homomorphic(1.0, max_weight=103), Simulation(1, "graph")
    open_to_all = federation(weighting="examples")
    hidden = dataclasses.replace(open_to_all, aggregation=aggregation)
    plain, alone = run(open_to_all, arithmetic), run(hidden, arithmetic)
    real = run(hidden, Simulation(2, "graph", aggregation="protocol"))
    assert np.array_equal(real.params, alone.params)
    # Three rounds of means, each within a step.
    assert np.abs(real.params - plain.params).max() < 4 / aggregation.parameters.levels
    assert [one.metrics["train_saturated"] for one in real.rounds] == [0, 0, 0]
    assert real.rounds[0].bytes_up > 4 * len(real.params) * 4


@needs_tenseal
def test_a_contribution_that_is_no_ciphertext_names_its_client_and_leaves_the_sum_alone():
    settings, sent, key = Homomorphic(1.0, clients=5), updates(4), derive(0, "round", 1)
    session = settings.session(SHAPE, range(4), 1, key, True)
    for client in range(3):
        session.add(client, session.contribute(client, sent[client], key.derive("client", client)))
    with pytest.raises(ClientError, match="client 3: expected an encrypted update"):
        session.add(3, session.contribute(3, sent[3], key)[:-1])
    assert_equal(session.total(), play(settings, sent, False, order=range(3))[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"limit": 0.0}, "limit"),
        ({"clients": 2}, "clients=2"),
        ({"scheme": "rsa"}, "'bfv', 'ckks'"),
        ({"scheme": BFV(), "clients": 100}, r"sums at most 15 clients.*use BFV\(bits=16.*plain_modulus=6578177"),
        ({"scheme": BFV(), "clients": 10, "max_weight": 90}, "of max_weight=90 use BFV"),
        ({"scheme": "ckks", "clients": 1000}, "bits=23 would do"),
        ({"metrics": "loss"}, "tuple of names"),
        ({"metric_limit": -1.0}, "metric_limit"),
    ],
)
def test_settings_that_cannot_hold_are_refused_when_built(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Homomorphic(**{"limit": 1.0} | settings)


def test_without_tenseal_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match=r"needs tenseal: pip install 'umbel\[he\]'"):
        ClientContext.create(BFV(bits=15))
    with pytest.raises(ConfigError, match="needs tenseal"):
        EncryptedSum(ServerContext(BFV(bits=14), bytes(32)), 1).add(HEAD.pack(SUM, bytes(32), 1, 1) + b"\1\0\0\0x")


def test_importing_it_does_not_import_tenseal():
    code = "import sys, umbel.privacy.homomorphic as h; h.Homomorphic(1.0); print('tenseal' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
