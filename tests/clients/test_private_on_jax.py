"""DP-SGD on JAX, in a session with KERAS_BACKEND=jax: what is summed is each example's gradient, clipped by hand."""

import keras
import numpy as np
import pytest

from engines import IS_JAX
from federations import CLASSES, FEATURES, federation
from umbel import AllClients, Local, PerExample, Simulation, data, run

pytestmark = pytest.mark.skipif(not IS_JAX, reason="needs KERAS_BACKEND=jax")
layers, SIZE = keras.layers, 7
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(*parts, shape=(FEATURES,), **settings):
    model = keras.Sequential([keras.Input(shape, **settings), *parts])
    model.compile("sgd", CROSSENTROPY)
    return model


class Attentive(keras.Model):
    def __init__(self):
        super().__init__()
        self.attention, self.head = layers.MultiHeadAttention(2, 3), layers.Dense(CLASSES)

    def call(self, x):
        return self.head(keras.ops.mean(self.attention(x, x), 1))


def attentive():
    model = Attentive()
    model.compile("sgd", CROSSENTROPY)
    return model


MODELS = {
    "dense": lambda: compiled(layers.Dense(5, "relu"), layers.Dense(CLASSES)),
    "penalised": lambda: compiled(layers.Dense(4, kernel_regularizer="l2", activity_regularizer="l2"), layers.Dense(3)),
    "normalised": lambda: compiled(layers.Dense(4), layers.LayerNormalization(), layers.Dense(CLASSES)),
    "words": lambda: compiled(layers.Embedding(9, 4), layers.LSTM(3), layers.Dense(CLASSES), shape=(5,), dtype="int32"),
    "convolved": lambda: compiled(layers.Conv1D(3, 2), layers.Flatten(), layers.Dense(CLASSES), shape=(5, 2)),
    "mixing": lambda: compiled(layers.Lambda(lambda x: 2 * x - keras.ops.mean(x, 0)), layers.Dense(CLASSES)),
    "attentive": attentive,
}


def batch_for(name):
    generator = np.random.default_rng(0)
    shape = {"words": (5,), "convolved": (5, 2), "attentive": (5, 4)}.get(name, (FEATURES,))
    x = generator.normal(size=(SIZE, *shape)).astype(np.float32)
    if name == "words":
        x = generator.integers(0, 9, (SIZE, 5)).astype(np.int32)
    return x, (np.arange(SIZE) % CLASSES).astype(np.int32)


def opened(name, clip_norm):
    """Return a function from a batch and which of it counts to the engine's sum, and the gradients one by one."""
    import jax

    from umbel.clients.jax.engine import JaxEngine
    from umbel.clients.jax.private import PrivateSteps

    batch = batch_for(name)
    experiment = federation(
        model=MODELS[name], population=data.PerClient([batch]), sampler=AllClients(), test=None,
        local=Local(batch_size=4, learning_rate=0.1, per_example=PerExample(clip_norm, 1.0)),
    )  # fmt: skip
    engine = JaxEngine(experiment)
    model, variables = engine.model, engine.variables
    steps = PrivateSteps(variables, clip_norm)
    seeds = [np.zeros(variable.shape, variable.dtype) for variable in variables.seeds]
    state = variables.begin(True, engine.initial_params, [], np.float32(0.1), seeds)

    def summed(batch, counted):
        rows = np.arange(SIZE)
        return np.asarray(
            jax.jit(steps.clipped_sum, static_argnums=0)(
                True, state, variables.still, batch, rows, np.asarray(counted), 0, np.float32(1)
            )
        )

    def one_by_one(batch):
        def loss(values, x, y):
            with keras.StatelessScope(list(zip(model.trainable_variables, values, strict=True)), collect_losses=True):
                predicted = model(x, training=True)
                weights = [variable for variable in model.trainable_variables if variable.regularizer is not None]
                penalty = sum(variable.regularizer(variable) for variable in weights)
                return model.compute_loss(x=x, y=y, y_pred=predicted) - penalty

        values = [variable.value for variable in model.trainable_variables]
        found = []
        for place in range(SIZE):
            gradients = jax.grad(loss)(values, *(array[place : place + 1] for array in batch))
            found.append(np.concatenate([np.asarray(gradient).ravel() for gradient in gradients]))
        return np.stack(found)

    return batch, summed, one_by_one


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_that_of_gradients_clipped_by_hand(name):
    batch, _, one_by_one = opened(name, 1.0)
    alone = one_by_one(batch)
    norms = np.linalg.norm(alone, axis=1)
    clip_norm = float(np.median(norms))  # some are clipped, some are not
    expected = (alone * np.minimum(1, clip_norm / norms)[:, None]).sum(0)
    _, summed, _ = opened(name, clip_norm)
    found = summed(batch, [True] * SIZE)
    assert np.linalg.norm(found - expected) < 3e-3 * np.linalg.norm(expected)
    without = summed(batch, np.arange(SIZE) != 2)
    assert np.linalg.norm(found.astype(np.float64) - without) <= clip_norm


