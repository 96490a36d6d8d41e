"""What training never assigns is the base: outside the vector, bit for bit what it was, and restored with the model."""

import logging

import keras
import numpy as np
import pytest

from engines import SOONEST, tf
from federations import CLASSES, FEATURES, blobs, dense, federation
from umbel import (
    AllClients,
    ConfigError,
    Devices,
    FedAvg,
    FedBuff,
    FixedCohort,
    Local,
    PerExample,
    PrivacyPlan,
    Simulation,
    data,
    run,
)
from umbel.core.spec import ModelSpec
from umbel.server.store import Store
from umbel.strategies import IFCA, Ditto, Quantised, Scaffold, SplitFed

LOSS = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
X, Y = blobs(32)
LOCAL = Local(epochs=2, batch_size=8, learning_rate=0.05, shuffle=False)


def compiled(model, optimizer="SGD"):
    model.compile(getattr(keras.optimizers, optimizer)(0.05), **LOSS)
    return model


def stacked(*layers, optimizer="SGD"):
    return compiled(keras.Sequential([keras.Input((FEATURES,)), *layers, keras.layers.Dense(CLASSES)]), optimizer)


def body(**settings):
    return keras.layers.Dense(8, "relu", name="body", **settings)


def frozen_body():
    return stacked(body(trainable=False))


def frozen_after_compile():
    model = stacked(body())
    model.get_layer("body").trainable = False
    return model


def frozen_variable():
    model = stacked(body())
    model.get_layer("body").kernel.trainable = False
    return model


def frozen_norm():
    """One norm of a functional body is frozen; another is called with training=False, which `fit` overrules."""
    x = keras.Input((FEATURES,))
    h = keras.layers.BatchNormalization(name="still", trainable=False)(x)
    h = keras.layers.BatchNormalization(name="moved")(h, training=False)
    return compiled(keras.Model(x, keras.layers.Dense(CLASSES)(h)))


def nested():
    """A pre-trained model inside another, its last layer thawed."""
    inner = keras.Sequential([keras.Input((FEATURES,)), body(), keras.layers.Dense(4, name="thawed")], name="inner")
    inner.get_layer("body").trainable = False
    return stacked(inner, optimizer="Adam")


def adapted():
    model = stacked(body(), optimizer="Adam")
    model.get_layer("body").enable_lora(2)
    return model


def quantised():
    model = stacked(body(), optimizer="Adam")
    model.get_layer("body").enable_lora(2)
    model.get_layer("body").quantize("int8")
    return model


def half_width():
    """A frozen body in bfloat16, of which NumPy knows nothing."""
    return stacked(body(trainable=False, dtype="bfloat16"))


def adapted_lookup():
    """LoRA on an embedding and on an EinsumDense."""
    x = keras.Input((FEATURES,))
    rounded = keras.layers.Lambda(lambda x: keras.ops.cast(keras.ops.abs(x), "int32") % 4)(x)
    looked_up = keras.layers.Embedding(4, 5, name="table")(rounded)
    mixed = keras.layers.EinsumDense("abc,cd->abd", (None, 5), name="mixed")(looked_up)
    model = keras.Model(x, keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling1D()(mixed)))
    model.get_layer("table").enable_lora(2)
    model.get_layer("mixed").enable_lora(2)
    return compiled(model, "Adam")


def normalised():
    """A Normalization layer, adapted before."""
    layer = keras.layers.Normalization(name="adapted")
    layer.adapt(X)
    return stacked(layer)


def scaled():
    model = stacked(body())
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05)), **LOSS)
    return model


class Unused(keras.Model):
    """One of its layers is called, but nothing comes of it."""

    def __init__(self):
        super().__init__()
        self.head, self.unused = keras.layers.Dense(CLASSES, name="head"), keras.layers.Dense(2, name="unused")

    def call(self, x):
        self.unused(x)
        return self.head(x)


def without_gradient():
    return compiled(Unused())


graph = tf.function(jit_compile=True) if tf else staticmethod


