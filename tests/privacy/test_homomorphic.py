"""Homomorphic encryption in an experiment: its sum, its sessions, its settings."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sums import Rehearsal

from federations import federation
from optional import needs_tenseal
from umbel import Simulation, run
from umbel.core.errors import ConfigError, RunStopped
from umbel.core.random import Key, derive
from umbel.core.sums import Meeting
from umbel.core.types import NOTHING, ClientUpdate, Shape, Weighted
from umbel.privacy.bound import Bound, list_clients
from umbel.privacy.contexts import HEAD, SUM, ClientContext, EncryptedSum, ServerContext
from umbel.privacy.encrypted import EncryptedClient, EncryptedServer
from umbel.privacy.homomorphic import Homomorphic
from umbel.privacy.schemes import BFV, CKKS
from umbel.privacy.secagg.client import RoundLog

SHAPE = Shape(5000, 3)
JOINS = {"loss": (), "secret": ()}  # how the states of the metrics that `updates` have join


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


def play(settings: Homomorphic, sent: list[ClientUpdate], is_real: bool, order=None):
    """A round's sum; order: the clients that answer, as they do."""
    rehearsal, key = Rehearsal(settings, SHAPE, range(len(sent)), is_real, JOINS), derive(0, "round", 1)
    for client in order if order is not None else range(len(sent)):
        rehearsal.add(client, rehearsal.contribute(client, sent[client], key.derive("client", client)))
    uploads = sum(map(len, rehearsal.sent[0].values()))
    total = rehearsal.total()
    return total, rehearsal.server.stands_for(uploads)


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
    assert real.metrics["loss"] == sum((one.metrics["loss"] for one in sent), Weighted(0.0, 0.0))  # of whole numbers
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
    rehearsal = Rehearsal(settings, SHAPE, range(8), True, JOINS)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda c: rehearsal.contribute(c, sent[c], key.derive("client", c)), range(8)))
    for client, contribution in enumerate(made):
        rehearsal.add(client, contribution)
    assert_equal(rehearsal.total(), play(settings, sent, False)[0])


@needs_tenseal
@pytest.mark.parametrize("is_real", [True, False])
def test_a_sum_refuses_what_would_reveal_or_falsify(is_real):
    settings, sent, key = Homomorphic(1.0, clients=5), updates(5), derive(0)
    rehearsal = Rehearsal(settings, SHAPE, range(5), is_real, JOINS)
    made = rehearsal.contribute(0, sent[0], key)
    rehearsal.add(0, made)
    for stranger in (0, 7):
        rehearsal.add(stranger, made)
    assert [failure.client for failure in rehearsal.failures] == [0, 7]
    rehearsal.add(1, rehearsal.contribute(1, sent[1], key))
    with pytest.raises(RunStopped, match=r"2 clients .*at least 3"):
        rehearsal.total()
    with pytest.raises(ConfigError, match="weighting='uniform'"):
        rehearsal.contribute(2, sent[2]._replace(weight=17.0), key)
    with pytest.raises(ConfigError, match=r"round 1: a cohort of 6; Homomorphic\(clients=5\)"):
        Rehearsal(settings, SHAPE, range(6), is_real)
    with pytest.raises(RunStopped, match="round 1: a cohort of 2; at least 3"):
        Rehearsal(settings, SHAPE, range(2), is_real)


@needs_tenseal
@pytest.mark.parametrize("is_real", [True, False])
def test_an_update_that_is_not_finite_weighs_nothing(is_real):
    settings, sent, key = Homomorphic(1.0), updates(4), derive(0, "round", 1)
    sent[3] = sent[3]._replace(delta=np.full(SHAPE.delta, np.nan, np.float32))
    rehearsal = Rehearsal(settings, SHAPE, range(4), is_real, JOINS)
    for client, one in enumerate(sent):
        rehearsal.add(client, rehearsal.contribute(client, one, key.derive("client", client)))
    assert not rehearsal.failures
    total = rehearsal.total()
    assert total.clients == 4
    assert_equal(total._replace(clients=3), play(settings, updates(3), False)[0])


@needs_tenseal
def test_an_experiment_learns_the_same_with_its_updates_hidden():
    aggregation = Homomorphic(1.0, max_weight=103, metrics=("loss", "accuracy"))
    arithmetic = Simulation(1, "graph")
    open_to_all = federation(weighting="examples")
    hidden = dataclasses.replace(open_to_all, secure_aggregation=aggregation)
    plain, alone = run(open_to_all, arithmetic), run(hidden, arithmetic)
    real = run(hidden, Simulation(2, "graph", aggregation="protocol"))
    assert np.array_equal(real.params, alone.params)
    # Three rounds of means, each within a step.
    assert np.abs(real.params - plain.params).max() < 4 / aggregation.parameters.levels
    assert [one.metrics["train_saturated"] for one in real.rounds] == [0, 0, 0]
    assert real.rounds[0].metrics["train_accuracy"] == plain.rounds[0].metrics["train_accuracy"]  # of counts
    assert real.rounds[0].metrics["train_loss"] == pytest.approx(plain.rounds[0].metrics["train_loss"], abs=1e-4)
    assert real.rounds[0].bytes_up > 4 * len(real.params) * 4


