"""A cluster of this machine against one process: the same rounds by turns, on an idle machine.

    python -m umbel.benchmarks.cluster [--models digits,2nn] [--rounds 12] [--workers 2] [--nodes 0] [--json]

Both play the same experiment, a round of one after a round of the other, so that whatever else the machine does meets
both. The ratio of each pair is taken, and of the ratios median and quartiles; the first rounds, which compile, are left
out. Both end with the same bits, or the benchmark fails. --nodes: so many raylets beside a head, in place of one.

Beyond the processors of one machine nothing is measured here: docs/ray.md has the arithmetic of bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from umbel import Experiment, FedAvg, FixedCohort, Local, Ray, Simulation, data
from umbel.benchmarks.scale import crowd
from umbel.core.runtime import Runtime
from umbel.server import Finished, RoundDone, play

WARM_UP = 2  # number of rounds left out
CLASSES = 10


class Paired(NamedTuple):
    """One experiment on both, by turns."""

    model: str
    numbers: int  # numbers that travel
    cohort: int
    here: float  # seconds of a round in one process, median
    there: float  # seconds of a round on the cluster, median
    low: float  # quartiles of the ratios, cluster to process
    ratio: float
    high: float
    opening_here: float  # seconds until the first round is done
    opening_there: float
    bytes_to_driver: float  # bytes of a round
    bytes_of_updates: float  # bytes of all updates of a round

    @property
    def saved(self) -> float:
        """Factor by which fewer bytes reach the driver than clients send."""
        return self.bytes_of_updates / max(self.bytes_to_driver, 1)


@dataclass(frozen=True)
class Workload:
    """A model, its clients and a cohort."""

    build: Callable[[], Any]
    clients: int
    cohort: int
    examples: int  # number of examples of a client
    shape: tuple[int, ...]  # shape of one example
    batch: int = 10


def dense(features: int, *hidden: int) -> Any:
    """Build a compiled MLP."""
    import keras

    layers = [keras.layers.Dense(width, activation="relu") for width in hidden]
    return compiled(keras.Sequential([keras.Input((features,)), *layers, keras.layers.Dense(CLASSES)]))


def digits() -> Any:
    """Build the MLP of digits_fedavg: 4,810 numbers."""
    return dense(64, 64)


def two_nn() -> Any:
    """Build the 2NN of McMahan et al. 2017: 199,210 numbers."""
    return dense(784, 200, 200)


def large() -> Any:
    """Build an MLP of 25 million numbers: 100 MB."""
    return dense(784, 4700, 4500)


def cnn() -> Any:
    """Build the CNN of McMahan et al. 2017: 1,663,370 numbers."""
    import keras

    layers: list[Any] = [keras.Input((28, 28, 1))]
    for filters in (32, 64):
        layers += [keras.layers.Conv2D(filters, 5, padding="same", activation="relu"), keras.layers.MaxPooling2D()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(512, activation="relu"), keras.layers.Dense(CLASSES)]
    return compiled(keras.Sequential(layers))


def compiled(model: Any) -> Any:
    """Return a model, compiled as all of them are."""
    import keras

    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


WORKLOADS = {
    "digits": Workload(digits, 2_000, 1_000, 20, (64,)),
    "2nn": Workload(two_nn, 2_000, 1_000, 30, (784,)),
    "2nn_100": Workload(two_nn, 2_000, 100, 30, (784,)),
    "cnn": Workload(cnn, 256, 64, 100, (28, 28, 1)),
    "large": Workload(large, 128, 64, 20, (784,), batch=20),
}


def experiment(name: str, rounds: int) -> Experiment:
    """Return an experiment of that name; "crowd" is of a million clients."""
    settings: dict[str, Any] = {"name": name, "strategy": FedAvg(), "rounds": rounds}
    if name == "crowd":
        from umbel.benchmarks.scale import build

        local = Local(epochs=1, batch_size=10, learning_rate=0.1)
        return Experiment(model=build, population=crowd(1_000_000), sampler=FixedCohort(1_000), local=local, **settings)
    load = WORKLOADS[name]
    generator, count = np.random.default_rng(0), load.clients * load.examples
    x = generator.standard_normal((min(count, 20_000), *load.shape), np.float32)
    y = generator.integers(0, CLASSES, len(x)).astype(np.int32)
    rows = np.arange(count) % len(x)
    examples = data.Arrays(x[rows], y[rows]) if count > len(x) else data.Arrays(x, y)
    return Experiment(
        model=load.build,
        population=data.Partitioned(examples, by=data.Iid(), clients=load.clients),
        sampler=FixedCohort(load.cohort),
        local=Local(epochs=1, batch_size=load.batch, learning_rate=0.05),
        **settings,
    )


def paired(asked: Experiment, here: Runtime, there: Runtime, fetched: Callable[[], int] = lambda: 0) -> Paired:
    """Play an experiment on two runtimes, a round of one after a round of the other.

    fetched: bytes that have reached the driver of the second so far. Errors: AssertionError where the bits differ.
    """
    streams = [play(asked, runtime) for runtime in (here, there)]
    seconds: list[list[float]] = [[], []]
    opening = [0.0, 0.0]
    digests: list[str] = []
    sizes: list[int] = []
    bytes_up = bytes_before = 0
    for _ in range(asked.rounds):
        for place, stream in enumerate(streams):
            began = time.perf_counter()
            record = next(event for event in stream if isinstance(event, RoundDone)).record
            seconds[place].append(record.seconds)
            opening[place] = opening[place] or time.perf_counter() - began
            bytes_up = record.bytes_up or 0
        if len(seconds[0]) == WARM_UP:
            bytes_before = fetched()
    for stream in streams:
        history = next(event for event in stream if isinstance(event, Finished)).history
        digests.append(history.params_sha256)
        sizes.append(history.spec.size)
    assert digests[0] == digests[1], f"{asked.name}: the cluster's bits are not those of one process"
    own, others = (times[WARM_UP:] for times in seconds)
    ratios = [there / here for here, there in zip(own, others, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    to_driver = (fetched() - bytes_before) / len(ratios)
    cohort = asked.resolved.sampler.expected_cohort(len(asked.population))
    middle = statistics.median
    return Paired(
        asked.name,
        sizes[0],
        round(cohort),
        middle(own),
        middle(others),
        low,
        ratio,
        high,
        *opening,
        to_driver,
        bytes_up,
    )


@contextlib.contextmanager
def raylets(nodes: int, workers: int) -> Iterator[str | None]:
    """Yield the address of a cluster of several raylets on this machine; None for none."""
    if not nodes:
        yield None
        return
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="umbel-bench-", dir="/tmp") as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder})
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=max(1, workers // nodes))
            cluster.wait_for_nodes()
            yield cluster.address
        finally:
            cluster.shutdown()


def measure(names: list[str], rounds: int, workers: int, nodes: int) -> Iterator[Paired]:
    """Yield a row for each model."""
    with raylets(nodes, workers) as address:
        for name in names:
            with (
                contextlib.closing(Simulation(workers, "graph")) as here,
                contextlib.closing(Ray(address, workers=workers, compile="graph")) as there,
            ):
                yield paired(experiment(name, rounds), here, there, lambda there=there: there.figures["bytes"])


def table(rows: list[Paired]) -> Table:
    """Lay the rows out as a table."""
    made = Table(
        "model", "numbers", "cohort", "s, here", "s, cluster", "ratio", "quartiles", "MB to driver", "fewer", "opening"
    )
    for row in rows:
        made.add_row(
            row.model,
            f"{row.numbers:,}",
            f"{row.cohort:,}",
            f"{row.here:.3f}",
            f"{row.there:.3f}",
            f"{row.ratio:.2f}",
            f"{row.low:.2f}–{row.high:.2f}",
            f"{row.bytes_to_driver / 1e6:.1f}",
            f"{row.saved:.0f}×",
            f"{row.opening_here:.1f} s, {row.opening_there:.1f} s",
        )
    return made


def main() -> None:
    """Measure, and print a table or a JSON object for each row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", default="digits,2nn,cnn,large,crowd", help="names, with commas between them")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=0, help="raylets beside a head; 0: one raylet for all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for row in measure(options.models.split(","), options.rounds, options.workers, options.nodes):
        rows.append(row)
        if options.json:
            print(json.dumps(row._asdict()), flush=True)
        else:
            print(f"{row.model}: {row.ratio:.2f}", file=sys.stderr, flush=True)
    if not options.json:
        Console(width=140).print(table(rows))


if __name__ == "__main__":
    main()
