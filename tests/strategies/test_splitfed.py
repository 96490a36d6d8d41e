"""SplitFed: what training in two halves leaves as it was, what crosses the cut, what cannot be cut."""

import dataclasses

import keras
import numpy as np
import pytest
from rounds import begin, collect

from federations import CLASSES, FEATURES, adam, blobs, dense, dropped_and_normalised, federation
from simulations import play, simulation
from umbel import (
    AllClients,
    Chain,
    Clip,
    ConfigError,
    Devices,
    FedAvg,
    FixedCohort,
    IncompatibleError,
    PerExample,
    Proximal,
    SecureSum,
    Sign,
    Simulation,
    data,
    derive,
    run,
)
from umbel.clients.optimizers import DeltaSGD
from umbel.clients.round import train_client
from umbel.clients.tensorflow.engine import TensorFlowEngine
from umbel.core.types import NOTHING, Broadcast
from umbel.privacy import LocalPlan
from umbel.strategies import Agnostic, SplitFed

POPULATION, TEST = federation().population, federation().test
CLIENT = (FEATURES + 1) * 8  # numbers up to the first Dense layer of `dense`


def small(strategy, **changes):
    """The shared federation with its examples made once."""
    return federation(**{"population": POPULATION, "test": TEST, "strategy": strategy} | changes)


def regularised():
    """Penalties on both sides of the cut, weights and activities, and weight decay that leaves out biases."""
    penalty = keras.regularizers.L2(0.01)
    hidden = keras.layers.Dense(8, "tanh", kernel_regularizer=penalty, activity_regularizer=penalty)
    layers = [keras.Input((FEATURES,)), hidden, keras.layers.Dense(CLASSES, kernel_regularizer=penalty)]
    model, optimizer = keras.Sequential(layers), keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def branched():
    """Two inputs that meet, a residual block after the cut, two outputs with weights of their own."""
    one, other = keras.Input((4,), name="one"), keras.Input((2,), name="other")
    met = keras.layers.Concatenate(name="met")([keras.layers.Dense(4, "relu")(one), keras.layers.Dense(4)(other)])
    met = keras.layers.Dense(6, "relu", name="middle")(met)
    block = keras.layers.Add()([met, keras.layers.Dense(6, "relu")(met)])
    outputs = {"label": keras.layers.Dense(CLASSES, name="label")(block), "sum": keras.layers.Dense(1, name="sum")(met)}
    model = keras.Model({"one": one, "other": other}, outputs)
    losses = {"label": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "sum": "mse"}
    model.compile("sgd", losses, loss_weights={"label": 1.0, "sum": 0.3}, metrics={"label": ["accuracy"]})
    return model


def branches() -> data.PerClient:
    """Examples for `branched`, weighted."""

    def client(seed):
        (x, y), weight = blobs(13, seed), np.random.default_rng(seed).random(13).astype(np.float32)
        targets = {"label": y, "sum": x.sum(1, keepdims=True)}
        return {"one": x[:, :4], "other": x[:, 4:]}, targets, {"label": weight, "sum": weight**2}

    return data.PerClient([client(seed) for seed in range(5)])


VARIANTS = {
    "plain": ("dense", {}),
    "statistics and dropout before": ("dropout", {"model": dropped_and_normalised}),
    "statistics and dropout after": ("dense", {"model": dropped_and_normalised}),
    "adam": ("dense", {"model": adam}),
    "personal": ("dropout", {"model": dropped_and_normalised, "personal": ("batch_normalization",)}),
    "regularised": ("dense", {"model": regularised}),
    "branched": ("middle", {"model": branched, "population": branches(), "test": None}),
}
every_variant = pytest.mark.parametrize(("cut", "changes"), VARIANTS.values(), ids=VARIANTS)


@every_variant
def test_version_1_is_fedavg_on_the_whole_model(cut, changes):
    """Bit for bit, but for the order in which penalties are added."""
    whole, halves = play(small(FedAvg(), **changes)), play(small(SplitFed(cut), **changes))
    for one, other in zip(whole.rounds, halves.rounds, strict=True):
        assert other.metrics == pytest.approx(one.metrics, rel=1e-6)
    np.testing.assert_allclose(halves.params, whole.params, rtol=1e-5, atol=1e-7)
    if changes.get("model") is not regularised:
        assert halves.params_sha256 == whole.params_sha256


@every_variant
def test_version_2_with_one_client_is_plain_training(cut, changes):
    changes = {**changes, "sampler": FixedCohort(1)}
    whole, halves = play(small(FedAvg(), **changes)), play(small(SplitFed(cut, 2), **changes))
    np.testing.assert_allclose(halves.params, whole.params, rtol=1e-5, atol=1e-7)