@needs_tenseal
def test_a_contribution_that_is_no_ciphertext_names_its_client_and_leaves_the_sum_alone():
    settings, sent, key = Homomorphic(1.0, clients=5), updates(4), derive(0, "round", 1)
    rehearsal = Rehearsal(settings, SHAPE, range(4), True, JOINS)
    for client in range(3):
        rehearsal.add(client, rehearsal.contribute(client, sent[client], key.derive("client", client)))
    rehearsal.add(3, rehearsal.contribute(3, sent[3], key)[:-1])
    assert [failure[:2] for failure in rehearsal.failures] == [(3, "ciphertext")]
    assert_equal(rehearsal.total(), play(settings, sent, False, order=range(3))[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"limit": 0.0}, "limit"),
        ({"clients": 2}, "clients=2"),
        ({"scheme": "rsa"}, "'bfv', 'ckks'"),
        ({"scheme": BFV(), "clients": 100}, r"sums at most 15 clients.*use BFV\(bits=16.*plain_modulus=6578177"),
        ({"scheme": BFV(), "clients": 10, "max_weight": 90}, "of max_weight=90 use BFV"),
        ({"scheme": "ckks", "clients": 1000}, "bits=23 would do"),
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


@needs_tenseal
def test_a_client_encrypts_and_decrypts_once_a_round_whatever_is_started_again(tmp_path):
    """A server that kills a client's process, or says the round again, gets no second sum of it."""
    sums = Homomorphic(limit=1.0, metrics=(), clients=8)
    sums.provision(tmp_path / "server", {client: tmp_path / str(client) for client in range(3)})
    update, meeting = (
        ClientUpdate(np.ones(4, np.float32) / 2, NOTHING, 1.0, {}),
        Meeting("r", 2, 3, Shape(4, 0), bytes(32)),
    )

    def begun(client, meeting=meeting):
        return sums.client(meeting, client, tmp_path / str(client), tmp_path / str(client))

    server = sums.server(meeting, range(3), tmp_path / "server")
    clients = {client: begun(client) for client in range(3)}
    for client, message in server.advance().items():
        assert clients[client].check(message) is None
        assert clients[client].provide(update, Key.fresh()) is None
        assert server.receive(client, clients[client].answer(message)) is None
    offer = sums.server(meeting, range(3), tmp_path / "server").advance()[0]
    again, asked = begun(0), server.advance()
    assert again.check(offer).reason == "replayed_session"
    assert again.provide(update, Key.fresh()) is None
    assert again.answer(offer).reason == "replayed_session"
    assert again.answer(asked[0]).reason == "out_of_order"  # neither does it decrypt
    for client, message in asked.items():
        assert server.receive(client, clients[client].answer(message)) is None
        assert clients[client].answer(message).reason == "out_of_order"
    np.testing.assert_allclose(server.total().delta, 1.5, atol=3 * sums.step)
    assert begun(0, meeting._replace(round=1)).check(offer).reason == "replayed_session"  # nor an older round
    assert begun(0, meeting._replace(round=3)).check(offer) is None


@needs_tenseal
@pytest.mark.parametrize("size", [4, 5000])
@pytest.mark.parametrize("changed", ["nothing", "run", "round", "fewer", "others", "one", "twice"])
def test_a_ciphertext_is_decrypted_in_its_own_round_alone(tmp_path, changed, size):
    """Nor is one update passed off as a sum: what the server names has to be what is in it, and its masks stay else."""
    sums, clients = Homomorphic(limit=1.0, metrics=(), clients=8), range(4)
    sums.provision(tmp_path / "server", {client: tmp_path / str(client) for client in clients})
    context = ClientContext.from_bytes((tmp_path / "0" / "homomorphic.key").read_bytes())
    update = ClientUpdate(np.full(size, 0.25, np.float32), NOTHING, 1.0, {})
    mine = Meeting("r", 2, 4, Shape(size, 0), bytes(32))
    theirs = mine._replace(**{"run": {"run": "q"}, "round": {"round": 1}}.get(changed, {}))
    added, named = {"fewer": ([0, 1, 2], [0, 1, 2, 3]), "others": ([0, 1, 2], [1, 2, 3]), "one": ([3], [0, 1, 3])}.get(
        changed, ([0, 1, 2, 3], [0, 1, 2, 3] if changed != "twice" else [0, 1, 2, 2])
    )
    total = context.server_context().zero(sums.gridded(mine).encrypted_size)
    for client in added:
        half = EncryptedClient(sums, theirs, client, context, RoundLog())
        assert half.provide(update, Key.fresh()) is None
        total.add(half.answer(b""))
    total.clients = len(named)
    asked = EncryptedClient(sums, mine, 0, context, RoundLog())
    asked.provide(update, Key.fresh())
    asked.answer(b"")
    reply = asked.answer(list_clients(named, total.to_bytes()))
    if changed == "nothing":
        assert np.frombuffer(reply, np.int64)[0] == pytest.approx(sums.parameters.levels, abs=4)
        return
    assert reply.reason == "ciphertext"
    assert ("each named once" if changed == "twice" else "it is of something else") in reply.detail
    bound = Bound(context.scheme, context.shared_secret, "r", 2)  # as each client of the run knows it
    left = context.decrypt(total.to_bytes(), bound.unmask(named))[:size]  # what that client alone could see
    assert changed == "twice" or len(set(left.tolist())) > min(size, 1000) * 0.5