def test_an_example_without_a_finite_gradient_adds_nothing_and_the_others_count():
    (x, y), summed, _ = opened("dense", 0.5)
    without = summed((x, y), np.arange(SIZE) != 3)
    for bad in (np.nan, np.inf, 1e30):
        broken = x.copy()
        broken[3] = bad
        np.testing.assert_array_equal(summed((broken, y), [True] * SIZE), without)
    assert without.any()


def private(noise_multiplier, **local):
    settings = {"epochs": 2, "batch_size": 5, "learning_rate": 0.1} | local
    return Local(**settings, per_example=PerExample(0.5, noise_multiplier))


def test_debug_and_compiled_agree_and_blocks_change_nothing():
    """Whoever else is in a block, and however its batches are filled up."""
    experiment = federation(local=private(0.2), rounds=2)
    compiled, debugged = run(experiment, Simulation()), run(experiment, Simulation(debug=True))
    np.testing.assert_allclose(debugged.params, compiled.params, rtol=1e-3, atol=1e-5)
    assert compiled.rounds[-1].metrics.keys() == debugged.rounds[-1].metrics.keys()
    assert not any(name.startswith("train") for name in compiled.rounds[-1].metrics)


def test_noise_has_the_scale_that_is_accounted_for_and_another_one_is_rejected():
    """One step at a rate of 1 from a clip norm next to nothing moves by the noise alone."""
    tiny = PerExample(1e-3, 2.0)
    local = Local(epochs=1, batch_size=None, learning_rate=1.0, per_example=tiny)
    x, y = batch_for("dense")
    population = data.PerClient([(x, y)] * 20)
    experiment = federation(population=population, sampler=AllClients(), local=local, rounds=1, test=None)
    simulation = Simulation()
    history = run(experiment, simulation)
    moved = history.params - simulation.initial_params()
    scale = 2.0 * 1e-3 / SIZE / np.sqrt(20)
    spread = np.sqrt(np.mean(np.square(moved - moved.mean())))
    assert 0.75 * scale < spread < 1.35 * scale


def test_a_client_without_examples_fills_its_place_in_a_block():
    from umbel.clients.jax.blocks import Block
    from umbel.core.examples import Examples

    x, y = batch_for("dense")
    parts = [Examples(x[:count], y[:count], None) for count in (0, 3)]
    orders = [np.arange(part.count, dtype=np.int32)[None] for part in parts]
    block = Block(parts, orders, [part.count for part in parts], 2)
    filled, labels = block.data_at(np.array([[0, 0], [2, 1]]))
    np.testing.assert_array_equal(filled, [np.zeros((2, FEATURES)), x[[2, 1]]])
    np.testing.assert_array_equal(labels, [[0, 0], y[[2, 1]]])
