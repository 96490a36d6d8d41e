"""Kinds of models trained by three clients together, in simulation and on three real nodes, beside what Keras does.

Keras trains each client's examples from the same weights with one model whose metrics run on, so that what it logs last
is of all three; the mean of the three models is then evaluated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import keras
import numpy as np

from umbel import AllClients, ConfigError, Experiment, FedAvg, Local, Simulation, data, run
from umbel.server.events import RoundDone

from .kinds_tried import KINDS

BATCH, TESTED = 64, 5100
SIZES = (300, 250, 100)  # numbers of examples of the three, the last batch of each smaller than the others
SAMPLE = (
    *("binary", "one-hot classes", "labels of classes", "numbers", "numbers, weighted", "own steps", "masked tokens"),
    *(
        "two outputs",
        "a layer that measures",
        "with BatchNorm",
        "with LSTM",
        "trained by adam",
        "trained by an average",
    ),
)


class NamedKind:
    """A builder of the model of a kind, the same weights every time."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self) -> keras.Model:
        keras.utils.set_random_seed(3)
        return KINDS[self.name].build([maker() for maker in KINDS[self.name].metrics.values()])


def taken(examples: tuple, rows: slice) -> tuple:
    """Return some rows of examples."""
    return keras.tree.map_structure(itemgetter(rows), examples)


def shares(name: str) -> tuple[list[tuple], tuple, list[tuple]]:
    """Return what the three train on, what is tested, and what each holds out."""
    kind, ends = KINDS[name], np.cumsum(SIZES)
    trained, tested = kind.examples(sum(SIZES), 0), kind.examples(TESTED, 1)
    clients = [taken(trained, slice(end - size, end)) for size, end in zip(SIZES, ends, strict=True)]
    return clients, tested, [taken(tested, slice(number, None, len(SIZES))) for number in range(len(SIZES))]


def federated(name: str) -> Experiment:
    """Make the experiment of a kind."""
    clients, tested, held_out = shares(name)
    return Experiment(
        name="three_clients", model=NamedKind(name), population=data.PerClient(clients), strategy=FedAvg(),
        sampler=AllClients(), local=Local(epochs=1, batch_size=BATCH, learning_rate=None, shuffle=False), rounds=1,
        test=tested, validation=data.PerClient(held_out),
    )  # fmt: skip


def expected(name: str, start: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return what Keras says, by Umbel's names. start: the initial weights."""
    clients, tested, _ = shares(name)
    model = NamedKind(name)()
    model(taken(tested[:1], slice(0, 1))[0])
    for weight, value in zip(model.weights, start, strict=True):
        weight.assign(value)
    log, after = fitted_by_each(model, clients)
    for weight, values in zip(model.weights, zip(*after, strict=True), strict=True):
        weight.assign(np.average(values, axis=0, weights=SIZES))
    del model.reset_metrics
    told = model.evaluate(*tested[:2], sample_weight=weights_of(tested), batch_size=512, verbose=0, return_dict=True)
    values = {f"train_{one}": value for one, value in log.items()}
    return values | {f"{group}_{one}": value for group in ("test", "validation") for one, value in told.items()}


def fitted_by_each(model: keras.Model, clients: Sequence[tuple]) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Fit the model to each client's examples from its present weights; return its log of all, and weights of each."""
    model.optimizer.build(model.trainable_variables)
    held = [*model.weights, *model.optimizer.variables]
    start, after, log = [np.array(one) for one in held], [], {}
    model.reset_metrics = lambda: None  # they run on from one client to the next
    for client in clients:
        for variable, value in zip(held, start, strict=True):
            variable.assign(value)
        fitted = model.fit(
            *client[:2], sample_weight=weights_of(client), batch_size=BATCH, shuffle=False, verbose=0
        ).history
        log = {name: values[-1] for name, values in fitted.items()}
        after.append([np.array(weight) for weight in model.weights])
    return log, after


def weights_of(examples: tuple) -> np.ndarray | None:
    """Return the weights of examples that have some."""
    return examples[2] if len(examples) > 2 else None


def in_simulation(name: str) -> tuple[Mapping[str, Any], list[np.ndarray]]:
    """Return what a kind measured in this process, and the weights that it began with. Errors: ConfigError."""
    simulation = Simulation(2, "graph")
    history = run(federated(name), simulation, progress=False)
    start = list(history.spec.unflatten(simulation.initial_params()).values())
    simulation.close()
    return history.rounds[0].metrics, start


def over_nodes(names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any] | ConfigError]]:
    """Yield what each kind measured on three nodes, one federation for all of them, or why it was refused."""
    if not names:
        return
    from umbel.runtimes.flower.local import LocalFederation

    tests = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder, LocalFederation(len(SIZES), memory=folder) as federation:
        for number, name in enumerate(names):
            path = Path(folder, f"kind_{number}.py")
            path.write_text(
                f"import sys\n\nsys.path.insert(0, {str(tests)!r})\n"
                f"from support.three_clients import federated\n\nexperiment = federated({name!r})\n"
            )
            try:
                (record,) = (one.record for one in federation.submit(str(path)) if isinstance(one, RoundDone))
                yield name, record.metrics
            except ConfigError as error:
                yield name, error