@needs_tenseal
def test_masks_are_of_one_run_round_client_and_ciphertext():
    """And CKKS, whose slots are no numbers modulo anything, has none."""
    bound, slots = Bound(BFV(), bytes(32), "r", 1), [0] * 500
    others = [
        bound.mask(0)(1, slots),
        bound.mask(1)(0, slots),
        dataclasses.replace(bound, run="s").mask(0)(0, slots),
        dataclasses.replace(bound, round=2).mask(0)(0, slots),
        dataclasses.replace(bound, secret=b"1" * 32).mask(0)(0, slots),
    ]
    masks = bound.mask(0)(0, slots)
    assert all(np.mean(np.array(masks) == other) < 0.02 for other in others)
    assert max(masks) <= BFV().plain_modulus // 2
    assert np.std(masks) == pytest.approx(BFV().plain_modulus / np.sqrt(12), rel=0.1)
    assert bound.unmask([0])(0, masks) == slots
    assert dataclasses.replace(bound, scheme=CKKS()).mask(0)(0, [0.5]) == [0.5]


@needs_tenseal
def test_a_client_decrypts_no_sum_of_fewer_than_its_own_experiment_samples():
    sums = Homomorphic(limit=1.0, metrics=())
    context = ClientContext.create(sums.parameters)
    meeting = Meeting("r", 1, 6, Shape(4, 0), bytes(32), least=4)
    update = ClientUpdate(np.full(4, 0.25, np.float32), NOTHING, 1.0, {})
    halves = [EncryptedClient(sums, meeting, client, context, RoundLog()) for client in range(4)]
    total = context.server_context().zero(sums.gridded(meeting).encrypted_size)
    for half in halves[:3]:
        half.provide(update, Key.fresh())
        total.add(half.answer(b""))
    refused = halves[0].answer(list_clients([0, 1, 2], total.to_bytes()))
    assert "a sum of 3, and this client's experiment has at least 4" in refused.detail
    server = EncryptedServer(sums, meeting, range(6), context.server_context())
    server.advance()
    for client in range(3):
        half = EncryptedClient(sums, meeting, client, context, RoundLog())
        half.provide(update, Key.fresh())
        assert server.receive(client, half.answer(b"")) is None
    with pytest.raises(RunStopped, match="3 clients sent encrypted updates; at least 4 hide"):
        server.advance()


@needs_tenseal
def test_a_key_of_ckks_serves_one_run(tmp_path):
    """Nothing binds its ciphertexts to a run: with the key of another, a server has them decrypted there."""
    sums, kits = Homomorphic(limit=1.0, scheme="ckks", metrics=()), {n: tmp_path / str(n) for n in range(3)}
    update = ClientUpdate(np.ones(4, np.float32) / 2, NOTHING, 1.0, {})

    def said(run, round=1):
        meeting = Meeting(run, round, 3, Shape(4, 0), bytes(32))
        half = sums.client(meeting, 0, kits[0], kits[0])
        offer = sums.server(meeting, range(3), tmp_path / "server").advance()[0]
        refused = half.check(offer)
        assert half.provide(update, Key.fresh()) is None
        answer = half.answer(offer)
        assert isinstance(answer, bytes) == (refused is None)
        return refused

    sums.provision(tmp_path / "server", kits)
    assert said("one") is said("one", 2) is None
    assert said("two").reason == "spent_key"
    assert "umbel deploy keys" in said("two").detail
    sums.provision(tmp_path / "server", kits)  # fresh ones, whatever was there
    assert said("two") is None
    assert said("one", 3).reason == "spent_key"
