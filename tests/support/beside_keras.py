"""A table of what Umbel measures beside what Keras does: `python -m tests.support.beside_keras [KIND …]`.

Each row is a kind of model with the metrics that are for its targets, by the engine that ran it. One client that holds
650 examples is `fit` (batches of 64, the last smaller); 5,100 test examples are `evaluate(batch_size=512)`; the same
as five clients' held-out examples are `evaluate` of them all. A cell is "=" where all three are equal, or the sentence
that refuses it; anything else fails.

For the kinds of a sample there is "jax", in a process of its own, and "where": trained by three clients together, in
simulation ("three") and over Flower's nodes ("flower"); see `three_clients`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from umbel import AllClients, ConfigError, Experiment, FedAvg, Local, Simulation, data, run

from . import three_clients
from .kinds_tried import KINDS, Kind
from .metrics_tried import untried

TRAINED, BATCH, TESTED, HELD_OUT = 650, 64, 5100, 5
ENGINES: Mapping[str, Callable[[], Simulation]] = {
    "graph": lambda: Simulation(2, "graph"),
    "xla": lambda: Simulation(1, "xla"),
    "eager": lambda: Simulation(debug=True),
    "jax": lambda: Simulation(2),
}
OF_TENSORFLOW = ("graph", "xla", "eager")
# Kinds that are tried on JAX too. Keras's own `fit` fails there for a layer that measures.
ON_JAX = tuple(name for name in three_clients.SAMPLE if name != "a layer that measures")


class Cell(NamedTuple):
    """Verdict on one value of a kind of model."""

    kind: str
    metric: str
    column: str  # the engine, or where
    verdict: str  # "=", or why it is not equal

    @property
    def is_right(self) -> bool:
        """Return whether the value is equal, or refused with a sentence."""
        is_refused = self.verdict.startswith("refused: ") and "() failed" not in self.verdict  # a kind that is none
        return self.verdict == "=" or is_refused


def compared(name: str, kind: Kind, engine: str) -> Iterator[Cell]:
    """Yield the cells of one row."""

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return kind.build([maker() for maker in kind.metrics.values()])

    trained, tested = kind.examples(TRAINED, 0), kind.examples(TESTED, 1)
    shares = [slice(number, None, HELD_OUT) for number in range(HELD_OUT)]
    held_out = data.PerClient([keras.tree.map_structure(itemgetter(share), tested) for share in shares])
    experiment = Experiment(
        name="beside_keras", model=make, population=data.PerClient([trained]), strategy=FedAvg(), sampler=AllClients(),
        local=Local(epochs=1, batch_size=BATCH, learning_rate=None, shuffle=False), rounds=1, test=tested,
        validation=held_out,
    )  # fmt: skip
    try:
        simulation = ENGINES[engine]()
        history = run(experiment, simulation)
        start = list(history.spec.unflatten(simulation.initial_params()).values())
        simulation.close()
    except ConfigError as error:
        yield from refused(name, engine, error)
        return
    expected = {f"train_{one}": value for one, value in fitted(make(), start, trained).items()}
    told = evaluated(history.load_into(built(make(), tested)), tested)
    expected |= {f"{group}_{one}": value for group in ("test", "validation") for one, value in told.items()}
    yield from cells(name, engine, history.rounds[0].metrics, expected)


def cells(name: str, column: str, measured: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Cell]:
    """Yield the verdict on each value of a kind."""
    for metric in ["loss", *KINDS[name].more, *KINDS[name].metrics]:
        yield Cell(name, metric, column, difference(metric, measured, expected, KINDS[name]))


def refused(name: str, column: str, error: ConfigError) -> Iterator[Cell]:
    """Yield the cells of a kind that a column refuses."""
    for metric in ["loss", *KINDS[name].more, *KINDS[name].metrics]:
        yield Cell(name, metric, column, f"refused: {error}")


def where(names: Sequence[str]) -> Iterator[list[Cell]]:
    """Yield the rows of kinds that three clients train together, in simulation and then on three nodes."""
    expected = {}
    for name in names:
        try:
            measured, start = three_clients.in_simulation(name)
        except ConfigError as error:
            yield list(refused(name, "three", error))
            continue
        expected[name] = three_clients.expected(name, start)
        yield list(cells(name, "three", measured, expected[name]))
    for name, found in three_clients.over_nodes(names):
        if isinstance(found, ConfigError):
            yield list(refused(name, "flower", found))
        else:
            yield list(cells(name, "flower", found, expected.get(name, {})))


def built(model: keras.Model, examples: tuple) -> keras.Model:
    """Return model once its variables are made."""
    model(examples[0][:1])
    return model


def fitted(model: keras.Model, start: list, examples: tuple) -> dict[str, Any]:
    """Return what `fit` logs of one epoch from the same weights."""
    for weight, value in zip(built(model, examples).weights, start, strict=True):
        weight.assign(value)
    model.optimizer.build(model.trainable_variables)  # Keras's graphs would begin some of its variables at zeros
    x, y, *weight = examples
    log = model.fit(x, y, sample_weight=weight[0] if weight else None, batch_size=BATCH, shuffle=False, verbose=0)
    return {name: values[-1] for name, values in log.history.items()}


def evaluated(model: keras.Model, examples: tuple) -> dict[str, Any]:
    """Return what `evaluate` says of all examples."""
    x, y, *weight = examples
    weights = weight[0] if weight else None
    return model.evaluate(x, y, sample_weight=weights, batch_size=512, verbose=0, return_dict=True)


DICT = {"in_dict": ("predicted_mean", "predicted_variance")}


def difference(metric: str, measured: Mapping[str, Any], expected: Mapping[str, Any], kind: Kind) -> str:
    """Say where a metric's values are not those of Keras; "=" where they all are."""
    for group in ("train", "test", "validation"):
        if (group == "validation" and metric in kind.by_batch) or (group == "train" and kind.is_random):
            continue
        for name in DICT.get(metric, (metric,)):
            full = f"{group}_{name}"
            if full not in measured:
                return f"{full} is missing"
            ours, theirs = np.asarray(measured[full], float), np.asarray(expected[full], float)
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=5e-4, atol=1e-4, equal_nan=True):
                return f"{full}: {ours} for {theirs}"
    return "="


