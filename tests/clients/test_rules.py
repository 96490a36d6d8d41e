"""Client halves of algorithms inside the engine: every way to run them agrees; what clients keep stays with them."""

import dataclasses

import keras
import numpy as np
import pytest
from rounds import begin, collect

from engines import SOONEST, tf
from federations import CLASSES, FEATURES, dense, dropped_and_normalised, federation
from quadratics import RATE, Quadratics, close, linear
from umbel import AllClients, ConfigError, Local, Simulation, derive, run
from umbel.clients.optimizers import DeltaSGD, norm
from umbel.core.recipe import extra_size
from umbel.core.types import Broadcast
from umbel.data import PerClient
from umbel.server.store import Store
from umbel.strategies.feddyn import FedDyn
from umbel.strategies.fednova import FedNova
from umbel.strategies.fedprox import FedProx, Proximal
from umbel.strategies.scaffold import Scaffold

ALGORITHMS = [FedProx(0.1), Scaffold(), FedNova(mu=0.1), FedDyn(0.1)]
L2 = keras.regularizers.L2
ONE_STEP = Local(epochs=1, batch_size=None, learning_rate=RATE, shuffle=False)


def name_of(strategy):
    return type(strategy).__name__


def with_dropout():
    return dense(dropout=0.4)


def delta_sgd():
    model = dense(dropout=0.4)
    model.compile(DeltaSGD(), model.loss, metrics=["accuracy"])
    return model


VARIANTS = [{"model": with_dropout, "strategy": strategy} for strategy in ALGORITHMS]
VARIANTS += [{"model": delta_sgd, "strategy": FedDyn(0.1), "local": Local(epochs=2, batch_size=5)}]
every_variant = pytest.mark.parametrize("changes", VARIANTS, ids=[*map(name_of, ALGORITHMS), "DeltaSGD"])
each_algorithm = pytest.mark.parametrize("strategy", ALGORITHMS, ids=name_of)


@every_variant
def test_workers_give_the_same_bits(changes):
    hashes = {
        run(federation(**changes, rounds=2, test=None), Simulation(workers=count)).params_sha256 for count in (1, 2, 4)
    }
    assert len(hashes) == 1


@every_variant
def test_debug_path_equals_compiled_path(changes):
    slow, fast = (
        run(federation(**changes, rounds=2, test=None), Simulation(**how))
        for how in ({"debug": True}, {"compile": SOONEST})
    )
    np.testing.assert_allclose(slow.params, fast.params, rtol=1e-3, atol=1e-5)


@every_variant
def test_xla_equals_graph_to_rounding(changes):
    experiment = federation(**changes | {"model": dense if changes["model"] is with_dropout else tuned_dense})
    graph, xla = (run(experiment, Simulation(workers=1, compile=how)) for how in (SOONEST, "xla"))
    np.testing.assert_allclose(xla.params, graph.params, rtol=1e-3, atol=1e-5)


def tuned_dense():
    model = dense()
    model.compile(DeltaSGD(), model.loss, metrics=["accuracy"])
    return model


class Interrupted(Exception):
    pass


class InterruptAfter:
    """A watcher that fails like a killed notebook."""

    def __init__(self, round):
        self.round = round

    def on_start(self, experiment, runtime, run, records):
        self.run = run

    def on_round(self, record, failures):
        if record.round == self.round:
            raise Interrupted

    def on_end(self, history):
        pass


@pytest.mark.parametrize("strategy", [Scaffold(), FedDyn(0.1)], ids=name_of)
def test_what_clients_remember_survives_the_end_of_the_process(strategy, tmp_path):
    """Resumed equals uninterrupted, bit for bit; c_i lies in the store, after what is personal."""
    url, watcher = f"sqlite:///{tmp_path / 'runs.db'}", InterruptAfter(2)
    experiment = federation(model=with_dropout, strategy=strategy, personal=("dense_1",), rounds=4, test=None)
    uninterrupted = run(experiment, Simulation(workers=2))
    with pytest.raises(Interrupted):
        run(experiment, Simulation(workers=2), store=url, watchers=[watcher])
    with Store.open(url) as store:
        memory = store.memory(watcher.run)
        kept = [arrays for client in range(8) if (arrays := memory.read(client)) is not None]
    assert kept
    assert all(arrays[-1].shape == uninterrupted.params.shape and arrays[-1].any() for arrays in kept)
    assert {len(arrays) for arrays in kept} == {3}
    resumed = run(experiment, Simulation(workers=1), store=url, resume=watcher.run)
    assert resumed.params_sha256 == uninterrupted.params_sha256