class Copied(keras.Model):
    """Its target follows its head every third step, in a function of its own; a table is looked up."""

    def __init__(self):
        super().__init__()
        self.head, self.target = (keras.layers.Dense(CLASSES, name=name) for name in ("head", "target"))
        self.target.trainable = False
        self.steps = tf.Variable(0, trainable=False)
        keys = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1, 2]), tf.constant([1.0, 1.0, 1.0]))
        self.weights_of = tf.lookup.StaticHashTable(keys, 1.0)

    def call(self, x):
        return self.head(x) + 0.0 * self.target(x)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), self.weights_of.lookup(y))
        self.optimizer.apply(tape.gradient(loss, self.head.trainable_variables), self.head.trainable_variables)
        self.steps.assign_add(1)
        tf.cond(self.steps % 3 == 0, self.copy, lambda: None)
        return {"loss": loss}

    @graph
    def copy(self):
        for to, of in zip(self.target.weights, self.head.weights, strict=True):
            to.assign(of)


def copied():
    return compiled(Copied())


ZOO = {
    frozen_body: {"body/kernel", "body/bias"},
    frozen_after_compile: {"body/kernel", "body/bias"},
    frozen_variable: {"body/kernel"},
    frozen_norm: {"still/gamma", "still/beta", "still/moving_mean", "still/moving_variance"},
    nested: {"body/kernel", "body/bias"},
    adapted: {"body/kernel"},
    quantised: {"body/kernel", "body/kernel_scale"},
    half_width: {"body/kernel", "body/bias"},
    adapted_lookup: {"table/embeddings", "mixed/kernel"},
    normalised: {"adapted/mean", "adapted/variance", "adapted/count"},
    scaled: set(),
    without_gradient: {"unused/kernel", "unused/bias"},
    copied: set(),
}


def alone(model, **changes):
    """One client that holds everything, for one round."""
    settings = {"population": data.PerClient([(X, Y)]), "sampler": AllClients(), "rounds": 1, "local": LOCAL}
    experiment = federation(model=model, **(settings | {"test": None} | changes))
    return run(experiment, Simulation(workers=1, compile=SOONEST), watchers=[])


