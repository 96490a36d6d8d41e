"""Nothing of one client reaches the next, whatever a step keeps: the mean of A alone and B alone is FedAvg of both."""

import keras
import numpy as np
import pytest

from engines import SOONEST, tf
from federations import CLASSES, FEATURES, blobs, dropped_and_normalised, federation
from umbel import AllClients, ConfigError, Local, Simulation, data, run

LOSS = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
X, Y = blobs(32)
A, B = (X[:16], Y[:16]), (X[16:], Y[16:])


class Custom(keras.Model):
    """A classifier whose step a test overrides."""

    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(CLASSES)

    def call(self, x, training=False):
        return self.layer(x)

    def scaled_step(self, batch, scale):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = scale * self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def annealed():
    """A weight in a tf.Variable that Keras does not list."""

    class Annealed(Custom):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(0.1, trainable=False)

        def train_step(self, batch):
            self.weight.assign_add(0.3)
            return self.scaled_step(batch, self.weight)

    model = Annealed()
    model.compile("adam", **LOSS)
    return model


def two_optimizers():
    """An auxiliary head with an optimizer of its own."""

    class TwoOptimizers(Custom):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(1)
            self.second = keras.optimizers.Adam(0.05)

        def call(self, x, training=False):
            return self.layer(x) + self.head(x)

        def train_step(self, batch):
            x, _ = batch
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self.head(x) - 1.0))
            weights = self.head.trainable_variables
            self.second.apply(tape.gradient(loss, weights), weights)
            return self.scaled_step(batch, 1.0)

    model = TwoOptimizers()
    model.compile("sgd", **LOSS)
    return model


def counted_in_a_closure():
    """A counter and a generator that only the step's closure knows, and one made in the step itself."""
    counter, generator, made = tf.Variable(0.0), tf.random.Generator.from_seed(3), []

    class Counted(Custom):
        def train_step(self, batch):
            if not made:
                made.append(tf.Variable(1.0))
            counter.assign_add(1.0)
            made[0].assign(made[0] * 0.9)
            x, y = batch
            noise = generator.normal(tf.shape(x)) + keras.random.normal(tf.shape(x)) + tf.random.normal(tf.shape(x))
            return self.scaled_step((x + 0.1 * noise / counter, y), made[0])

    model = Counted()
    model.compile("adam", **LOSS)
    return model


def stateful():
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(4, FEATURES, 1)),
            keras.layers.SimpleRNN(3, stateful=True),
            keras.layers.Dense(CLASSES),
        ]
    )
    model.compile("sgd", **LOSS)
    return model


ZOO = [annealed, two_optimizers, counted_in_a_closure, stateful, dropped_and_normalised]


def play(clients, model, simulation=None, **changes):
    """One round of everybody."""
    settings = {
        "population": data.PerClient(clients),
        "sampler": AllClients(),
        "rounds": 1,
        "local": Local(epochs=2, batch_size=4, learning_rate=0.05, shuffle=False),
        "test": None,
    }
    return run(federation(model=model, **(settings | changes)), simulation or Simulation(workers=1, compile=SOONEST))


