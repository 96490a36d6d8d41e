"""A million clients on one machine: does a round cost what its cohort costs, and does memory stay flat?

    python benchmarks/scale.py [--clients 1000000] [--cohort 1000] [--rounds 60] [--scaffold] [--json]

Each client owns 10 of 100,000 resident rows (64 features, 10 classes). A client is what it is in any population of
Umbel, an offset into an array of row numbers: a million of them are two arrays of 48 MB, and the rows are 26 MB. Rows
are shared between clients; ten million distinct ones would be 2.6 GB of numbers, and a round would do the same work.

--scaffold: every client that takes part keeps its control variate, as many numbers as the model, in a store on disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from umbel import Examples, Experiment, FedAvg, FixedCohort, Local, Scaffold, Simulation, derive, run

ROWS, FEATURES, CLASSES = 100_000, 64, 10
EXAMPLES = 10
SETTLED = 5  # number of the round from which memory must not grow


@dataclass(frozen=True, eq=False)
class Crowd:
    """A population: client k owns rows[offsets[k]:offsets[k + 1]] of one resident data set."""

    data: Examples
    offsets: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    def resident(self) -> Examples:
        return self.data

    def indices(self, client: int) -> np.ndarray:
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    def examples(self, client: int) -> Examples:
        return self.data.take(self.indices(client))


@dataclass(frozen=True)
class MemoryWatch:
    """Resident memory of this process after each round, in MiB."""

    resident: list[float]

    def on_start(self, experiment: Experiment, runtime: Any, run: str | None, records: Sequence[Any]) -> None: ...

    def on_round(self, record: Any, failures: Sequence[Any]) -> None:
        self.resident.append(memory("VmRSS"))

    def on_end(self, history: Any) -> None: ...


def memory(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process, MiB. Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def crowd(clients: int) -> Crowd:
    """Draw ten classes around ten centres; every client draws its rows at random."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, ROWS)
    centres = generator.standard_normal((CLASSES, FEATURES), np.float32)
    features = centres[labels] + 2 * generator.standard_normal((ROWS, FEATURES), np.float32)
    offsets = np.arange(clients + 1, dtype=np.int64) * EXAMPLES
    rows = generator.integers(0, ROWS, clients * EXAMPLES, dtype=np.int32)
    return Crowd(Examples(features, labels.astype(np.int32)), offsets, rows)


def build() -> Any:
    """Build a digits-sized MLP: 64-32-10."""
    import keras

    model = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(CLASSES)]
    )
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def measure(clients: int, cohort: int, rounds: int, scaffold: bool = False) -> dict[str, Any]:
    """Play the rounds; return seconds per round (the first left out), memory and the training loss, first and last.

    scaffold: with its strategy, a store on disk, and what the store came to.
    """
    began = time.perf_counter()
    population = crowd(clients)
    experiment = Experiment(
        name="scale",
        model=build,
        population=population,
        strategy=Scaffold() if scaffold else FedAvg(),
        weighting="uniform" if scaffold else "examples",
        sampler=FixedCohort(cohort),
        local=Local(epochs=1, batch_size=EXAMPLES, learning_rate=0.1),
        rounds=rounds,
    )
    prepared = time.perf_counter() - began
    watch = MemoryWatch([])
    simulation = Simulation(workers=2)
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/runs.db" if scaffold else None
        history = run(experiment, simulation, store=store, watchers=[watch])
        disk = sum(file.stat().st_size for file in Path(folder).iterdir())
    seconds = [record.seconds for record in history.rounds[1:]]
    losses = history.column("train_loss")
    return {
        "clients": clients,
        "cohort": cohort,
        "rounds": rounds,
        "compile": simulation.describe().get("compile", "XLA, Keras on JAX"),
        "prepare_seconds": prepared,
        "first_round_seconds": history.rounds[0].seconds,
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "peak_mib": memory("VmHWM"),
        "growth_mib": watch.resident[-1] - watch.resident[SETTLED - 1],
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "disk_mib": disk / 2**20,
        "kept_mib": len(seen(experiment)) * history.params.nbytes / 2**20 if scaffold else 0.0,
    }


def seen(experiment: Experiment) -> set[int]:
    """Return the clients that took part."""
    clients, found = range(len(experiment.population)), set[int]()
    for number in range(1, experiment.rounds + 1):
        key = derive(experiment.seed, "round", number).derive("cohort")
        found.update(experiment.sampler.sample(clients, experiment.population.sizes, key))
    return found


def table(result: dict[str, Any]) -> Table:
    """Return the result as a table for the terminal."""
    shown = Table(title=f"{result['clients']:,} clients, {result['cohort']:,} a round, {result['rounds']} rounds")
    shown.add_column("measured")
    shown.add_column("", justify="right")
    for name, text in describe(result):
        shown.add_row(name, text)
    return shown


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """List (what, how much) of a result."""
    return [
        ("seconds per round", f"{result['seconds']:.3f} ({result['fastest']:.3f}–{result['slowest']:.3f})"),
        ("per client", f"{1e3 * result['seconds'] / result['cohort']:.2f} ms"),
        ("peak memory", f"{result['peak_mib']:.0f} MiB"),
        (f"memory, round {SETTLED} to the last", f"{result['growth_mib']:+.1f} MiB"),
        ("training loss, first round to last", f"{result['first_loss']:.3f} → {result['last_loss']:.3f}"),
        ("compiled as", result["compile"]),
    ] + [("on disk, of which clients' own numbers", f"{result['disk_mib']:.0f} MiB, {result['kept_mib']:.0f} MiB")] * (
        result["disk_mib"] > 0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A million clients on one machine.")
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--scaffold", action="store_true", help="clients remember a model each, on disk")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    options = parser.parse_args()
    if options.rounds <= SETTLED:
        parser.error(f"expected --rounds {options.rounds} > {SETTLED}")
    result = measure(options.clients, options.cohort, options.rounds, options.scaffold)
    Console(file=sys.stderr if options.json else sys.stdout).print(table(result))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
