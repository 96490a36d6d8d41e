"""Umbel: the experiment as a user writes it, `compile="auto"`.

A run of a thousand rounds is asked for, so that `auto` judges as it would for real training, and stopped after the few
that are timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import workload

from umbel import Experiment, FedAvg, FixedCohort, Local, Simulation, run
from umbel.data import Arrays, Iid, Partitioned

LONG = 1000
WORKERS = 2


def build(name: str) -> Any:
    """Build a compiled Keras model."""
    import keras

    return workload.build(keras, name)


@dataclass(frozen=True)
class StopAfter:
    """A callback that ends the run after some rounds."""

    rounds: int

    def decide(self, records: Sequence[Any]) -> str | None:
        return f"{self.rounds} rounds are timed" if len(records) == self.rounds else None

    def best_round(self, records: Sequence[Any]) -> None:
        """Return None: the last round."""


@dataclass(frozen=True)
class Reporter:
    """A watcher that reports all rounds but the last, whose accuracy is not known yet."""

    rounds: int

    def on_start(self, experiment: Experiment, runtime: Any, run: str | None, records: Sequence[Any]) -> None: ...

    def on_round(self, record: Any, failures: Sequence[Any]) -> None:
        if record.round < self.rounds:
            workload.report(record.round, record.seconds)

    def on_end(self, history: Any) -> None: ...


def main(runtime: Any) -> None:
    options = workload.arguments()
    digits = workload.load(options.model)
    experiment = Experiment(
        name="benchmark",
        model=partial(build, options.model),
        population=Partitioned(Arrays(digits.x, digits.y), by=Iid(), clients=workload.CLIENTS),
        strategy=FedAvg(),
        sampler=FixedCohort(workload.COHORT),
        local=Local(epochs=1, batch_size=workload.BATCH, learning_rate=workload.LEARNING_RATE),
        rounds=LONG,
        evaluate_every=LONG,
        callbacks=(StopAfter(options.rounds),),
    )
    history = run(experiment, runtime, watchers=[Reporter(options.rounds)])
    model = build(options.model)
    model.set_weights(list(history.spec.unflatten(history.params).values()))
    last = history.rounds[-1]
    chosen = runtime.describe()
    note = f"auto: {chosen['compile']}" if "compile" in chosen else f"blocks of {chosen['block']}"
    workload.report(last.round, last.seconds, workload.accuracy(model.predict_on_batch, digits), note)


if __name__ == "__main__":
    main(Simulation(workers=WORKERS))