def test_version_2_trains_one_server_half_in_turn():
    """As whole models would, if each began with the last one's second half."""
    experiment = small(SplitFed("dense", 2), model=dropped_and_normalised, rounds=1, test=None)
    history = play(experiment)
    plain = TensorFlowEngine(small(FedAvg(), model=dropped_and_normalised))
    params, resident, key = plain.initial_params, POPULATION.resident(), derive(experiment.seed, "round", 1)
    cohort = experiment.sampler.sample(range(8), POPULATION.sizes, key.derive("cohort"))
    turns = experiment.strategy.turns(cohort, key.derive("turns"))
    assert sorted(turns) == sorted(cohort)
    present, sums, weights = params.copy(), np.zeros(CLIENT), 0.0
    for client in turns:
        begins = np.concatenate([params[:CLIENT], present[CLIENT:]])
        broadcast = Broadcast(1, begins, NOTHING, (), 0.1)
        rows = POPULATION.indices(client)
        update = train_client(plain, broadcast, client, key.derive("client", client), resident, rows).content
        present[CLIENT:] += update.delta[CLIENT:]
        sums, weights = sums + update.weight * update.delta[:CLIENT], weights + update.weight
    np.testing.assert_allclose(history.params[CLIENT:], present[CLIENT:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.params[:CLIENT], params[:CLIENT] + sums / weights, rtol=1e-5, atol=1e-6)


def test_turns_are_drawn_anew():
    strategy, cohort = SplitFed("dense", 2), list(range(20))
    orders = [strategy.turns(cohort, derive(0, round)) for round in range(3)]
    assert all(sorted(order) == cohort for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert SplitFed("dense").turns(cohort, derive(0, 1)) == cohort


@pytest.mark.parametrize("version", [1, 2])
def test_however_it_is_run(version):
    """The same bits for any number of workers; to rounding eagerly and with XLA."""
    experiment = small(SplitFed("dense", version), model=lambda: dense(normalised=True))
    one = play(experiment)
    assert play(experiment, 2).params_sha256 == play(experiment, 4).params_sha256 == one.params_sha256
    for other in (run(experiment, Simulation(debug=True)), run(experiment, Simulation(1, "xla"))):
        np.testing.assert_allclose(other.params, one.params, rtol=2e-3, atol=2e-5)
        assert other.column("bytes_up").tolist() == one.column("bytes_up").tolist()


@pytest.mark.parametrize("version", [1, 2])
def test_resumed_run_equals_uninterrupted_run(version, tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    changes = {"model": dropped_and_normalised, "personal": ("batch_normalization",), "rounds": 4}
    experiment = small(SplitFed("dropout", version), **changes)
    first = play(dataclasses.replace(experiment, rounds=2), store=url)
    assert play(experiment, store=url, resume=first.run).params_sha256 == play(experiment).params_sha256


@pytest.mark.parametrize("version", [1, 2])
def test_bytes_are_those_of_one_half_and_of_what_crosses(version):
    """8 float32 activations and a label an example and epoch; nothing of the server's half, however large."""
    for units in (4, 400):
        model = wide(units)
        experiment = small(SplitFed("dense", version), model=model, sampler=AllClients(), rounds=2, test=None)
        passes, half = 2 * int(POPULATION.sizes().sum()), 8 * 4 * CLIENT
        history = play(experiment)
        assert history.column("bytes_up").tolist() == [half + passes * (8 * 4 + 4)] * 2
        assert history.column("bytes_down").tolist() == [half + passes * 8 * 4] * 2


def wide(units):
    def build():
        hidden = [keras.layers.Dense(8, "relu"), keras.layers.Dense(units, "relu"), keras.layers.Dense(CLASSES)]
        model = keras.Sequential([keras.Input((FEATURES,)), *hidden])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    return build


def test_bytes_follow_the_tensors_types():
    """Activations of two bytes; weights of examples travel with their labels."""
    parts = [(*blobs(10, seed), np.ones(10, np.float32)) for seed in range(3)]
    experiment = small(
        SplitFed("dense"), model=mixed, population=data.PerClient(parts), sampler=AllClients(), test=None
    )
    (record, *_) = play(experiment).rounds
    assert record.bytes_up == 3 * (4 * CLIENT + 20 * (8 * 2 + 4 + 4))
    assert record.bytes_down == 3 * (4 * CLIENT + 20 * 8 * 2)


def mixed():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return dense()
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_halves_share_nothing_and_leave_nothing_out():
    worker = TensorFlowEngine(small(SplitFed("dense"), model=dropped_and_normalised))
    client, server = (
        {weight.path for weight in half.model.weights} for half in (worker.halves.client, worker.halves.server)
    )
    assert client == {"sequential/dense/kernel", "sequential/dense/bias"}
    assert not client & server
    assert client | server == {variable.path for variable in worker.spec.variables}
    assert np.flatnonzero(worker.spec.places(client)).tolist() == list(range(CLIENT))
    np.testing.assert_array_equal(worker.spec.places(client), ~worker.spec.places(server))


def test_a_client_that_fails_leaves_nothing_on_the_server():
    """Nor does it in turn: what the next one begins with is as if it had not been asked."""
    parts = [blobs(10, seed) for seed in range(5)]
    parts[2][0][0, 0] = np.inf

    class InOrder(SplitFed):
        def turns(self, cohort, key):
            return list(cohort)

    experiment = small(InOrder("dense", 2), population=data.PerClient(parts), rounds=1, test=None)
    runtime = simulation(experiment)
    begin(runtime, experiment)
    broadcast, key = Broadcast(1, runtime.initial_params(), NOTHING, (), 0.1), derive(0)
    found, expected = (collect(runtime, broadcast, cohort, key) for cohort in ([0, 2, 4], [0, 4]))
    assert [failure.client for failure in found.failures] == [2]
    np.testing.assert_array_equal(found.total.delta, expected.total.delta)


def skipping():
    x = keras.Input((FEATURES,))
    y = keras.layers.Dense(FEATURES, name="skipped")(x)
    return compiled(keras.Model(x, keras.layers.Dense(CLASSES)(keras.layers.Add(name="sum")([x, y]))))


def shared():
    x, layer = keras.Input((FEATURES,)), keras.layers.Dense(FEATURES, name="shared")
    return compiled(keras.Model(x, keras.layers.Dense(CLASSES)(layer(keras.layers.ReLU(name="between")(layer(x))))))


def masked():
    layers = [keras.layers.Embedding(9, 4, mask_zero=True), keras.layers.LSTM(4), keras.layers.Dense(CLASSES)]
    return compiled(keras.Sequential([keras.Input((FEATURES,)), *layers]))


def tagging():
    layers = [keras.layers.Embedding(9, 4, mask_zero=True), keras.layers.Dense(CLASSES)]
    return compiled(keras.Sequential([keras.Input((FEATURES,)), *layers]))


TAGGED = data.PerClient([(np.ones((8, FEATURES), np.int32), np.zeros((8, FEATURES), np.int32))] * 4)


class Subclassed(keras.Sequential):
    pass


def compiled(model, optimizer="sgd"):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def late():
    return compiled(keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.1), keras.layers.Dense(3)]))