def rows(names: Sequence[str], columns: Sequence[str]) -> Iterator[list[Cell]]:
    """Yield the rows of the table that this process can make."""
    for name in names:
        for column in columns:
            yield list(compared(name, KINDS[name], column))
    if columns == OF_TENSORFLOW:
        yield from where([name for name in names if name in three_clients.SAMPLE])


def shown(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Print rows as they are made; return what is wrong."""
    wrong, began = [], time.perf_counter()
    for row in rows(names, columns):
        seconds, began = time.perf_counter() - began, time.perf_counter()
        equal = sum(cell.verdict == "=" for cell in row)
        print(f"{row[0].kind:22} {row[0].column:6} {equal:3} of {len(row)} equal  {seconds:5.1f} s", flush=True)
        for verdict in dict.fromkeys(cell.verdict for cell in row if cell.verdict != "="):
            about = ", ".join(cell.metric for cell in row if cell.verdict == verdict)
            print(f"    {about}: {verdict}", flush=True)
        wrong += [f"{cell.kind}, {cell.column}: {cell.metric}" for cell in row if not cell.is_right]
    return wrong


def main(chosen: list[str]) -> int:
    """Print the table; return 1 where a cell is wrong."""
    names = chosen or list(KINDS)
    if keras.backend.backend() == "jax":
        wrong = shown(names, ("jax",))
    else:
        wrong = [f"keras.metrics.{name} is not tried" for name in sorted(untried())] + shown(names, OF_TENSORFLOW)
        if on_jax := [name for name in names if name in ON_JAX]:
            command = [sys.executable, "-m", "tests.support.beside_keras", *on_jax]
            done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, check=False)
            wrong += ["jax"] if done.returncode else []
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
