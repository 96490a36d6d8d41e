"""Drawn experiments are what Keras computes: models, losses, optimizers, metrics, kinds of data and splits, at random.

    each client alone, by `fit` from the global weights ─► mean by examples ─► the round's weights
    `evaluate` of the held-out examples with them       ─► what the round measures

`UMBEL_DRAWS=200 pytest tests/clients/test_drawn.py -m slow` draws more.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from engines import tf
from umbel import AllClients, Experiment, FedAvg, Local, Simulation, data, run
from umbel.core.examples import Examples

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
layers, K = keras.layers, keras.metrics

FEATURES, HELD_OUT = 4, 45
BODIES = {
    "none": lambda: [],
    "dense": lambda: [layers.Dense(5, "tanh", kernel_regularizer="l2")],
    "batchnorm": lambda: [layers.Dense(4, use_bias=False), layers.BatchNormalization(momentum=0.7)],
    "layernorm": lambda: [layers.LayerNormalization(), layers.Dense(3, "relu", use_bias=False)],
    "gru": lambda: [layers.Reshape((2, 2)), layers.GRU(3)],
    "conv": lambda: [layers.Reshape((4, 1)), layers.Conv1D(2, 3), layers.Flatten()],
    "frozen": lambda: [layers.Dense(5, "tanh", trainable=False)],
    "penalty": lambda: [layers.ActivityRegularization(l1=0.01)],
}
# With large epsilons: under BatchNorm gradients may be nothing but rounding, which adaptive optimizers would enlarge.
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipnorm=1.0),
    "adam": lambda: keras.optimizers.Adam(0.01, weight_decay=0.01, epsilon=1e-2),
    "averaged": lambda: keras.optimizers.RMSprop(0.01, epsilon=1e-2, use_ema=True, ema_momentum=0.8),
    "accumulated": lambda: keras.optimizers.Adagrad(0.1, gradient_accumulation_steps=2),
    "scheduled": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
}


class Task(NamedTuple):
    """What is predicted."""

    outputs: int
    activation: str | None
    losses: tuple[str, ...]
    metrics: dict[str, Any]


TASKS = {
    "binary": Task(
        1,
        "sigmoid",
        ("binary_crossentropy", "mse", "hinge"),
        {
            "accuracy": lambda name: K.BinaryAccuracy(name=name),
            "auc": lambda name: K.AUC(name=name),
            "precision": lambda name: K.Precision([0.3, 0.6], name=name),
            "positives": lambda name: K.FalsePositives(name=name),
        },
    ),
    "classes": Task(
        3,
        "softmax",
        ("sparse_categorical_crossentropy",),
        {
            "accuracy": lambda name: K.SparseCategoricalAccuracy(name=name),
            "top": lambda name: K.SparseTopKCategoricalAccuracy(2, name=name),
            "iou": lambda name: K.MeanIoU(3, sparse_y_pred=False, name=name),
        },
    ),
    "numbers": Task(
        2,
        None,
        ("mse", "mae", "huber"),
        {
            "rmse": lambda name: K.RootMeanSquaredError(name=name),
            "r2": lambda name: K.R2Score(name=name),
            "cosine": lambda name: K.CosineSimilarity(name=name),
        },
    ),
}


class Drawn(NamedTuple):
    """An experiment's parts, by name."""

    task: str
    loss: str
    body: str
    optimizer: str
    metrics: tuple[str, ...]
    is_weighted: bool
    kind: str  # how a client's examples are given
    sizes: tuple[int, ...]  # examples of each client
    batch_size: int
    epochs: int
    compile: str


@st.composite
def experiments(draw) -> Drawn:
    task = draw(st.sampled_from(sorted(TASKS)))
    names = sorted(TASKS[task].metrics)
    return Drawn(
        task,
        draw(st.sampled_from(TASKS[task].losses)),
        draw(st.sampled_from(sorted(BODIES))),
        draw(st.sampled_from(sorted(OPTIMIZERS))),
        tuple(draw(st.lists(st.sampled_from(names), unique=True, min_size=1))),
        draw(st.booleans()),
        draw(st.sampled_from(["arrays", "float64", "frames", "tf.data", "generated"])),
        tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 2)),
        draw(st.sampled_from(["graph", "graph", "xla"])),
    )


