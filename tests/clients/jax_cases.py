"""Cases that tests/clients/test_jax.py plays in a process of each backend: python jax_cases.py FOLDER CASE …"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import keras
import numpy as np

from umbel import (
    AllClients,
    Clip,
    Ditto,
    Experiment,
    FedAvg,
    FixedCohort,
    Local,
    PerExample,
    Proximal,
    Scaffold,
    Simulation,
    SplitFed,
    run,
)  # fmt: skip
from umbel.core.errors import UmbelError
from umbel.core.examples import Examples
from umbel.core.random import derive
from umbel.core.system.backend import require_tensorflow
from umbel.core.types import NOTHING, Broadcast, Failure
from umbel.data import Iid, Partitioned, PerClient

FOLDER, BATCH = Path(sys.argv[1]), 4
BACKEND = keras.backend.backend()
generator = np.random.default_rng(3)
SIZES = [1, BATCH - 1, BATCH, BATCH + 1, 11, 8, 2, 9, 14, 8]
TRUTH = generator.normal(size=(6, 3))


def examples(count):
    x = generator.normal(size=(count, 6)).astype(np.float32)
    return x, (x @ TRUTH).argmax(1).astype(np.int32)


CLIENTS = PerClient([examples(count) for count in SIZES])
TEST = examples(30)


def compiled(layers, optimizer):
    model = keras.Sequential([keras.Input((6,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    if (FOLDER / f"weights-{len(layers)}.npz").exists():  # drawn by the other backend
        with np.load(FOLDER / f"weights-{len(layers)}.npz") as stored:
            model.set_weights([stored[name] for name in stored.files])
    elif BACKEND == "tensorflow":
        np.savez(FOLDER / f"weights-{len(layers)}.npz", *model.get_weights())
    return model


def plain():
    return compiled([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)], keras.optimizers.SGD(0.1))


def normalised():
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(momentum=0.8), keras.layers.Dense(3)]
    return compiled(layers, keras.optimizers.SGD(0.1))


def adaptive():
    return compiled([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)], keras.optimizers.Adam(0.01))


def penalised():
    regularised = keras.layers.Dense(8, "relu", kernel_regularizer=keras.regularizers.L2(0.01))
    return compiled([regularised, keras.layers.Dense(3)], keras.optimizers.SGD(0.1, momentum=0.5))


def local(**changes):
    return Local(**{"epochs": 2, "batch_size": BATCH, "learning_rate": 0.1, **changes})


def experiment(strategy=None, **changes):
    settings = {
        "name": "both", "model": plain, "population": CLIENTS, "strategy": strategy or FedAvg(), "rounds": 4,
        "sampler": FixedCohort(6), "local": local(), "test": TEST, **changes,
    }  # fmt: skip
    return Experiment(**settings)


LYING_TOGETHER = Partitioned(examples(85), by=Iid(), clients=7)  # 12 or 13 examples a client
PARITY = {
    "sgd": lambda: experiment(validation=CLIENTS),
    "batch_norm": lambda: experiment(model=normalised, local=local(epochs=1)),
    "adam": lambda: experiment(model=adaptive, local=local(epochs=1, learning_rate=0.01)),
    "scaffold": lambda: experiment(Scaffold(), transforms=Clip(1.0)),
    "per_example": lambda: experiment(
        rounds=2, model=penalised, local=local(epochs=1, per_example=PerExample(0.5, 0.3)), rule=Proximal(0.1)
    ),
    "proximal_own": lambda: experiment(Ditto(0.5), validation=CLIENTS),
    "cohort_of_many": lambda: experiment(
        population=LYING_TOGETHER, sampler=AllClients(), local=local(epochs=1, steps=5)
    ),
}


FIRST = ("scaffold", "per_example")


def simulation():
    return Simulation(1, compile="auto" if BACKEND == "jax" else "graph")


def default():
    """The runs that both engines play, the first."""
    return played({name: PARITY[name] for name in FIRST})


def rest():
    """The runs that both engines play, all others."""
    return played({name: make for name, make in PARITY.items() if name not in FIRST})


def played(runs):
    found = {}
    for name, make in runs.items():
        with contextlib.closing(simulation()) as runtime:
            one = make()
            history = run(one, runtime)
            np.save(FOLDER / f"{name}-{BACKEND}.npy", history.params)
            np.save(FOLDER / f"{name}-start.npy", runtime.initial_params())
            found[name] = dict(history.rounds[-1].metrics)
    return found


def alone():
    """Clients in blocks of others."""
    from umbel.clients.engine import play_together
    from umbel.clients.jax.engine import JaxEngine
    from umbel.clients.round import client_round

    one = experiment()
    engine = JaxEngine(one, block=6)
    before = engine.model.get_weights()
    parts = [CLIENTS.examples(client) for client in range(len(SIZES))]
    data = engine.put(Examples(*(np.concatenate([part[place] for part in parts]) for place in (0, 1)), None))
    starts = np.cumsum([0, *SIZES])

    def played(engine, clients):
        broadcast = Broadcast(1, engine.initial_params, NOTHING, (), 0.1)
        rows = [np.arange(starts[client], starts[client + 1], dtype=np.int32) for client in clients]
        works = [
            client_round(engine, broadcast, client, derive(0, client), data, own, None)
            for client, own in zip(clients, rows, strict=True)
        ]
        return {client: found.content for client, found in zip(clients, play_together(engine, works), strict=True)}

    def same(one, other, clients):
        return all(np.array_equal(one[client].delta, other[client].delta) for client in clients)

    first, second = played(engine, range(6)), played(engine, [9, 3, 8, 1, 5, 4, 0])
    narrow = JaxEngine(one, block=1)
    by_itself = played(narrow, [3, 4, 5])
    host = CLIENTS.examples(4)  # a failure among neighbours: rows of one client's own data
    broken = host._replace(x=np.full_like(host.x, np.nan))
    rows = np.arange(host.count, dtype=np.int32)
    broadcast = Broadcast(1, engine.initial_params, NOTHING, (), 0.1)
    pairs = [(client, CLIENTS.examples(client)) for client in (3, 5)]
    works = [client_round(engine, broadcast, 4, derive(0, 4), broken, rows, None)]
    works += [
        client_round(engine, broadcast, client, derive(0, client), own, np.arange(own.count, dtype=np.int32), None)
        for client, own in pairs
    ]
    failed, *neighbours = (found.content for found in play_together(engine, works))
    return {
        "same_bits_among_others": same(first, second, [1, 3, 4, 5]),
        "largest_difference_alone": max(float(np.abs(first[c].delta - by_itself[c].delta).max()) for c in by_itself),
        "failed": [failed.reason] if isinstance(failed, Failure) else [],
        "same_bits_beside_a_failure": all(
            np.array_equal(found.delta, first[client].delta)
            for found, (client, _) in zip(neighbours, pairs, strict=True)
        ),
        "model_is_as_built": all(
            np.array_equal(a, np.array(b)) for a, b in zip(before, engine.model.weights, strict=True)
        ),
        "tensorflow_is_imported": "tensorflow" in sys.modules,
        "programs": sum(key[0] == "train" and key[-1] for key in engine._programs.traces),
        "batch_size": BATCH,
    }


def summed():
    """A cohort whose deltas are added up on the device, and client by client, with one that fails and uneven ones."""
    clients = [CLIENTS.examples(number % len(SIZES)) for number in range(21)]
    clients[5] = clients[5]._replace(x=np.full_like(clients[5].x, np.nan))
    whole = Examples(*(np.concatenate([one[place] for one in clients]) for place in (0, 1)), None)
    lies_together = Partitioned(whole, by=Iid(), clients=21)

    def played(one, lanes):
        with contextlib.closing(Simulation(lanes)) as runtime:
            history = run(one, runtime)
        records = [(r.metrics, r.clients, r.failures, r.bytes_up, r.bytes_down) for r in history.rounds]
        return history.params.tobytes(), records

    found = {}
    for name, population in (("streamed", PerClient(clients)), ("resident", lies_together)):
        one = experiment(population=population, sampler=AllClients(), rounds=2, test=None)
        by_itself = played(dataclasses.replace(one, transforms=Clip(1e9)), 1)  # which changes nothing, and has to look
        found[name] = [played(one, lanes) == by_itself for lanes in (1, 2)]
        found[name + " failures"] = by_itself[1][0][2]
    return found


def resume():
    """A run in two parts, and in one."""
    from umbel.server.store import Store

    store = f"sqlite:///{FOLDER}/runs.db"
    with contextlib.closing(simulation()) as runtime:
        whole = run(experiment(), runtime)
    with contextlib.closing(simulation()) as runtime:
        run(experiment(rounds=2), runtime, store=store)
    with Store.open(store) as opened:
        stored = opened.load_run("latest")
    with contextlib.closing(simulation()) as runtime:
        resumed = run(experiment(), runtime, store=store, resume=stored.run)
    block = 3  # a cohort of 6, in two blocks side by side
    return {"same_bits": np.array_equal(resumed.params, whole.params), "choices": dict(stored.choices), "block": block}


class OldStyle(keras.Sequential):
    def train_step(self, data):
        return {}


def old_style():
    model = OldStyle([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    return model


def frozen_later():
    model = plain()
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False
    return model


def delta_sgd():
    from umbel.clients.optimizers import DeltaSGD

    model = plain()
    model.compile(DeltaSGD(), "mse")
    return model


def embedded():
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), layers.Embedding(5, 3), layers.Flatten(), layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Looking(keras.Model):
    """A model that shows no graph of layers."""

    def __init__(self):
        super().__init__()
        self.table, self.last = keras.layers.Embedding(5, 3, name="table"), keras.layers.Dense(3)

    def call(self, x):
        return self.last(self.table(x)[:, 0])


def looking():
    model = Looking()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def refusals():
    """What is not carried, and what is said."""
    text = PerClient([(np.array([["a"] * 6] * 4), np.zeros(4, np.int32))] * 2)
    x, y = examples(8)
    shifted = PerClient([(x, y), (x, y + 1)])
    words = PerClient(
        [(np.arange(8).reshape(4, 2) % 5, np.zeros(4, np.int32)), (np.full((4, 2), 5), np.zeros(4, np.int32))]
    )
    tries = {
        "label": (experiment(population=shifted, test=None, sampler=AllClients()), {}),
        "validation": (experiment(validation=shifted, sampler=AllClients()), {}),
        "row": (experiment(model=embedded, population=words, test=None, sampler=AllClients()), {}),
        "row of a subclass": (experiment(model=looking, population=words, test=None, sampler=AllClients()), {}),
        "split": (experiment(SplitFed("dense")), {}),
        "replicas": (experiment(), {"replicas": 2}),
        "graph": (experiment(), {"compile": "graph"}),
        "train_step": (experiment(model=old_style), {}),
        "devices": (experiment(), {"devices": ["CPU:0"]}),
        "frozen later": (experiment(model=frozen_later), {}),
        "text": (experiment(population=text, test=None, sampler=AllClients()), {}),
    }
    said = {}
    for name, (one, settings) in tries.items():
        try:
            run(dataclasses.replace(one, rounds=1), Simulation(1, **settings))
            said[name] = ""
        except UmbelError as error:
            said[name] = str(error)
    with contextlib.closing(simulation()) as runtime:
        history = run(dataclasses.replace(experiment(), rounds=1), runtime)
        calls = {
            "whole model": lambda: history.save(FOLDER / "model.keras"),
            "resumed": lambda: runtime.open(experiment(), {}, {"compile": "graph"}),  # as a run on TensorFlow has it
            "flower": lambda: require_tensorflow("Clients over Flower train"),
            "optimizer": delta_sgd,
        }
        for name, call in calls.items():
            try:
                call()
                said[name] = ""
            except UmbelError as error:
                said[name] = str(error)
    return said


def outputs():
    """What a client of 20 examples measures of a model with two outputs, and what `fit` logs from the same weights."""
    x, y = examples(20)
    targets = {"one": x[:, :1] + 5.0 * (np.arange(20)[:, None] > 15), "two": y}

    def make():
        keras.utils.set_random_seed(4)
        inputs = keras.Input((6,))
        one, two = keras.layers.Dense(1, name="one")(inputs), keras.layers.Dense(3, "softmax", name="two")(inputs)
        model = keras.Model(inputs, {"one": one, "two": two})
        losses = {"one": "mse", "two": "sparse_categorical_crossentropy"}
        model.compile("sgd", losses, metrics={"two": ["accuracy"]})
        return model

    simulation = Simulation(1)
    local = Local(batch_size=8, learning_rate=None, shuffle=False)
    small = experiment(
        model=make, population=PerClient([(x, targets)]), sampler=AllClients(), test=(x, targets), local=local, rounds=1
    )
    history = run(small, simulation)
    model = make()
    for weight, value in zip(model.weights, history.spec.unflatten(simulation.initial_params()).values(), strict=True):
        weight.assign(value)
    log = model.fit(x, targets, batch_size=8, shuffle=False, verbose=0).history
    told = model.evaluate(x, targets, batch_size=512, verbose=0, return_dict=True)
    expected = {f"train_{name}": values[-1] for name, values in log.items()}
    expected |= {f"test_{name}": value for name, value in told.items()}
    return {name: (history.rounds[0].metrics[name], value) for name, value in expected.items()}


found = {}
for case in sys.argv[2:]:
    result = globals()[case]()
    found |= result if case in ("default", "rest") else {case: result}
print(json.dumps(found))
