"""Cost of algorithms: the processor time of a simulated round, over FedAvg's.

    python -m umbel.benchmarks.algorithms [--compile graph] [--only DeltaSGD,Scaffold]    # mnist.npz in $UMBEL_DATA

McMahan et al. 2017's 2NN on MNIST, ten clients of 600 images in a round, one epoch in batches of 10. What is compared
takes turns; numbers are medians over a run's rounds, the smallest of three runs. Server and clients both count.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from umbel import Experiment, FedAvg, Local, Simulation, run
from umbel.experiments import mnist_2nn, strategies_compared
from umbel.strategies import FedAdagrad, FedAdam, FedAvgM, FedDyn, FedNova, FedProx, FedYogi, Scaffold

ROUNDS, SETTLED, PASSES = 15, 5, 3
STRATEGIES: Mapping[str, Any] = {
    "FedAvg": FedAvg(),
    "FedAvgM": FedAvgM(server_lr=0.3, momentum=0.9),
    "FedAdagrad": FedAdagrad(server_lr=0.01),
    "FedAdam": FedAdam(server_lr=0.01),
    "FedYogi": FedYogi(server_lr=0.01),
    "FedNova": FedNova(),
    "FedProx": FedProx(mu=0.01),
    "Scaffold": Scaffold(),
    "FedDyn": FedDyn(alpha=0.01),
    "DeltaSGD": FedAvg(),
}


@dataclass(frozen=True)
class Clock:
    """Processor time of this process at the start and after each round, seconds."""

    readings: list[float] = field(default_factory=list)

    def on_start(self, experiment: Experiment, runtime: Any, run: str | None, records: Sequence[Any]) -> None:
        self.readings.append(time.process_time())

    def on_round(self, record: Any, failures: Sequence[Any]) -> None:
        self.readings.append(time.process_time())

    def on_end(self, history: Any) -> None: ...

    def per_round(self) -> float:
        """Return the median time of a round, without the first rounds, which compile."""
        rounds = [after - before for before, after in zip(self.readings, self.readings[1:], strict=False)]
        return statistics.median(rounds[SETTLED:])


def experiment_of(name: str) -> Experiment:
    """Return the 2NN's federation, with the strategy of that name."""
    model = strategies_compared.delta_sgd if name == "DeltaSGD" else mnist_2nn.experiment.model
    local = Local(epochs=1, batch_size=10, learning_rate=0.05)
    changes = {"strategy": STRATEGIES[name], "model": model, "local": local, "weighting": "uniform"}
    return dataclasses.replace(mnist_2nn.experiment, **changes, rounds=ROUNDS, test=None)


def seconds(names: Sequence[str], how: Any, passes: int = PASSES) -> dict[str, float]:
    """Measure the processor time of a round of each."""
    least = dict.fromkeys(names, float("inf"))
    for _ in range(passes):
        for name in names:
            clock = Clock()
            run(experiment_of(name), Simulation(compile=how), watchers=[clock])
            least[name] = min(least[name], clock.per_round())
    return least


def main() -> int:
    """Measure and print; return 0 when all was measured."""
    parser = argparse.ArgumentParser(description="What algorithms cost, over FedAvg.")
    parser.add_argument("--compile", choices=("xla", "graph"), default="xla")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(STRATEGIES)}")
    parser.add_argument("--passes", type=int, default=PASSES, help="runs of each")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(STRATEGIES)
    if unknown := {*chosen} - {*STRATEGIES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    found = seconds(list(dict.fromkeys(["FedAvg", *chosen])), options.compile, options.passes)
    shown = Table("algorithm", "ms", "× FedAvg", title=f"Processor time of a round, {options.compile}")
    for name, spent in found.items():
        shown.add_row(name, f"{1e3 * spent:.0f}", f"{spent / found['FedAvg']:.2f}")
    Console().print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
