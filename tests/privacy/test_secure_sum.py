"""The protocol's sum is the arithmetic's, bit for bit; whoever drops out, whatever the weights, on either graph."""

import logging
import tracemalloc

import numpy as np
import pytest
import sums
from sums import Rehearsal

from umbel import AllClients, Experiment, FedAvg, FixedCohort, Local, Simulation, run
from umbel.core.aggregators import WeightedSum
from umbel.core.errors import ConfigError, IncompatibleError, RunStopped
from umbel.core.random import derive
from umbel.core.traits import Trait
from umbel.core.types import NOTHING, ClientUpdate, Failure, Shape, Weighted
from umbel.data import Arrays, Iid, Partitioned
from umbel.privacy.remote import SecureClient
from umbel.privacy.secagg import Stage
from umbel.privacy.secure_sum import SecureSum

KEY = derive(7, "round", 1)
PLAIN = SecureSum(1.0)
ADVERTISE, SHARE, MASK = range(3)  # stages
SUMS = [
    PLAIN,
    SecureSum(0.25, metrics=("loss", "accuracy"), max_weight=1000),
    SecureSum(1.0, metrics=(), ring_bits=64),
    SecureSum(1.0, max_weight=20, ring_bits=32),
]


def update(client, size=40, weight=1.0):
    generator = np.random.default_rng(client)
    delta, extra = generator.normal(0, 0.2, (2, size)).astype(np.float32)
    metrics = {"loss": Weighted(2.5 * client, 10.0), "accuracy": Weighted(5.0, 10.0)}
    return ClientUpdate(delta, extra[: size // 4], weight, metrics)


def updates_of(aggregation, clients):
    """With weights where the aggregation allows them, a 0 among them."""
    return {c: update(c, weight=float(c % 20) if aggregation.max_weight > 1 else 1.0) for c in clients}


def total_of(aggregation, cohort, updates, dropped=(), is_real=False):
    """The sum, and how it came about."""
    return sums.total_of(aggregation, cohort, updates, KEY, is_real, dropped)


def same(one, other):
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs


@pytest.mark.parametrize("aggregation", SUMS, ids=repr)
@pytest.mark.parametrize("dropped", [(), (4,), (2, 9, 11)])
def test_protocol_equals_arithmetic_bit_for_bit(aggregation, dropped):
    cohort = range(2, 14)
    updates = updates_of(aggregation, cohort)
    (plain, plain_session), (masked, masked_session) = (
        total_of(aggregation, cohort, updates, dropped, is_real) for is_real in (False, True)
    )
    same(plain, masked)
    assert plain.clients == len(cohort) - len(dropped)
    assert plain_session.bytes_up == masked_session.bytes_up


@pytest.mark.parametrize("count", [66, 67])  # without two of them, the complete graph, and Harary's
@pytest.mark.parametrize("aggregation", SUMS[:2], ids=repr)
def test_on_either_graph(aggregation, count):
    cohort = range(count)
    updates = updates_of(aggregation, cohort)
    results = [total_of(aggregation, cohort, updates, dropped=(5, 30), is_real=is_real) for is_real in (False, True)]
    same(results[0][0], results[1][0])
    uploads = [session.bytes_up for _, session in results]
    assert uploads[0] == uploads[1]


@pytest.mark.parametrize("aggregation", SUMS, ids=repr)
def test_the_sum_is_the_sum(aggregation):
    cohort = range(2, 9)
    updates = updates_of(aggregation, cohort)
    total, _ = total_of(aggregation, cohort, updates, dropped=(3,), is_real=True)
    added = [updates[client] for client in cohort if client != 3]
    weight = sum(one.weight for one in added)
    assert (total.weight, total.clients) == (weight, 6)
    tolerance = weight * aggregation.encoding(7).step * 1.01
    for field in ("delta", "extra"):
        expected = sum(one.weight * getattr(one, field).clip(-aggregation.limit, aggregation.limit) for one in added)
        assert np.abs(getattr(total, field) - expected).max() <= tolerance
    for name in aggregation.metrics:
        expected = sum((one.metrics[name] for one in added if one.weight), Weighted(0.0, 0.0))
        assert total.metrics[name].sum == pytest.approx(expected.sum, abs=len(added) * 2**-13)
        assert total.metrics[name].count == expected.count
    assert set(total.metrics) == {*aggregation.metrics, *(("saturated",) if aggregation.metrics else ())}


def test_saturation_is_reported():
    updates = {client: update(client) for client in range(4)}
    updates[2].delta[:10] = 50.0
    total, _ = total_of(PLAIN, range(4), updates, is_real=True)
    share = 10 / (40 + 10)
    assert total.metrics["saturated"].mean() == pytest.approx(share / 4, abs=1e-5)
    assert total.delta[0] == pytest.approx(1.0 + sum(updates[client].delta[0] for client in (0, 1, 3)), abs=1e-5)


def test_the_upload_is_hardly_larger_than_float32():
    size, updates = 200_000, {client: update(client)._replace(extra=NOTHING) for client in range(20)}
    updates = {client: one._replace(delta=np.zeros(size, np.float32)) for client, one in updates.items()}
    _, session = total_of(PLAIN, range(20), updates)
    assert 1.0 < session.bytes_up / (20 * 4 * size) <= 1.02


@pytest.mark.parametrize("is_real", [False, True])
@pytest.mark.parametrize("dropped", [(), (0,), (0, 3), (0, 3, 5), (0, 1, 2, 3), range(6)])
def test_below_three_nothing_is_revealed(is_real, dropped):
    cohort = range(6)
    updates = updates_of(PLAIN, cohort)
    if len(dropped) <= 3:
        assert total_of(PLAIN, cohort, updates, dropped, is_real)[0].clients == 6 - len(dropped)
        return
    with pytest.raises(RunStopped, match=f"round 1: .*{6 - len(dropped)} clients .*at least 3 are needed"):
        total_of(PLAIN, cohort, updates, dropped, is_real)


@pytest.mark.parametrize("is_real", [False, True])
def test_the_minimum_of_clients(is_real):
    with pytest.raises(RunStopped, match="a cohort of 2; a secure sum is formed of at least 3"):
        Rehearsal(PLAIN, Shape(4, 0), range(2), is_real)
    five = SecureSum(1.0, minimum_clients=5)
    updates = updates_of(five, range(6))
    assert total_of(five, range(6), updates, (1,), is_real)[0].clients == 5
    with pytest.raises(RunStopped, match=r"4 clients .*at least 5 are needed"):
        total_of(five, range(6), updates, (1, 2), is_real)
    with pytest.raises(ConfigError, match="minimum_clients=2"):
        SecureSum(1.0, minimum_clients=2)


@pytest.mark.parametrize("is_real", [False, True])
@pytest.mark.parametrize(
    ("aggregation", "weight", "says"),
    [
        (PLAIN, 600.0, "a client weighs 600, and max_weight=1 .*weighting='uniform'"),
        (SUMS[1], 1001.0, "a client weighs 1001, above max_weight=1000; raise max_weight"),
        (SUMS[1], 2.5, "weight=2.5 of an update to be an integer"),
        (SUMS[1], float("nan"), "integer"),
        (SUMS[1], float("inf"), "integer"),
        (SUMS[1], -1.0, "weight=-1"),
    ],
)
def test_weights_that_do_not_fit(aggregation, weight, says, is_real):
    rehearsal = Rehearsal(aggregation, Shape(40, 10), range(4), is_real)
    with pytest.raises(ConfigError, match=says):
        rehearsal.contribute(1, update(1, weight=weight), KEY)


def test_more_clients_than_the_ring_holds():
    with pytest.raises(ConfigError, match=r"clients=4097.* overflow a 32-bit ring; use ring_bits=64"):
        Rehearsal(PLAIN, Shape(4, 0), range(4097))
    Rehearsal(SUMS[2], Shape(4, 0), range(4097))
    with pytest.raises(ConfigError, match="bound the weight more tightly"):
        SecureSum(1.0, max_weight=2**45)


@pytest.mark.parametrize("is_real", [False, True])
@pytest.mark.parametrize("aggregation", SUMS, ids=repr)
@pytest.mark.parametrize("where", ["delta", "extra", "a metric"])
def test_an_update_that_is_not_finite_weighs_nothing_and_its_reply_is_like_any_other(aggregation, where, is_real):
    updates, bad = updates_of(aggregation, range(6)), updates_of(aggregation, range(6))
    if where == "a metric":
        bad[4].metrics["loss"] = Weighted(np.nan, 10.0)
    else:
        getattr(bad[4], where)[3] = np.inf
    if where == "a metric" and "loss" not in aggregation.metrics:
        return
    total, _ = total_of(aggregation, range(6), bad, is_real=is_real)
    without = total_of(aggregation, range(6), updates, dropped=(4,))[0]
    same(total._replace(clients=5), without)
    assert total.clients == 6
    rehearsal = Rehearsal(aggregation, Shape(40, 10), range(6), is_real)
    assert len({(type(reply), len(reply)) for reply in (rehearsal.contribute(c, bad[c], KEY) for c in (3, 4))}) == 1


def test_the_rounding_follows_from_the_key_alone():
    one = update(3)
    first, again, other = (Rehearsal(PLAIN, Shape(40, 10), range(3)) for _ in range(3))
    assert first.contribute(0, one, KEY) == again.contribute(0, one, KEY) != other.contribute(0, one, KEY.derive("x"))


def test_masked_vectors_are_fresh_in_every_session():
    updates = {client: update(client) for client in range(3)}
    masked = [total_of(PLAIN, range(3), updates, is_real=True)[1].sent[MASK][0][40 : -4 - 3 * 41] for _ in range(2)]
    one, other = (np.frombuffer(vector, "<u4") for vector in masked)
    assert len(one) > 50
    assert np.count_nonzero(one == other) < 5


def secrets_of(half):
    """Everything of a client's that nobody else may see, as it would look in text."""
    own = half._client
    keys = [key.private_bytes_raw() for key in (own._mask_key, own._share_key) if key is not None]
    keys += [bytes(own._seed)] if any(own._seed) else []
    shares = [share for pair in own._held.values() for share in pair]
    forms = [form for key in keys for form in (key.hex(), repr(key)[2:-1], str(int.from_bytes(key, "big")))]
    return [*forms, *(form for share in shares for form in (str(share), f"{share:x}"))]


def test_nothing_secret_is_logged_shown_or_in_an_error(caplog):
    canary = np.float32(0.41421357)
    caplog.set_level(logging.DEBUG)
    updates = {client: update(client)._replace(delta=np.full(40, canary, np.float32)) for client in range(5)}
    rehearsal = Rehearsal(PLAIN, Shape(40, 10), range(5), is_real=True)
    for client in range(4):
        rehearsal.add(client, rehearsal.contribute(client, updates[client], KEY))
    with pytest.raises(ConfigError) as refused:
        rehearsal.contribute(4, updates[4]._replace(weight=3.0), KEY)
    server, halves = rehearsal.server, [rehearsal.halves[client] for client in range(4)]
    shown = [repr(PLAIN), str(refused.value)]
    secrets = [form for half in halves for form in secrets_of(half)]
    for _ in (SHARE, MASK):
        messages = server.advance()
        replies = {client: halves[client].answer(message) for client, message in messages.items()}
        secrets += [form for half in halves for form in secrets_of(half)]
        for client, reply in replies.items():
            assert server.receive(client, reply) is None
        shown += [repr(half) + repr(half._client) + repr(half._client._session) for half in halves]
    level = halves[0]._encoder.encode(updates[0], KEY)[0]
    secrets += [str(canary)[:8], str(level), str(level + 1), f"{level:x}"]
    shown += [repr(server), repr(server._server), repr(server.receive(3, server.advance()[0])), caplog.text]
    text = "\n".join(shown)
    assert not [secret for secret in secrets if secret in text]
    assert any(secret in repr(updates[0]) for secret in secrets)  # the search finds what is there


def linear():
    import keras

    model = keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(3, activation="softmax")])
    iou = keras.metrics.MeanIoU(3, sparse_y_pred=False, name="iou")
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy", iou])
    return model