def build(drawn: Drawn) -> keras.Model:
    task = TASKS[drawn.task]
    head = layers.Dense(task.outputs, task.activation)
    model = keras.Sequential([keras.Input((FEATURES,)), *BODIES[drawn.body](), head])
    metrics = [task.metrics[name](name) for name in drawn.metrics]
    place = "weighted_metrics" if drawn.is_weighted else "metrics"
    model.compile(OPTIMIZERS[drawn.optimizer](), drawn.loss, **{place: metrics})
    return model


def examples_of(drawn: Drawn, count: int, seed: int) -> tuple:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, FEATURES)).astype(np.float32)
    targets = {
        "binary": lambda: (x[:, :1] + generator.normal(size=(count, 1)) > 0).astype(np.float32),
        "classes": lambda: generator.integers(0, 3, count).astype(np.int32),
        "numbers": lambda: (x[:, :2] + generator.normal(size=(count, 2))).astype(np.float32),
    }
    weights = (generator.uniform(0.2, 2, count).astype(np.float32),) if drawn.is_weighted else ()
    return (x, targets[drawn.task](), *weights)


def given(drawn: Drawn, clients: list[tuple]) -> Any:
    """The clients' population."""
    pandas = pytest.importorskip("pandas")
    if drawn.kind == "generated":
        sizes = np.array(drawn.sizes)
        return data.Generated(len(clients), lambda client: Examples(*(*clients[client], None)[:3]), sizes)
    as_given = {
        "arrays": lambda one: one,
        "float64": lambda one: tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in one),
        "frames": lambda one: (pandas.DataFrame(one[0]), *one[1:]),
        "tf.data": lambda one: tf.data.Dataset.from_tensor_slices(one).batch(4),
    }
    return data.PerClient([as_given[drawn.kind](one) for one in clients])


def check(drawn: Drawn) -> None:
    clients = [examples_of(drawn, count, seed) for seed, count in enumerate(drawn.sizes)]
    held_out = examples_of(drawn, HELD_OUT, 99)
    experiment = Experiment(
        name="drawn", model=lambda: build(drawn), population=given(drawn, clients), strategy=FedAvg(),
        sampler=AllClients(), rounds=1, test=held_out,
        local=Local(epochs=drawn.epochs, batch_size=drawn.batch_size, shuffle=False),
    )  # fmt: skip
    simulation = Simulation(1, drawn.compile)
    history = run(experiment, simulation, progress=False)
    start = simulation.initial_params()
    simulation.close()
    model, ways, logs = build(drawn), [], {}
    model.optimizer.build(model.trainable_variables)
    fresh = [keras.ops.convert_to_numpy(variable) for variable in model.optimizer.variables]
    history.spec.load_into(model, start, history.base)
    begin = model.get_weights()
    for x, y, *weight in clients:
        model.set_weights(begin)
        for variable, value in zip(model.optimizer.variables, fresh, strict=True):
            variable.assign(value)
        fit = {"epochs": drawn.epochs, "batch_size": drawn.batch_size, "shuffle": False, "verbose": 0}
        logs = model.fit(x, y, sample_weight=weight[0] if weight else None, **fit).history
        ways.append(history.spec.flatten(model.get_weights()))
    mean = np.average(ways, axis=0, weights=drawn.sizes)
    np.testing.assert_allclose(history.params, mean, rtol=2e-3, atol=2e-5)
    history.load_into(model)
    x, y, *weight = held_out
    told = model.evaluate(
        x, y, sample_weight=weight[0] if weight else None, batch_size=512, verbose=0, return_dict=True
    )
    expected = {f"test_{name}": value for name, value in told.items()}
    if len(clients) == 1 and drawn.epochs == 1:
        expected |= {f"train_{name}": values[-1] for name, values in logs.items()}
    measured = history.rounds[0].metrics
    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(measured[name]), value, rtol=2e-3, atol=1e-4, err_msg=name)


QUICK = {"deadline": None, "database": None, "derandomize": True, "phases": [hypothesis.Phase.generate]}


@hypothesis.settings(max_examples=3, **QUICK)
@hypothesis.given(experiments())
def test_a_few_drawn_experiments_are_what_keras_computes(drawn):
    check(drawn)


@pytest.mark.slow
@hypothesis.settings(max_examples=int(os.environ.get("UMBEL_DRAWS", "60")), deadline=None, print_blob=True)
@hypothesis.given(experiments())
def test_drawn_experiments_are_what_keras_computes(drawn):
    check(drawn)