def begun(make):
    """make's model, always with the same weights; those it has, like every model that make gives, are others."""
    first = make()
    first(X[:1])
    start = first.get_weights()

    def build_model():
        model = make()
        model(X[:1])
        model.set_weights(start)
        return model

    return build_model


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("make", ZOO, ids=lambda make: make.__name__)
def test_what_is_frozen_is_found_and_the_rest_is_what_fit_trains(make):
    build_model, other = begun(make), make()
    other(X[:1])
    history, alike = alone(build_model), build_model()
    start = [weight.numpy() for weight in alike.weights]
    alike.fit(X, Y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    variables, found = history.spec.variables, list(history.spec.frozen)
    assert {name for name in ZOO[make] for one in found if one.path.endswith(name)} == ZOO[make]
    assert len(found) == len(ZOO[make])
    loaded = history.load_into(other)  # a model that began with other values
    for variable, before, *both in zip(variables, start, loaded.weights, alike.weights, strict=True):
        ours, keras_own = (weight.numpy() for weight in both)
        if variable.is_frozen:
            assert ours.tobytes() == before.tobytes() == keras_own.tobytes()
        else:
            np.testing.assert_allclose(ours, keras_own, rtol=2e-4, atol=2e-5)
    record = history.rounds[-1]
    assert record.bytes_up == record.bytes_down == 4 * history.spec.size
    assert record.trainable_bytes == (4 * history.spec.size if found else None)


def test_of_a_trainable_weight_that_no_gradient_reaches_the_path_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        alone(begun(without_gradient), rounds=2)
    said = [record.getMessage() for record in caplog.records if "no gradient reaches it" in record.getMessage()]
    assert len(said) == 2
    assert "unused/kernel is trainable" in said[0]


def test_a_model_of_which_nothing_is_trained_is_refused():
    def build_model():
        model = dense()
        model.trainable = False
        return model

    with pytest.raises(ConfigError, match=r"training assigns no variable of the model: all are frozen \(.*kernel"):
        alone(build_model)


def test_a_compiled_model_is_taken_as_it_is_frozen_variables_and_all():
    for make in (frozen_variable, adapted, quantised):
        model = make()
        history = alone(model)
        pairs = zip(model.weights, history.spec.variables, strict=True)
        frozen = [weight for weight, variable in pairs if variable.is_frozen]
        assert {name for name in ZOO[make] for one in frozen if one.path.endswith(name)} == ZOO[make]
        assert [one.numpy().tobytes() for one in frozen] == [one.tobytes() for one in history.base.arrays]


def test_a_step_that_runs_eagerly_is_read_as_far_as_it_can_be_traced():
    def build_model():
        model = Copied()
        model.compile(keras.optimizers.SGD(0.05), run_eagerly=True, **LOSS)
        return model

    history = alone(begun(build_model))
    assert not any(history.spec.frozen)


def test_what_an_eager_step_moves_later_than_at_first_is_refused():
    class Late(Copied):
        def train_step(self, batch):
            loss = float(self.compute_loss(*batch, self(batch[0])).numpy())  # in no graph
            self.head.bias.assign_add(tf.ones(CLASSES))
            self.steps.assign_add(1)
            if int(self.steps.numpy()) == 3:
                self.copy()
            return {"loss": loss}

    def build_model():
        model = Late()
        model.compile("sgd", run_eagerly=True, **LOSS)
        return model

    with pytest.raises(ConfigError, match=r"training changed '.*target/.*counts as frozen.*run_eagerly"):
        alone(begun(build_model))


def test_workers_with_models_of_their_own_have_one_base():
    """A builder that draws numbers of its own gives each device, and each replica, another."""
    draws = np.random.default_rng(0)

    def build_model():
        model = frozen_body()
        model.get_layer("body").set_weights([draws.normal(size=shape) for shape in ((FEATURES, 8), (8,))])
        return model

    devices = Simulation(workers=2, devices=["CPU:0", "CPU:0"], compile=SOONEST)
    for simulation in (devices, Simulation(workers=1, replicas=1, debug=True)):
        history = run(federation(model=build_model, rounds=1), simulation, watchers=[])
        loss = history.load_into(build_model()).evaluate(*blobs(64, seed=5), verbose=0)
        assert loss == pytest.approx(history.rounds[-1].metrics["test_loss"], rel=1e-4)


def test_noise_and_clipping_are_over_what_is_trained():
    """A body as wide as this one would leave nothing of the head's update within clip_norm, and drown it in noise."""
    plan = PrivacyPlan(epsilon=8.0, delta=1e-3, rounds=2, population=8, sampling_rate=0.5, clip_norm=0.5)
    build_model = begun(frozen_body)
    history = run(
        federation(model=build_model, strategy=FedAvg(), plan=plan, rounds=2, sampler=None),
        Simulation(workers=1, compile=SOONEST),
        watchers=[],
    )
    before, after = build_model(), history.load_into(frozen_body())
    for one, other in zip(before.get_layer("body").weights, after.get_layer("body").weights, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    assert history.params.size == 8 * CLASSES + CLASSES


def half_frozen():
    """Two layers, of which a client of a model that is cut holds the first, its bias frozen."""
    model = stacked(body())
    model.get_layer("body").bias.trainable = False
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": IFCA(2)},
        {"strategy": Scaffold(), "weighting": "uniform"},
        {"strategy": SplitFed(cut="body")},
        {"strategy": Ditto(0.1)},
        {"codec": Quantised(8)},
        {"strategy": FedBuff(2), "devices": Devices(examples_per_second=100.0)},
        {"local": Local(epochs=1, batch_size=4, learning_rate=0.1, per_example=PerExample(1.0, 1.0)), "test": None},
    ],
    ids=lambda changes: type(next(iter(changes.values()))).__name__,
)
def test_whatever_reads_the_vector_reads_what_is_trained(changes):
    """The same bits with one worker and with two, which share the body's kernel."""
    base = {"rounds": 2, "sampler": FixedCohort(3)}
    experiment = federation(model=half_frozen, **(base | changes))
    one, two = (run(experiment, Simulation(workers, SOONEST), watchers=[]) for workers in (1, 2))
    assert one.params_sha256 == two.params_sha256
    assert one.params.size == FEATURES * 8 + 8 * CLASSES + CLASSES
    assert [variable.path for variable in one.spec.frozen] == ["sequential/body/bias"]
    assert np.isfinite(one.params).all()