@each_algorithm
def test_bytes_are_those_of_what_travels(strategy):
    """Up: delta and extra; down: params and what the strategy broadcasts; memory in neither."""
    history = run(federation(strategy=strategy), Simulation(workers=1))
    size = history.spec.size
    down = size + len(strategy.broadcast(strategy.init(history.params)))
    for record in history.rounds:
        assert record.bytes_up == 4 * 4 * (size + extra_size(strategy, size))
        assert record.bytes_down == 4 * 4 * down


def scheduled():
    model = dense()
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)), model.loss)
    return model


def test_a_rate_the_rule_cannot_know_is_refused():
    for strategy in (Scaffold(), FedNova()):
        with pytest.raises(ConfigError, match=r"has to know the learning rate; give local\.learning_rate"):
            run(federation(model=scheduled, strategy=strategy, local=Local()), Simulation(workers=1))


# Δ-SGD


def self_tuned(**settings):
    model = linear()
    model.compile(DeltaSGD(**settings), "mse")
    return model


def loss_scaled():
    model = linear()
    model.compile(keras.optimizers.LossScaleOptimizer(DeltaSGD(0.4), initial_scale=2.0**10), "mse")
    return model


def another():
    return self_tuned(learning_rate=0.3, gamma=1.5, delta=0.5, theta=2.0)


def by_default():
    return self_tuned(learning_rate=0.4)


def penalised():
    """Ridge regression, whose outputs are penalised as well."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False, kernel_regularizer=L2(0.1))])
    model.layers[0].activity_regularizer = L2(0.2)
    model.compile(DeltaSGD(0.4), "mse")
    return model


def by_hand(clients, client, w, start, gamma=2.0, delta=0.1, theta=1.0, mu=0.0, ridge=0.0, activity=0.0):
    """Algorithm 1's local steps in float64, with all iterates; also which term won."""
    x, rate, ratio, won, before = w, start, theta, set(), None
    for _ in range(clients.steps(client, epochs=2)):
        gradient = clients.gradient(client, x) + mu * (x - w)
        gradient = gradient + 2 * ridge * x + activity * clients.curvature[client] @ x
        if before is not None:
            fitting = gamma * np.linalg.norm(x - before[0]) / (2 * np.linalg.norm(gradient - before[1]))
            grown = np.sqrt(1 + delta * ratio) * rate
            won.add("fitting" if fitting < grown else "grown")
            rate, ratio = min(fitting, grown), min(fitting, grown) / rate
        before = x, gradient
        x = x - rate * gradient
    return x - w, won


@pytest.mark.parametrize("how", [{"compile": SOONEST}, {"compile": "xla"}, {"debug": True}], ids=str)
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (by_default, {"start": 0.4}),
        (loss_scaled, {"start": 0.4}),
        (another, {"start": 0.3, "gamma": 1.5, "delta": 0.5, "theta": 2.0}),
        (penalised, {"start": 0.4, "ridge": 0.1, "activity": 0.2}),
    ],
)
def test_delta_sgd_is_its_closed_form(make, settings, how):
    """Each client from the same start, with nothing of the client before it; corrected gradients count."""
    clients, simulation, mu = Quadratics(copies=[1, 3, 2, 4]), Simulation(workers=1, **how), 0.1
    local = Local(epochs=2, batch_size=8, shuffle=False)
    history = run(clients.experiment(model=make, local=local, rule=Proximal(mu)), simulation)
    w, won = simulation.initial_params().astype(np.float64), set()
    for _ in range(2):
        moves, terms = zip(*(by_hand(clients, k, w, mu=mu, **settings) for k in range(4)), strict=True)
        w = w + sum(p * move for p, move in zip(clients.weights, moves, strict=True))
        won |= set.union(*terms)
    assert won == {"fitting", "grown"}
    close(history.params, w)