def experiment(**changes):
    generator = np.random.default_rng(0)
    data = Arrays(generator.normal(size=(120, 5)).astype(np.float32), generator.integers(0, 3, 120))
    fields = {
        "name": "sums",
        "model": linear,
        "population": Partitioned(data, by=Iid(), clients=8),
        "strategy": FedAvg(),
        "sampler": FixedCohort(6),
        "local": Local(batch_size=5),
        "rounds": 2,
    }
    return Experiment(**fields | changes)


@pytest.mark.parametrize(("weighting", "most"), [("uniform", 1), ("examples", 15)])
def test_an_experiment_learns_the_same_with_its_updates_hidden(weighting, most):
    """Metrics as well: those of all the cohort's examples, also where clients count alike."""
    hidden = SecureSum(1.0, metrics=("loss", "accuracy", "iou"), max_weight=most)
    runs = [
        run(
            experiment(weighting=weighting, secure_aggregation=aggregation),
            Simulation(workers=workers, aggregation=mode),
        )
        for aggregation, mode, workers in ((None, "arithmetic", 1), (hidden, "arithmetic", 1), (hidden, "protocol", 2))
    ]
    np.testing.assert_array_equal(runs[1].params, runs[2].params)
    np.testing.assert_allclose(runs[0].params, runs[1].params, atol=1e-5)
    metrics = [one.rounds[-1].metrics for one in runs]
    assert metrics[1] == metrics[2]
    assert metrics[1]["train_saturated"] == 0
    for name in ("train_loss", "train_accuracy", "train_iou"):
        assert runs[0].rounds[0].metrics[name] == pytest.approx(runs[1].rounds[0].metrics[name], abs=1e-5)