def subclassed():
    return compiled(Subclassed([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(3)]))


def clipped():
    return compiled(dense(), keras.optimizers.SGD(global_clipnorm=2.0))


def self_tuned():
    return compiled(dense(), DeltaSGD())


@pytest.mark.parametrize(
    ("cut", "changes", "message"),
    [
        ("densee", {}, r"no layer 'densee' to be cut at: did you mean 'dense'\? Known: dense, dense_1"),
        ("dense_1", {}, r"nothing is trained after the cut 'dense_1'"),
        ("dropout", {"model": late}, r"nothing is trained before the cut 'dropout'"),
        ("skipped", {"model": skipping}, r"'skipped' does not cut the model in two: '\w+' reaches its end past it"),
        ("between", {"model": shared}, r"'shared' is on both sides of it"),
        ("shared", {"model": shared}, r"'shared', which is used more than once"),
        ("embedding", {"model": masked}, r"'embedding' does not cut the model in two: 'input_layer' reaches its end"),
        ("embedding", {"model": tagging, "population": TAGGED, "test": None}, r"carry a mask, which does not cross"),
        ("dense", {"model": subclassed}, r"a Subclassed has code of its own"),
        ("dense", {"model": clipped}, r"global_clipnorm=2 needs all gradients"),
        ("dense", {"model": self_tuned}, r"DeltaSGD needs all gradients"),
        ("dense", {"personal": ("dense_1",)}, r"'.*dense_1/kernel' lies after the cut 'dense', on the server"),
    ],
)
def test_what_cannot_be_cut(cut, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(small(SplitFed(cut), rounds=1, **changes), Simulation(1, "graph"))


LOCAL = LocalPlan(epsilon=50.0, delta=1e-3, rounds=3, population=8, clip_norm=0.5, noise_multiplier=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": LOCAL, "sampler": None}, r"plan=LocalPlan.* needs .*nothing else of their examples"),
        (
            {"local": dataclasses.replace(federation().local, per_example=PerExample(1.0, 1.0))},
            r"local.per_example=.* needs .*nothing else",
        ),
        ({"secure_aggregation": SecureSum(limit=4.0, max_weight=64)}, r"SecureSum.* needs .*nothing else"),
        ({"transforms": Chain(Clip(1.0))}, r"transforms=Clip.* needs clients that hold a whole model"),
        ({"codec": Sign()}, r"codec=Sign.* needs clients that hold a whole model"),
        ({"rule": Proximal(0.1)}, r"rule=Proximal.* needs clients that hold a whole model"),
        ({"reweighting": Agnostic(0.1)}, r"reweighting=Agnostic.* needs clients that hold a whole model"),
        ({"devices": Devices()}, r"devices=Devices.* needs one broadcast and one update a round"),
    ],
)
def test_what_does_not_go_with_it(changes, message):
    with pytest.raises(IncompatibleError, match=message + r".*, which strategy=SplitFed"):
        small(SplitFed("dense"), **changes)


@pytest.mark.parametrize("make", [lambda: SplitFed(""), lambda: SplitFed(3), lambda: SplitFed("dense", 3)])
def test_values_out_of_bounds(make):
    with pytest.raises(ConfigError, match=r"expected (cut|version)="):
        make()