@pytest.mark.parametrize("how", [{"compile": SOONEST}, {"compile": "xla"}, {"debug": True}], ids=str)
def test_delta_sgd_takes_both_gradients_of_the_batch_at_hand(how):
    """Where batches differ, in float64; the loss that is reported is of the second pass alone."""
    generator, batches = np.random.default_rng(1), [slice(0, 8), slice(8, 16), slice(16, 20)] * 2
    x, y = generator.normal(size=(20, 3)).astype(np.float32), generator.normal(size=(20, 1)).astype(np.float32)
    local, population = Local(epochs=2, batch_size=8, shuffle=False), PerClient([(x, y)])
    simulation = Simulation(workers=1, **how)
    history = run(Quadratics().experiment(model=by_default, local=local, population=population, rounds=1), simulation)
    w, rate, ratio, before, losses = simulation.initial_params().astype(np.float64), 0.4, 1.0, None, []

    def gradient(rows, w):
        return 2 * x[rows].T.astype(np.float64) @ (x[rows] @ w - y[rows, 0]) / len(x[rows])

    for rows in batches:
        losses += [np.square(x[rows] @ w - y[rows, 0])]
        now = gradient(rows, w)
        if before is not None:
            fitting = np.linalg.norm(w - before) / np.linalg.norm(now - gradient(rows, before))
            rate, ratio = min(fitting, np.sqrt(1 + 0.1 * ratio) * rate), min(fitting / rate, np.sqrt(1 + 0.1 * ratio))
        w, before = w - rate * now, w
    close(history.params, w)
    assert history.rounds[0].metrics["train_loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)


def test_of_the_pass_at_the_place_before_nothing_else_is_left():
    """Where rates are next to nothing: Dropout, statistics and metrics are those of SGD."""
    ends = []
    for optimizer in (DeltaSGD, keras.optimizers.SGD):

        def model(optimizer=optimizer):
            made = dropped_and_normalised()
            made.compile(optimizer(1e-8), made.loss, metrics=["accuracy"])
            return made

        experiment = federation(model=model, local=Local(epochs=2, batch_size=5, learning_rate=1e-8), rounds=2)
        ends.append(run(experiment, Simulation(workers=1, compile=SOONEST)))
    np.testing.assert_allclose(ends[0].params, ends[1].params, atol=1e-5)
    for metric in ("train_loss", "train_accuracy"):
        np.testing.assert_allclose(ends[0].column(metric), ends[1].column(metric), rtol=1e-5)


def test_delta_sgd_begins_at_the_rate_of_the_round():
    """One step is SGD at Local's rate, or at the optimizer's own."""
    clients = Quadratics()
    sgd = run(clients.experiment(local=ONE_STEP), Simulation(workers=1, compile=SOONEST))
    for rate, make in ((RATE, self_tuned), (None, lambda: self_tuned(learning_rate=RATE))):
        local = dataclasses.replace(ONE_STEP, learning_rate=rate)
        history = run(clients.experiment(model=make, local=local), Simulation(workers=1, compile=SOONEST))
        np.testing.assert_allclose(history.params, sgd.params, rtol=1e-6)


def test_delta_sgd_gets_by_without_a_curvature():
    """A gradient that never changes lets the rate grow; one that vanishes leaves everything where it is."""
    variable, optimizer = keras.Variable(np.zeros(2, np.float32)), DeltaSGD(0.1)
    places = [0.0]
    for _ in range(3):
        optimizer.apply([keras.ops.ones(2)], [variable])
        places.append(float(variable[0]))
    steps = -np.diff(places)
    assert steps[0] == pytest.approx(0.1)
    assert (np.diff(steps) > 0).all()
    variable, optimizer = keras.Variable(np.ones(2, np.float32)), DeltaSGD(0.1)
    for gradient in (0.0, 0.0, 1.0, 1.0):
        optimizer.apply([keras.ops.full((2,), gradient, "float32")], [variable])
    assert 0.0 < float(variable[0]) < 0.8


def test_delta_sgd_gets_by_without_a_gradient_at_the_place_before():
    """Scaled, a loss may overflow where the model was, and not where it is: the rate grows."""

    class Steep(keras.Model):
        def train_step(self, batch):
            gradient = keras.ops.where(self.place > 0.95, batch, 1.0)
            self.optimizer.apply([gradient], [self.place])
            return {}

    model = Steep()
    model.place = model.add_weight(shape=(), initializer="ones", name="place")
    model.compile(DeltaSGD(0.1))
    model.optimizer.build([model.place])
    step = model.optimizer.looking_back(model)
    step(tf.constant(1.0))
    step(tf.constant(np.inf))
    assert float(model.place) == pytest.approx(1.0 - 0.1 - 0.1 * np.sqrt(1.1))


@pytest.mark.parametrize(("is_compiled", "sums"), [(False, "L2Loss"), (True, "Split")])
def test_norms_are_summed_as_the_compiler_is_fast_at(is_compiled, sums):
    """And are the same however that is."""
    generator = np.random.default_rng(0)
    tensors = [generator.normal(size=shape).astype(np.float32) for shape in ((), (1, 127), (128,), (129,), (50, 100))]
    compiled = tf.function(lambda: norm(tensors), jit_compile=is_compiled, autograph=False)
    expected = np.sqrt(sum(np.square(one.astype(np.float64)).sum() for one in tensors))
    assert float(compiled()) == pytest.approx(expected, rel=1e-6)
    assert float(norm(tensors)) == pytest.approx(expected, rel=1e-6)
    assert sums in {one.type for one in compiled.get_concrete_function().graph.get_operations()}


def test_delta_sgd_round_trips_and_refuses():
    optimizer = DeltaSGD(0.3, gamma=1.5, delta=0.2, theta=0.5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert again.get_config() == optimizer.get_config()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)
    for bad in ({"gamma": 0.0}, {"delta": -0.1}, {"theta": 0.0}, {"learning_rate": 0.0}, {"learning_rate": schedule}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            DeltaSGD(**bad)


# Normalisation across clients


class Idle(keras.layers.Layer):
    """Weights that training assigns, and never changes: their gradient is 0."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(5,), initializer="ones")

    def call(self, x):
        return x + 0 * keras.ops.sum(self.weight)


def only_normalisation_learns():
    """Dense layers are frozen, and what is shared is idle: training changes BatchNorm's scale, shift and statistics."""
    layers = [keras.Input((FEATURES,)), keras.layers.Dense(8, "relu", trainable=False), Idle()]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(CLASSES, trainable=False)]
    model = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def test_fedbn_keeps_normalisation_at_home():
    """FedBN is personal=("normalization",): all that was learnt is with the clients, and nothing of it was sent."""
    experiment = federation(model=only_normalisation_learns, personal=("normalization",), sampler=AllClients())
    simulation = Simulation(workers=2)
    history = run(experiment, simulation)
    np.testing.assert_array_equal(history.params, simulation.initial_params())
    kept = [simulation._memory.read(client) for client in range(8)]
    for position in range(4):  # scale, shift, mean, variance
        assert len({arrays[position].tobytes() for arrays in kept}) == 8
    assert not any("normalization" in variable.path for variable in history.spec.shared)
    assert [record.bytes_up for record in history.rounds] == [8 * 4 * 5] * 3
    assert [record.bytes_down for record in history.rounds] == [8 * 4 * 5] * 3


def test_fedbn_with_control_variates_sends_none_of_it_either():
    experiment = federation(model=only_normalisation_learns, personal=("normalization",), strategy=Scaffold())
    simulation = Simulation(workers=1)
    begin(simulation, experiment)
    params = simulation.initial_params()
    broadcast = Broadcast(1, params, np.zeros_like(params), (), 0.1)
    total = collect(simulation, broadcast, [0, 1], derive(0)).total
    np.testing.assert_array_equal(total.delta, 0)
    np.testing.assert_array_equal(total.extra, 0)


def normalised_input():
    layers = [keras.Input((FEATURES,)), keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dense(CLASSES)]
    model = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_statistics_in_the_vector_are_averaged():
    """Each client's moving mean and variance, weighted like its weights. The mean is that of all examples; to the
    variance the spread between the clients' means is missing, as the law of total variance says."""
    experiment = federation(model=normalised_input, sampler=AllClients(), local=ONE_STEP, rounds=60)
    simulation = Simulation(workers=2)
    history = run(experiment, simulation)
    parts = {path.split("/")[-1]: value for path, value in history.spec.unflatten(history.params).items()}
    x = [experiment.population.examples(client).x for client in range(8)]
    share = experiment.population.sizes() / sum(experiment.population.sizes())
    means, variances = np.stack([one.mean(0) for one in x]), np.stack([one.var(0) for one in x])
    left = 0.9**60  # of the initial 0 and 1
    np.testing.assert_allclose(parts["moving_mean"], (1 - left) * share @ means, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(parts["moving_variance"], left + (1 - left) * share @ variances, rtol=1e-3)
    everything = np.concatenate(x)
    np.testing.assert_allclose(share @ means, everything.mean(0), rtol=1e-4, atol=1e-5)
    between = share @ (means - share @ means) ** 2
    np.testing.assert_allclose(share @ variances + between, everything.var(0), rtol=1e-4)