def test_workers_have_twins_of_what_is_assigned_alone():
    simulation = Simulation(workers=2, compile=SOONEST)
    run(federation(model=frozen_body, rounds=2), simulation, watchers=[])
    kernels = [id(twin) for worker in simulation._team for twin in worker.twins._variables.values()]
    shapes = [tuple(twin.shape) for worker in simulation._team for twin in worker.twins._variables.values()]
    assert len(set(kernels)) == len(kernels)
    assert (8, CLASSES) in shapes
    assert (FEATURES, 8) not in shapes


class TestStored:
    """A version is its vector and its base, which versions share."""

    @pytest.mark.parametrize("make", [quantised, half_width], ids=lambda make: make.__name__)
    def test_a_version_is_restored_bit_for_bit(self, make, tmp_path):
        url, build_model = f"sqlite:///{tmp_path}/runs.db", begun(make)
        histories = []
        for rounds in (1, 2):
            settings = {"population": data.PerClient([(X, Y)]), "sampler": AllClients(), "local": LOCAL, "test": None}
            experiment = federation(model=build_model, rounds=rounds, **settings)
            histories.append(run(experiment, Simulation(workers=1, compile=SOONEST), store=url, watchers=[]))
        with Store.open(url) as store:
            assert store.models.verify("small") == 2
            store.models.set_alias("small", "production", 1)
            for version, history in (("production", histories[0]), ("latest", histories[1])):
                loaded, wanted = store.models.load_into(make(), "small", version), history.load_into(make())
                for ours, theirs in zip(loaded.weights, wanted.weights, strict=True):
                    assert ours.numpy().tobytes() == theirs.numpy().tobytes()
                _, arrays = store.models.arrays("small", version)
                assert len(arrays) == len(wanted.weights)
            with store._database.read() as connection:
                held = connection.exec_driver_sql("SELECT count(*), count(DISTINCT digest) FROM model_bases").one()
            assert tuple(held) == (2, 1)
            assert store.load_run("latest").records[-1].trainable_bytes == 4 * histories[1].spec.size

    def test_a_run_is_resumed_on_its_own_base_alone(self, tmp_path):
        url = f"sqlite:///{tmp_path}/runs.db"

        def played(build_model, rounds, **settings):
            experiment = federation(model=build_model, rounds=rounds)
            return run(experiment, Simulation(workers=1, compile=SOONEST), watchers=[], **settings)

        build_model = begun(frozen_body)
        whole = played(build_model, 3)
        played(build_model, 2, store=url)
        assert played(build_model, 3, store=url, resume="latest").params_sha256 == whole.params_sha256
        with pytest.raises(ConfigError, match=r"model\.base was .*, is now .*; restore the model"):
            played(begun(frozen_body), 4, store=url, resume="latest")


def test_a_spec_says_which_values_it_is_on():
    build_model = begun(frozen_body)
    history = alone(build_model)
    spec = ModelSpec.from_json(history.spec.to_json())
    assert spec == history.spec
    spec.load_into(build_model(), history.params)  # its own values are the base already
    with pytest.raises(ConfigError, match="kernel' is frozen, and what is frozen has other values"):
        spec.load_into(frozen_body(), history.params)
    assert spec.base_from(history.base.to_bytes()).digest == spec.base
    with pytest.raises(ConfigError, match="they do not fit it"):
        spec.load_into(frozen_norm(), history.params)


def test_an_integer_base_does_not_go_into_a_model_of_floats():
    history = alone(begun(quantised))
    with pytest.raises(ConfigError, match=r"do not fit it|build it as it was trained"):
        history.load_into(adapted())
