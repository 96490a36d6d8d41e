"""Time of a round on either engine: `python benchmarks/engines.py tensorflow|jax [EXAMPLES]`.

1,000 clients of EXAMPLES digits each (10), batches of 10, an MLP 64-32-10. Play both in turn, and compare ratios alone.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time

CLIENTS, ROUNDS, WARM = 1_000, 8, 2


def main(backend: str, examples: int = 10) -> None:
    """Print the median round, after WARM rounds, and the time from the start to the end of round 1."""
    os.environ["KERAS_BACKEND"] = backend
    started = time.process_time()
    import keras
    import numpy as np

    from umbel import AllClients, Experiment, FedAvg, Local, Simulation, server
    from umbel.data import Iid, Partitioned

    def model() -> keras.Model:
        made = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
        made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        return made

    generator = np.random.default_rng(0)
    x = generator.random((CLIENTS * examples, 64), np.float32)
    y = generator.integers(0, 10, len(x), np.int32)
    experiment = Experiment(
        name="engines",
        model=model,
        population=Partitioned((x, y), by=Iid(), clients=CLIENTS),
        strategy=FedAvg(),
        sampler=AllClients(),
        local=Local(batch_size=10, learning_rate=0.1),
        rounds=ROUNDS,
    )
    cpu, wall = [started], []
    for event in server.play(experiment, Simulation()):
        if isinstance(event, server.RoundDone):
            cpu.append(time.process_time())
            wall.append(event.record.seconds)
    rounds = [after - before for before, after in itertools.pairwise(cpu)]
    busy, seconds = (1000 * statistics.median(times[WARM:]) for times in (rounds, wall))
    print(
        f"{backend}: {CLIENTS} clients × {examples}: {busy:.0f} ms of processor time a round, {seconds:.0f} ms; to the "
        f"end of round 1: {rounds[0]:.1f} s of processor time, imports included"
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