@pytest.mark.parametrize("compile", [SOONEST, "xla"])
@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.__name__)
def test_each_client_is_as_if_it_were_alone(model, compile):
    """Client 0 draws other numbers than client 1, so each is compared with itself, beside another before or after it.

    One team of workers plays them all, so that whatever a run leaves would reach the next.
    """
    if compile == "xla" and model not in (annealed, two_optimizers):
        pytest.skip("as a graph is enough")
    team = Simulation(workers=1, compile=compile)
    a, b = ((x[..., None], y) if model is stateful else (x, y) for x, y in (A, B))
    together = play([a, b], model, team)
    others = [play(clients, model, team).params for clients in ([b, a], [a, a], [b, b])]
    assert play([a, b], model, team).params_sha256 == together.params_sha256
    np.testing.assert_allclose(together.params + others[0], others[1] + others[2], rtol=1e-4, atol=1e-5)
    if model in (annealed, two_optimizers, stateful):  # they draw nothing
        alone = [play([client], model, team).params for client in (a, b)]
        np.testing.assert_allclose(together.params, np.mean(alone, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [counted_in_a_closure, dropped_and_normalised], ids=lambda model: model.__name__)
def test_workers_draw_the_same_numbers(model):
    one, two = (play([A, B, A], model, Simulation(workers, compile=SOONEST)) for workers in (1, 2))
    assert one.params_sha256 == two.params_sha256


def test_one_model_object_may_be_handed_to_all_and_is_never_written():
    model = dropped_and_normalised()
    before = [weight.numpy() for weight in (*model.weights, *model.optimizer.variables)]
    hashes = {play([A, B], lambda: model, Simulation(workers, compile=SOONEST)).params_sha256 for workers in (1, 2)}
    assert len(hashes) == 1
    play([A, B], lambda: model, Simulation(debug=True))  # which writes the variables of its model
    after = [weight.numpy() for weight in (*model.weights, *model.optimizer.variables)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_put_back_is_refused():
    table = tf.lookup.experimental.MutableHashTable(tf.int32, tf.int32, 0)

    class Remembering(Custom):
        def train_step(self, batch):
            table.insert(batch[1], batch[1])
            return self.scaled_step(batch, 1.0 + tf.cast(table.size(), tf.float32))

    def build_model():
        model = Remembering()
        model.compile("sgd", **LOSS)
        return model

    with pytest.raises(ConfigError, match=r"Insert.*cannot be put back"):
        play([A, B], build_model)


def test_evaluation_draws_what_the_seed_says():
    """Dropout at test time: neither workers nor what ran before count."""

    class Sampling(Custom):
        def call(self, x, training=False):
            return self.layer(x + keras.random.normal(tf.shape(x)) + tf.random.normal(tf.shape(x)))

    def build_model():
        model = Sampling()
        model.compile("sgd", **LOSS)
        return model

    experiment = {"test": blobs(9000), "validation": data.PerClient([B, A])}
    one, two = (play([A, B], build_model, Simulation(workers), **experiment).rounds[0].metrics for workers in (1, 2))
    assert one == two


def test_what_no_seed_decides_is_named(caplog):
    class Sampled(Custom):
        def train_step(self, batch):
            drawn = tf.raw_ops.RandomStandardNormal(shape=tf.shape(batch[0]), dtype=tf.float32)
            return self.scaled_step((batch[0] + drawn, batch[1]), 1.0)

    def build_model():
        model = Sampled()
        model.compile("sgd", **LOSS)
        return model

    play([A, B], build_model)
    assert len([record for record in caplog.records if "RandomStandardNormal" in record.message]) == 1


def test_a_compiled_model_is_taken_as_it_is():
    model = dropped_and_normalised()
    model.fit(X, Y, verbose=0)
    before = [weight.numpy() for weight in model.weights]
    team = Simulation(workers=2)
    history = play([A, B], model, team)
    np.testing.assert_array_equal(team.initial_params(), history.spec.flatten(before))
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert not np.array_equal(history.params, team.initial_params())


def test_a_model_that_cannot_be_built_again_is_refused():
    model = annealed()
    model(X[:1])
    with pytest.raises(ConfigError, match=r"cannot be built again .*model=build_model"):
        play([A, B], model)


def test_eagerly_nothing_reaches_the_next_client_either():
    def build_model():
        model = annealed()
        model.compile("adam", **LOSS, run_eagerly=True)
        return model

    team = Simulation(workers=1)
    eager, compiled = play([A, B, A], build_model, team), play([A, B, A], annealed)
    np.testing.assert_allclose(eager.params, compiled.params, rtol=1e-4, atol=1e-5)
    assert play([A, B, A], build_model, team).params_sha256 == eager.params_sha256