def test_a_fold_that_needs_single_updates_is_refused():
    class Sees(WeightedSum):
        needs = Trait.EACH_UPDATE

    with pytest.raises(IncompatibleError, match="reveals only their sum"):
        experiment(aggregator=Sees(), secure_aggregation=PLAIN)


def test_memory_does_not_grow_with_the_cohort():
    """Of the arithmetic: in the protocol, clients hold their vectors until all have keys, and all are here."""
    peaks = []
    one = update(0, size=100_000)
    for count in (4, 16):
        tracemalloc.start()
        rehearsal = Rehearsal(PLAIN, Shape(*map(len, one[:2])), range(count))
        for client in range(count):
            rehearsal.server.receive(client, rehearsal.contribute(client, one, KEY))
        rehearsal.server.total()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_stages_end_with_every_secret_erased():
    _, rehearsal = total_of(PLAIN, range(4), {client: update(client) for client in range(4)}, is_real=True)
    for half in rehearsal.halves.values():
        client = half._client
        assert client.stage is Stage.DONE
        assert not any([client._mask_key, client._share_key, client._values, client._held, client._agreed])
        assert not client._seed.strip(b"\0")


@pytest.mark.parametrize("leaves", [True, False], ids=["is named", "is not"])
def test_a_run_goes_on_after_a_sum_that_was_spoiled(monkeypatch, leaves):
    """Who deals shares of another seed than it masks with, and leaves: of one round. Who sends garbage: of each."""
    answer, liar = SecureClient.answer, 3

    def lie(half, message):
        stage = half._client.stage
        if half._number != liar:
            return answer(half, message)
        if not leaves and stage is Stage.MASK:
            half._client._values[:] = 2**31 - 1
        if leaves and stage is Stage.UNMASK:
            return Failure(liar, "gone", "")
        if not leaves or stage is not Stage.SHARE:
            return answer(half, message)
        half._client._seed, own = bytearray(32), half._client._seed
        reply = answer(half, message)
        half._client._seed = own
        return reply

    monkeypatch.setattr(SecureClient, "answer", lie)
    hidden = SecureSum(1.0, metrics=())
    history = run(
        experiment(sampler=AllClients(), weighting="uniform", secure_aggregation=hidden),
        Simulation(workers=1, aggregation="protocol"),
    )
    assert [record.clients for record in history.rounds] == ([0, 7] if leaves else [0, 0])
    assert np.isfinite(history.params).all()
