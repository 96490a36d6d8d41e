"""DP-SGD inside a client: every way to sum clipped gradients gives the same, and the noise is what is accounted for."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from federations import CLASSES, FEATURES, blobs, dense, federation
from umbel import AllClients, ClientError, IncompatibleError, Local, Simulation, data, derive, run
from umbel.clients.draws import FINEST, Draws, draw_batches, width_for
from umbel.clients.tensorflow.clipped import Rule, ghost_sum, looped_sum, sound_sum
from umbel.clients.tensorflow.contributions import Filter, Lookup, Outer, Whole, norms_are_cheaper
from umbel.clients.tensorflow.ghost import can_ghost, contributions, uses_of
from umbel.clients.tensorflow.per_example import released
from umbel.privacy.noise import NoiseStream, grid_step
from umbel.privacy.per_example import PerExample

layers, SIZE = keras.layers, 7
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(*parts, shape=(FEATURES,), loss=CROSSENTROPY, **settings):
    model = keras.Sequential([keras.Input(shape, **settings), *parts])
    model.compile("sgd", loss)
    return model


def mlp():
    return compiled(layers.Dense(8, "relu"), layers.Dense(CLASSES, use_bias=False))


def sequence():
    return compiled(layers.Dense(5, "tanh"), layers.Flatten(), layers.Dense(CLASSES), shape=(4, FEATURES))


def long_kernels():
    """Few places and large kernels: norms by way of Gram matrices."""
    return compiled(
        *(layers.Conv2D(20, 3, strides=2), layers.Conv2D(24, 2, padding="same"), layers.Flatten()),
        layers.Dense(CLASSES),
        shape=(7, 7, 9),
    )


def strided():
    return compiled(
        *(layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"), layers.MaxPooling2D(2)),
        *(layers.Conv2D(4, (2, 3), padding="same", dilation_rate=(1, 2)), layers.Flatten(), layers.Dense(CLASSES)),
        shape=(12, 11, 2),
    )


def waves():
    return compiled(
        *(layers.Conv1D(4, 3, strides=2, activation="gelu"), layers.Conv1D(30, 5, padding="same")),
        *(layers.GlobalAveragePooling1D(), layers.Dense(CLASSES)),
        shape=(14, 2),
    )


def words():
    return compiled(
        *(layers.Embedding(6, 5), layers.Dense(4, "relu"), layers.Flatten(), layers.Dense(CLASSES)),
        shape=(9,),
        dtype="int32",
    )


def normalised():
    return compiled(
        *(layers.Conv2D(4, 3), layers.GroupNormalization(2), layers.ReLU(), layers.Flatten()),
        *(layers.Dense(6), layers.LayerNormalization(), layers.Dense(CLASSES)),
        shape=(6, 6, 1),
    )


def shared():
    """One layer used twice: the norm of a sum is not a sum of norms."""
    first, second = keras.Input((FEATURES,)), keras.Input((FEATURES,))
    layer = layers.Dense(5, "tanh")
    model = keras.Model([first, second], layers.Dense(CLASSES)(layers.Add()([layer(first), layer(second)])))
    model.compile("sgd", CROSSENTROPY)
    return model


def regularised():
    return compiled(layers.Dense(8, "relu", kernel_regularizer="l2"), layers.Dense(CLASSES, bias_regularizer="l1"))


def frozen():
    model = compiled(layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dense(CLASSES))
    model.layers[1].trainable = False
    return model


KNOWN = [mlp, sequence, long_kernels, strided, waves, words, normalised, shared, regularised, frozen]


def batch_for(model, count=SIZE, weighted=False):
    """A batch whose gradients have quite different norms."""
    generator = np.random.default_rng(3)
    x = [generator.normal(size=(count, *one.shape[1:])).astype(np.float32) for one in model.inputs]
    x = [one * np.linspace(0.1, 3, count).reshape(-1, *[1] * (one.ndim - 1)).astype(np.float32) for one in x]
    if model.inputs[0].dtype == "int32":
        x = [generator.integers(0, 6, (count, *one.shape[1:])).astype(np.int32) for one in model.inputs]
    y = generator.integers(0, CLASSES, count).astype(np.int32)
    batch = (x[0] if len(x) == 1 else x, y)
    return (*batch, np.linspace(0, 2, count).astype(np.float32)) if weighted else batch


def rule(counted, clip_norm=1.0, divisor=1.0):
    return Rule(tf.constant(counted), clip_norm, tf.constant(float(divisor)))


def flat(gradients):
    return np.concatenate([np.asarray(gradient).ravel() for gradient in gradients])


def gradients_alone(model, batch):
    """Each example's gradient, by Keras's own loss on a batch of one: float64, shape (examples, d)."""
    found = []
    for place in range(len(batch[1])):
        alone = tf.nest.map_structure(lambda array, at=place: array[at : at + 1], batch)
        x, y, weight = (*alone, None)[:3]
        with tf.GradientTape() as tape:
            loss = model._compile_loss(y, model(x, training=True), weight)
            loss = loss + sum(one for layer in model.layers for one in layer._get_own_losses())
        wanted = [variable.value for variable in model.trainable_variables]
        found.append(flat(map(tf.convert_to_tensor, tape.gradient(loss, wanted))).astype(np.float64))
    return np.array(found)


def clipped_by_hand(gradients, clip_norm):
    norms = np.linalg.norm(gradients, axis=1)
    return (gradients * np.minimum(1, clip_norm / np.maximum(norms, 1e-30))[:, None]).sum(0)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize("make", KNOWN)
@pytest.mark.parametrize("weighted", [False, True])
def test_both_ways_and_the_definition_agree(make, weighted):
    model = make()
    batch = batch_for(model, weighted=weighted)
    by_hand = gradients_alone(model, batch)
    clip_norm = float(np.median(np.linalg.norm(by_hand, axis=1)))  # some are clipped, some are not
    expected = clipped_by_hand(by_hand, clip_norm)
    assert can_ghost(model)
    for found in (
        ghost_sum(model, batch, rule([True] * SIZE, clip_norm)),
        looped_sum(model, batch, rule([True] * SIZE, clip_norm)),
        tf.function(lambda: looped_sum(model, batch, rule([True] * SIZE, clip_norm)))(),
    ):
        assert np.linalg.norm(flat(found) - expected) < 3e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("make", KNOWN)
def test_norms_are_those_of_the_gradients_and_never_less(make):
    model = make()
    batch = batch_for(model)
    with uses_of(model) as uses, tf.GradientTape() as tape:
        loss = SIZE * model._compile_loss(batch[1], model(batch[0], training=True))
    gradients = tape.gradient(loss, [use.output for use in uses])
    trainable = {id(variable) for variable in model.trainable_variables}
    parts = [part for one, part in contributions(uses, gradients).items() if one in trainable]
    found = np.sqrt(sum(part.squared_norms().numpy().astype(np.float64) for part in parts))
    expected = np.linalg.norm(gradients_alone(model, batch), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert (found > expected * (1 - 1e-5)).all()


def test_each_kind_of_contribution_is_used():
    kinds = set()
    for make in (mlp, long_kernels, words, strided):
        model = make()
        batch = batch_for(model)
        with uses_of(model) as uses, tf.GradientTape() as tape:
            loss = model._compile_loss(batch[1], model(batch[0]))
        gradients = tape.gradient(loss, [use.output for use in uses])
        kinds |= {type(part) for part in contributions(uses, gradients).values()}
    assert kinds == {Whole, Outer, Lookup, Filter}


@pytest.mark.parametrize(
    ("places", "inputs", "outputs", "expected"),
    [(1, 784, 200, True), (16, 576, 64, True), (64, 400, 32, False), (128, 128, 128, False), (576, 25, 16, False)],
)
def test_of_norms_and_gradients_what_takes_less_time_is_computed(places, inputs, outputs, expected):
    """As measured: 64 places of 400 × 32 take 2.0 ms by way of norms, 1.0 by gradients; 16 of 576 × 64, 1.0 and 1.3."""
    assert norms_are_cheaper(places, inputs, outputs) is expected


def test_norms_whose_terms_cancel_are_not_underestimated():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(64, 2, 50)).astype(np.float32)
    outputs = generator.normal(size=(64, 2, 40)).astype(np.float32)
    inputs[:, 1], outputs[:, 1] = inputs[:, 0] * (1 + 1e-4), -outputs[:, 0]  # Σ_t a_t ⊗ g_t is all but 0
    part = Outer(tf.constant(inputs), tf.constant(outputs))
    exact = np.einsum("btp,btd->bpd", inputs.astype(np.float64), outputs.astype(np.float64))
    assert (part.squared_norms().numpy() >= (exact**2).sum((1, 2))).all()


@pytest.mark.parametrize("way", [ghost_sum, looped_sum])
@pytest.mark.parametrize("make", [mlp, strided, words])
def test_what_is_not_counted_changes_nothing(way, make):
    model = make()
    batch, counted = batch_for(model), np.array([True, True, False, True, False, False, False])
    kept = tf.nest.map_structure(lambda array: array[counted], batch)
    padded = way(model, batch, rule(counted))
    np.testing.assert_allclose(flat(padded), flat(way(model, kept, rule([True] * 3))), rtol=1e-4, atol=1e-6)
    nothing = way(model, batch, rule([False] * SIZE))
    assert not flat(nothing).any()


@pytest.mark.parametrize("way", [ghost_sum, looped_sum])
@pytest.mark.parametrize("make", KNOWN)
def test_removing_an_example_moves_the_sum_by_at_most_the_clip_norm(way, make):
    model = make()
    batch, clip_norm = batch_for(model), 0.01
    whole = flat(way(model, batch, rule([True] * SIZE, clip_norm)))
    for left_out in range(SIZE):
        without = flat(way(model, batch, rule(np.arange(SIZE) != left_out, clip_norm)))
        moved = np.linalg.norm(whole.astype(np.float64) - without)
        assert 0.9 * clip_norm < moved <= clip_norm  # each is clipped: to the clip norm, not to much less


@pytest.mark.parametrize("way", [ghost_sum, looped_sum, sound_sum])
@pytest.mark.parametrize("make", [mlp, long_kernels, strided, waves])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_an_example_without_a_finite_gradient_adds_nothing_and_the_others_count(way, make, bad):
    """As if it were not there: neither a small gradient, nor NaN in the sum, nor a failure that tells of it."""
    model = make()
    x, y = batch_for(model)
    x = np.array(x)
    x.reshape(SIZE, -1)[3] = bad
    whole = flat(way(model, (x, y), rule([True] * SIZE, 0.5)))
    without = flat(way(model, (x, y), rule(np.arange(SIZE) != 3, 0.5)))
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(whole, without)
    assert without.any()


class Attentive(keras.Model):
    """A subclassed model with a layer that ghost norms do not know."""

    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)
        self.head = layers.Dense(CLASSES)

    def call(self, x):
        return self.head(keras.ops.mean(self.attention(x, x), 1))


def test_any_other_model_is_looped_over():
    model = Attentive()
    x, y = np.random.default_rng(0).normal(size=(SIZE, 5, 4)).astype(np.float32), np.arange(SIZE) % CLASSES
    model.compile("sgd", CROSSENTROPY)
    model(x)
    assert not can_ghost(model)
    expected = clipped_by_hand(gradients_alone(model, (x, y)), 0.5)
    found = flat(tf.function(lambda: looped_sum(model, (x, y), rule([True] * SIZE, 0.5)))())
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-5)


def test_what_layers_add_to_the_loss_is_clipped_with_it():
    model = compiled(layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.5)), layers.Dense(CLASSES))
    batch = batch_for(model)
    assert not can_ghost(model)
    expected = clipped_by_hand(gradients_alone(model, batch), 0.5)
    found = flat(tf.function(lambda: looped_sum(model, batch, rule([True] * SIZE, 0.5)))())
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-5)
    plain = compiled(layers.Dense(4), layers.Dense(CLASSES))
    plain.set_weights(model.get_weights())
    without = clipped_by_hand(gradients_alone(plain, batch), 0.5)
    assert np.linalg.norm(found - without) > 0.1 * np.linalg.norm(without)


def leaky(activation):
    return compiled(layers.Dense(4, activation=activation), layers.Dense(CLASSES))


@pytest.mark.parametrize(
    "model",
    [
        lambda: leaky(lambda x: x - tf.reduce_mean(x, 0)),
        lambda: compiled(layers.Dense(3), loss=lambda y, p: tf.reduce_mean(p) ** 2),
        lambda: compiled(layers.Dense(3), loss=keras.losses.MeanSquaredError("sum")),
        lambda: compiled(layers.Dense(3, activity_regularizer="l2"), layers.Dense(CLASSES)),
        lambda: compiled(layers.Lambda(lambda x: x - tf.reduce_mean(x, 0)), layers.Dense(CLASSES)),
        lambda: compiled(layers.Softmax(0), layers.Dense(CLASSES)),
        lambda: compiled(layers.Embedding(5, 3, mask_zero=True), layers.Flatten(), layers.Dense(3), shape=(4,)),
        lambda: compiled(layers.Dense(3), loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=0)),
        *(
            lambda loss=loss: compiled(layers.Dense(3), loss=loss(axis=0))
            for loss in (
                keras.losses.CategoricalCrossentropy,
                keras.losses.CosineSimilarity,
                keras.losses.CategoricalFocalCrossentropy,
                keras.losses.BinaryCrossentropy,
                keras.losses.BinaryFocalCrossentropy,
            )
        ),
        lambda: compiled(layers.Dense(3), loss=[keras.losses.CosineSimilarity(axis=0)]),
    ],
)
def test_what_could_mix_examples_never_takes_the_ghost_path(model):
    assert not can_ghost(model())


def test_alone_no_example_sees_another():
    """A model that mixes a batch: looped over, each example is a batch of its own, and the sensitivity holds."""
    model = leaky(lambda x: x - tf.reduce_mean(x, 0) + x)
    batch = batch_for(model)
    whole = flat(looped_sum(model, batch, rule([True] * SIZE, 0.01))).astype(np.float64)
    batch[0][0] *= 100
    changed = flat(looped_sum(model, batch, rule([True] * SIZE, 0.01)))
    assert np.linalg.norm(whole - changed) <= 2 * 0.01


def test_dropout_differs_between_examples_and_steps():
    model = compiled(layers.Dropout(0.5), layers.Dense(1), loss=keras.losses.MeanSquaredError())
    x, y = np.ones((SIZE, FEATURES), np.float32), np.full((SIZE, 1), 5, np.float32)
    for way in (ghost_sum, looped_sum):
        masks = [
            [flat(way(model, (x, y), rule(np.arange(SIZE) == one)))[:FEATURES] != 0 for one in range(SIZE)]
            for _ in range(2)
        ]
        assert len({mask.tobytes() for step in masks for mask in step}) > SIZE


def private(clip_norm=1.0, noise_multiplier=1.0, **local):
    steps = local.pop("steps", None)
    settings = {"epochs": 2, "batch_size": 5, "learning_rate": 0.1} | local
    return Local(**settings, per_example=PerExample(clip_norm, noise_multiplier, steps))


def test_without_noise_or_clipping_a_full_batch_is_a_plain_step():
    examples = blobs(24)
    base = federation(model=dense, population=data.PerClient([examples]), sampler=AllClients(), rounds=2, test=None)
    plain = dataclasses.replace(base, local=Local(epochs=3, batch_size=None, learning_rate=0.1, shuffle=False))
    same = dataclasses.replace(base, local=private(1e6, 0, epochs=3, batch_size=None))
    one, other = (run(experiment, Simulation(workers=1, compile="graph")) for experiment in (plain, same))
    np.testing.assert_allclose(one.params, other.params, rtol=1e-4, atol=1e-6)


def everything():
    """Weight penalty, momentum: what a step has besides the gradient."""
    model = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(8, "relu", kernel_regularizer="l2"), layers.Dense(CLASSES)]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSSENTROPY, metrics=["accuracy"])
    return model


@pytest.mark.parametrize("make", [dense, everything])
def test_compiled_is_debug_whatever_the_number_of_workers(make):
    experiment = federation(model=make, local=private(steps=3), rounds=2)
    first, *others = (
        run(experiment, simulation)
        for simulation in (
            Simulation(workers=1, compile="graph"),
            Simulation(workers=2, compile="graph"),
            Simulation(workers=1, compile="xla"),
            Simulation(debug=True),
        )
    )
    np.testing.assert_array_equal(first.params, others[0].params)
    for other in others[1:]:
        np.testing.assert_allclose(first.params, other.params, rtol=1e-4, atol=1e-5)


def test_how_many_steps_a_call_has_changes_nothing(monkeypatch):
    experiment = federation(local=private(steps=5), rounds=1)
    whole = run(experiment, Simulation(workers=1, compile="graph"))
    monkeypatch.setattr("umbel.clients.tensorflow.per_example.NOISE_BYTES", 2 * 4 * whole.spec.size)
    for compile in ("graph", "xla"):
        parts = run(experiment, Simulation(workers=1, compile=compile))
        np.testing.assert_allclose(whole.params, parts.params, rtol=1e-4, atol=1e-5)


def test_metrics_stay_with_the_client_and_so_does_the_loss():
    history = run(federation(local=private(), rounds=1), Simulation(workers=1, compile="graph"))
    assert not [name for name in history.rounds[0].metrics if name.startswith("train")]


def still():
    """A model whose gradient is 0 everywhere: all that moves it is noise."""
    model = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(500, use_bias=False, kernel_initializer="zeros"), layers.Rescaling(0.0)]
    )
    model.compile(keras.optimizers.SGD(1.0), keras.losses.MeanSquaredError())
    return model


def deltas(steps, batch_size, clients=1, rounds=1, noise_multiplier=2.0, clip_norm=0.5, seed=1):
    """What noise alone makes of clients of 20 examples; one per round and client."""
    examples = [(np.ones((20, FEATURES), np.float32), np.zeros((20, 500), np.float32)) for _ in range(clients)]
    experiment = federation(
        model=still,
        population=data.PerClient(examples),
        sampler=AllClients(),
        local=private(clip_norm, noise_multiplier, steps=steps, batch_size=batch_size, learning_rate=1.0),
        rounds=rounds,
        test=None,
        seed=seed,
    )
    seen = []

    simulation = Simulation(workers=1, compile="graph")
    train = simulation.train

    def watched(work, summation):
        for arrival in train(work, summation):
            seen.append(arrival.content.delta.copy())
            yield arrival

    simulation.train = watched
    run(experiment, simulation)
    return seen


def is_normal(values, scale):
    """Return whether values may be draws of N(0, scale²), by their mean square: 5 standard deviations of it."""
    return abs(np.mean(values.astype(np.float64) ** 2) / scale**2 - 1) < 5 * math.sqrt(2 / values.size)


@pytest.mark.parametrize(("steps", "batch_size"), [(1, 4), (9, 4), (4, None)])
def test_noise_has_the_scale_that_is_accounted_for_and_no_other(steps, batch_size):
    (delta,) = deltas(steps, batch_size)
    scale = 2.0 * 0.5 / (batch_size or 20) * math.sqrt(steps)
    assert is_normal(delta, scale)
    assert not is_normal(delta, scale * 2 / 3)
    assert not is_normal(delta, scale * 3 / 2)


def test_a_noisy_step_lies_on_a_grid_that_no_gradient_moves():
    """Added in float32, its low bits would tell a gradient that was guessed: the attack works there, and not here."""
    (delta,) = deltas(1, 4)
    step = grid_step(2.0 * 0.5 / 4)
    assert (delta / step == np.rint(delta / step)).all()
    x = np.full(50_000, np.float32(0.003162) * (1 - 2.0**-14), np.float32)

    def impossible(out):  # were it x + noise, whose sum is exact where the two nearly cancel
        rest = out.astype(np.float64) - x
        return bool(((np.abs(out) < np.abs(x) / 2) & (rest.astype(np.float32) != rest)).any())

    def said(add):
        noises = [NoiseStream.live().draw(len(x), 20.0) for _ in range(15)]
        return [sum(impossible(add(vector, noise)) for noise in noises) for vector in (np.zeros_like(x), x)]

    naive = said(lambda mean, noise: mean + noise)
    assert naive[0] > 5 * naive[1] + 3
    assert abs(np.subtract(*said(lambda mean, noise: released(mean, noise, grid_step(20.0)).numpy()))) <= 3


def test_without_noise_a_step_is_not_rounded():
    every = np.array([0.0, -0.0, 1.2e-38, -1e-30, 1 / 3, -3e38], np.float32)
    np.testing.assert_array_equal(released(every, np.zeros_like(every), FINEST).numpy(), every)


def test_an_empty_batch_makes_a_noisy_step():
    found = draw_batches(np.arange(20, dtype=np.int32), private(batch_size=1, steps=200), derive(0))
    assert (found.sizes == 0).any()
    (delta,) = deltas(200, 1)  # expected to have 72 steps without examples; each has its noise
    assert is_normal(delta, 2.0 * 0.5 * math.sqrt(200))


def test_no_noise_is_used_twice():
    found = [*deltas(1, 4, clients=3, rounds=3), *deltas(1, 4, seed=2)]
    values = np.concatenate([np.abs(delta) for delta in found])
    for one in range(len(found)):
        for other in range(one):
            correlation = np.corrcoef(found[one], found[other])[0, 1]
            assert abs(correlation) < 5 / math.sqrt(found[one].size)
    assert len(np.unique(values)) > 0.98 * len(values)  # on a grid, some are equal by chance


def test_steps_of_a_round_have_noise_of_their_own():
    noise = PerExample(1.0, 1.0).noise(derive(1), 1.0)
    steps = [np.empty(4000, np.float32) for _ in range(3)]
    for step in steps:
        noise(step)
    assert abs(np.corrcoef(steps)[np.triu_indices(3, 1)]).max() < 5 / math.sqrt(4000)


def test_on_real_devices_neither_batches_nor_noise_follow_from_the_seed():
    from umbel.clients.round import train_client
    from umbel.clients.tensorflow.engine import TensorFlowEngine
    from umbel.core.types import NOTHING, Broadcast

    experiment = federation(local=private())
    rows, found = np.arange(20, dtype=np.int32), {}
    for is_live in (True, False):
        worker = TensorFlowEngine(experiment, is_live=is_live)
        broadcast = Broadcast(1, worker.initial_params, NOTHING, experiment.transforms.init(worker.spec), 0.1)
        resident = experiment.population.resident()
        found[is_live] = [train_client(worker, broadcast, 0, derive(0), resident, rows).content.delta for _ in range(2)]
    assert np.array_equal(*found[False])
    assert not np.array_equal(*found[True])


def test_batches_are_poisson():
    local, rows = private(batch_size=6, steps=4000), np.arange(100, 130, dtype=np.int32)
    found = draw_batches(rows, local, derive(5))
    inclusions = np.zeros((4000, 30))
    for step, (drawn, size) in enumerate(zip(*found, strict=True)):
        assert len(set(drawn[:size])) == size
        inclusions[step, drawn[:size] - 100] = 1
    rate, deviation = 6 / 30, math.sqrt(6 / 30 * 24 / 30)
    assert abs(inclusions.mean(0) - rate).max() < 5 * deviation / math.sqrt(4000)
    assert abs(inclusions.sum(1).var() / (30 * deviation**2) - 1) < 5 * math.sqrt(2 / 4000)  # independent coins
    correlations = np.corrcoef(inclusions.T)[np.triu_indices(30, 1)]
    assert abs(correlations).max() < 5.5 / math.sqrt(4000)
    assert found.sizes.max() > 6 + 3 * deviation * math.sqrt(30) - 1  # nothing was cut


def test_batches_have_one_of_few_shapes():
    assert {width_for(largest, 32) for largest in range(1, 57)} == {56}
    assert all(width_for(largest, 32) >= largest for largest in range(1, 500))
    assert len({width_for(largest, 32) for largest in range(1, 500)}) < 15


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_a_client_with_a_bad_example_learns_from_its_others(compile):
    x, y = blobs(20)

    def trained(x, y, learning_rate):
        local = private(noise_multiplier=0, batch_size=None, learning_rate=learning_rate)
        population = data.PerClient([(x, y)])
        experiment = federation(population=population, sampler=AllClients(), local=local, rounds=1)
        return run(experiment, Simulation(workers=1, compile=compile)).params

    expected = trained(x[1:], y[1:], 0.1 * 19 / 20)  # the divisor is public, and counts the bad one
    x[0, 0] = np.nan
    np.testing.assert_allclose(trained(x, y, 0.1), expected, rtol=1e-4, atol=1e-6)


def test_a_client_without_examples_sends_nothing():
    found = draw_batches(np.zeros(0, np.int32), private(steps=3), derive(0))
    assert found.rows.shape == (0, 1)
    assert isinstance(found, Draws)


def own_step():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = layers.Dense(CLASSES)

        def call(self, x):
            return self.layer(x)

        def train_step(self, batch):
            return super().train_step(batch)

    model = Own()
    model.compile("sgd", CROSSENTROPY)
    return model


class Counts(layers.Layer):
    """Keeps a statistic of what it sees."""

    def build(self, shape):
        self.total = self.add_weight(shape=(), trainable=False, name="total")

    def call(self, x):
        self.total.assign_add(keras.ops.sum(x))
        return x


def remembers():
    return compiled(Counts(name="counts"), layers.Dense(CLASSES))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dense(normalised=True), "batch_normalization.*mixes the examples.*GroupNormalization"),
        (own_step, "train_step of its own.*compute_loss"),
        (remembers, "counts/total, a statistic"),
    ],
)
def test_models_that_cannot_be_private_are_refused(make, words):
    with pytest.raises(IncompatibleError, match=words):
        run(federation(model=make, local=private()), Simulation(workers=1))


def fails_on_large_numbers():
    class Fails(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = layers.Dense(CLASSES)

        def call(self, x):
            if tf.executing_eagerly() and tf.reduce_max(x) > 100:
                raise ValueError("on purpose")
            return self.layer(x)

    model = Fails()
    model.compile("sgd", CROSSENTROPY)
    return model


def test_debugging_names_the_batch():
    x, y = blobs(12)
    x[7] = 1000
    population = data.PerClient([(x, y)])
    experiment = federation(model=fails_on_large_numbers, population=population, sampler=AllClients(), local=private())
    with pytest.raises(ClientError, match=r"(?s)round 1, client 0, batch \d: .*on purpose"):
        run(experiment, Simulation(debug=True))
