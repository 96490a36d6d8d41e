"""One client that holds all the data is plain Keras `fit`, step for step, whatever the model is made of."""

import dataclasses

import keras
import numpy as np
import pytest

from engines import SOONEST, tf
from federations import CLASSES, FEATURES, adam, blobs, dense, federation, normalised
from umbel import AllClients, Local, Simulation, data, run


def momentum():
    return dense(optimizer="SGD", learning_rate=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, clipnorm=1.0)


def regularised():
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L2(0.01)),
            keras.layers.ActivityRegularization(l1=0.01),
            keras.layers.Dense(CLASSES, "softmax"),
        ]
    )
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(), weighted_metrics=["accuracy"])
    return model


def focal(y_true, y_pred):
    hot = keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y_true, [-1]), "int32"), CLASSES)
    return -keras.ops.mean((1 - y_pred) ** 2 * keras.ops.log(y_pred + 1e-6) * hot)


def custom_loss():
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES, "softmax")])
    model.compile(keras.optimizers.RMSprop(0.01), focal)
    return model


class Penalised(keras.Model):
    """A subclassed model with its own train_step and its own metric."""

    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(CLASSES)
        self.seen = keras.metrics.Mean(name="penalty")

    def call(self, x):
        return self.layer(x)

    @property
    def metrics(self):
        return [self.seen]

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            penalty = tf.reduce_sum(self.layer(x) ** 2) * 1e-3
            loss = self.compute_loss(x, y, self(x)) + penalty
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.seen.update_state(penalty)
        return {"penalty": self.seen.result()}

    test_step = train_step


def custom_step():
    model = Penalised()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


MODELS = [dense, adam, momentum, normalised, regularised, custom_loss, custom_step]


def weights_after_fit(make, start, examples, epochs, batch_size):
    """What Keras alone makes of the start weights."""
    model = make()
    model(examples[0][:1])
    for weight, value in zip(model.weights, start, strict=True):
        weight.assign(value)
    model.fit(*examples, epochs=epochs, batch_size=batch_size, shuffle=False, verbose=0)
    return np.concatenate([np.asarray(weight).ravel() for weight in model.weights])


def alone(make, examples, **local):
    """A federation of one client that holds everything, in the order given."""
    population = data.PerClient([examples])
    settings = Local(**({"epochs": 2, "batch_size": 8, "learning_rate": None, "shuffle": False} | local))
    return federation(model=make, population=population, sampler=AllClients(), local=settings, rounds=1, test=None)


# With XLA those whose programs differ most: slots and clipping, penalties and weights, statistics, a step of its own.
XLA = [momentum, regularised, normalised, custom_step]
EXAMPLES = blobs(37)  # four batches of 8 and one of 5: the last is not dropped, not padded


@pytest.mark.parametrize(("make", "compile"), [*((make, SOONEST) for make in MODELS), *((make, "xla") for make in XLA)])
def test_one_client_is_keras_fit(make, compile):
    examples, simulation = EXAMPLES, Simulation(workers=1, compile=compile)
    history = run(alone(make, examples), simulation)
    start = history.spec.unflatten(simulation.initial_params()).values()
    expected = weights_after_fit(make, start, examples, epochs=2, batch_size=8)
    np.testing.assert_allclose(history.params, expected, rtol=2e-4, atol=2e-6)


def aligned():
    """Sequences whose loss is over all alignments: its gradient is a function of TensorFlow's older kind."""
    model = keras.Sequential([keras.Input((12, 3)), keras.layers.Dense(6)])
    model.compile(keras.optimizers.SGD(0.05), keras.losses.CTC())
    return model


def test_a_loss_with_functions_of_an_older_kind_is_as_in_fit():
    generator, simulation = np.random.default_rng(0), Simulation(workers=1)
    x = generator.normal(size=(20, 12, 3)).astype(np.float32)
    examples = (x, generator.integers(1, 6, size=(20, 4)).astype(np.int32))
    history = run(alone(aligned, examples), simulation)
    start = history.spec.unflatten(simulation.initial_params()).values()
    expected = weights_after_fit(aligned, start, examples, epochs=2, batch_size=8)
    np.testing.assert_allclose(history.params, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("count", [1, 8])
def test_fewer_examples_than_a_batch(count):
    examples = blobs(count)
    simulation = Simulation(workers=1)
    history = run(alone(adam, examples), simulation)
    start = history.spec.unflatten(simulation.initial_params()).values()
    np.testing.assert_allclose(history.params, weights_after_fit(adam, start, examples, 2, 8), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("way", ["sample_weight", "class_weight"])
def test_examples_count_as_they_do_in_fit(way):
    x, y = blobs(24)
    weight, by_class = np.linspace(0, 2, 24).astype(np.float32), {0: 3.0, 2: 0.5}
    is_by_class, simulation = way == "class_weight", Simulation(workers=1)
    experiment = alone(regularised, (x, y) if is_by_class else (x, y, weight))
    if is_by_class:
        weighted = data.ClassWeighted(experiment.population, by_class)
        experiment = dataclasses.replace(experiment, population=weighted)
    history = run(experiment, simulation)
    model = history.spec.load_into(regularised(), simulation.initial_params())
    model.fit(x, y, epochs=2, batch_size=8, shuffle=False, verbose=0, **{way: by_class if is_by_class else weight})
    np.testing.assert_allclose(history.params, history.spec.flatten(model.get_weights()), rtol=2e-4, atol=2e-6)


def two_ends():
    a, b = keras.Input((FEATURES,), name="a"), keras.Input((2,), name="b")
    hidden = keras.layers.Concatenate()([a, b])
    outputs = {
        "label": keras.layers.Dense(CLASSES, name="label")(hidden),
        "size": keras.layers.Dense(1, name="size")(hidden),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    losses = {"label": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    model.compile("sgd", losses, metrics={"label": ["accuracy"], "size": ["mae"]})
    return model


def test_several_inputs_and_outputs():
    x, y = blobs(30)
    inputs = {"a": x, "b": x[:, :2] * 2}
    targets = {"label": y, "size": x.sum(1, keepdims=True)}
    simulation = Simulation(workers=1)
    history = run(alone(two_ends, (inputs, targets)), simulation)
    start = list(history.spec.unflatten(simulation.initial_params()).values())
    model = two_ends()
    for variable, value in zip(model.weights, start, strict=True):
        variable.assign(value)
    log = model.fit(inputs, targets, epochs=2, batch_size=8, shuffle=False, verbose=0)
    expected = np.concatenate([np.asarray(variable).ravel() for variable in model.weights])
    np.testing.assert_allclose(history.params, expected, rtol=2e-4, atol=2e-6)
    assert {"train_label_accuracy", "train_size_mae", "train_loss"} <= set(history.rounds[0].metrics)
    assert history.rounds[0].metrics["train_size_mae"] == pytest.approx(np.mean(log.history["size_mae"]), rel=1e-4)
