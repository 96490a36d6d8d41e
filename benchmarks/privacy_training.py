"""Costs of protection where clients train: whole simulated rounds, and DP-SGD's steps."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from umbel.benchmarks.contenders import workload
from umbel.benchmarks.privacy_rows import Row

CLIENTS, ROUNDS, PASSES = 100, 5, 3
# The most that a simulated round may take, in plain rounds, by mode and whether each client adds noise of its own.
MOST = {("arithmetic", False): 1.5, ("protocol", False): 4.0, ("arithmetic", True): 3.0, ("protocol", True): None}


def build_mlp() -> Any:
    """Build the benchmark's MLP, compiled."""
    import keras

    return workload.build(keras, "mlp")


def build_small_cnn() -> Any:
    """Build 5×5 convolutions of 16 and 32 filters, and a dense layer of 64: 49,386 parameters."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dense(10),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def simulation() -> Iterator[Row]:
    from umbel import Experiment, FedAvg, FixedCohort, Local, Simulation, run
    from umbel.data import Arrays, Iid, Partitioned
    from umbel.privacy import DistributedPlan, FixedCohortPlan, SecureSum, grid_limit
    from umbel.privacy.budget import step_of

    digits, limit = workload.load("mlp"), grid_limit(16.0)
    plain = Experiment(
        name="secure-sum",
        model=build_mlp,
        population=Partitioned(Arrays(digits.x, digits.y), by=Iid(), clients=CLIENTS),
        strategy=FedAvg(),
        sampler=FixedCohort(CLIENTS),
        local=Local(batch_size=workload.BATCH, learning_rate=workload.LEARNING_RATE),
        weighting="uniform",
        rounds=ROUNDS,
    )
    budget: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-3, "rounds": ROUNDS, "population": CLIENTS, "clip_norm": 1.0}
    hiding, silent = SecureSum(limit=1.0), SecureSum(limit=1.0, metrics=())
    central = FixedCohortPlan(cohort=CLIENTS, rounding=step_of(silent), **budget)
    spread = DistributedPlan(cohort=CLIENTS, survivors_floor=80, limit=limit, **budget)
    grid = SecureSum(limit=limit, metrics=(), minimum_clients=80)
    experiments = {
        "secure sum": dataclasses.replace(plain, secure_aggregation=hiding),
        "secure sum and central DP": dataclasses.replace(plain, sampler=None, plan=central, secure_aggregation=silent),
        "secure sum and distributed DP": dataclasses.replace(plain, sampler=None, plan=spread, secure_aggregation=grid),
    }
    kinds = {("plain", "arithmetic"): plain}
    kinds |= {(name, mode): one for name, one in experiments.items() for mode in ("arithmetic", "protocol")}
    seconds: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    for _ in range(PASSES):
        for (name, mode), experiment in kinds.items():
            history = run(experiment, Simulation(workers=2, compile="xla", aggregation=mode))  # type: ignore[arg-type]
            seconds[name, mode] += [record.seconds for record in history.rounds[2:]]
    base = statistics.median(seconds.pop(("plain", "arithmetic")))
    for (name, mode), own in seconds.items():
        title = f"A simulated round of {CLIENTS} clients of the MLP, {name}"
        how = " with the whole protocol" if mode == "protocol" else ""
        most = MOST[mode, "distributed" in name]
        yield Row(f"{title}{how}: time, of the plain round's", statistics.median(own) / base, most, "×")


def per_example() -> Iterator[Row]:
    from umbel.privacy.per_example import PerExample

    for name, build, shape, most in (
        ("MLP", build_mlp, (784,), 2.5),
        ("a small CNN", build_small_cnn, (28, 28, 1), 2.0),
    ):
        for batch, steps in ((256, 4), (32, 20)):
            ratio = best_ratio(build, shape, batch, steps, PerExample(clip_norm=1.0, noise_multiplier=1.1))
            yield Row(f"DP-SGD, {name}, batches of {batch}: a step's time, of a plain step's", ratio, most, "×")


def best_ratio(build: Any, shape: tuple[int, ...], batch: int, steps: int, privacy: Any) -> float:
    """Time a private client's round over a plain one's: each as it compiles best, the fastest of several, in turns."""
    from umbel import AllClients, Experiment, FedAvg, Local
    from umbel.clients.round import train_client
    from umbel.clients.tensorflow.engine import TensorFlowEngine
    from umbel.core.random import derive
    from umbel.core.types import NOTHING, Broadcast
    from umbel.data import PerClient

    generator, count = np.random.default_rng(0), batch * steps
    examples = generator.standard_normal((count, *shape), np.float32), generator.integers(0, 10, count, np.int32)
    plain = Experiment(
        name="dp-sgd",
        model=build,
        population=PerClient([examples]),
        strategy=FedAvg(),
        sampler=AllClients(),
        local=Local(batch_size=batch),
    )
    private = dataclasses.replace(plain, local=Local(batch_size=batch, per_example=privacy))
    workers = {
        (kind, xla): TensorFlowEngine(one, xla=xla)
        for kind, one in (("plain", plain), ("private", private))
        for xla in (False, True)
    }
    fastest: dict[tuple[str, bool], float] = dict.fromkeys(workers, np.inf)
    data, rows = plain.population.examples(0), np.arange(count, dtype=np.int32)
    for number in range(6):
        for kind, worker in workers.items():
            broadcast = Broadcast(1, worker.initial_params, NOTHING, (), 0.1)
            started = time.perf_counter()
            train_client(worker, broadcast, 0, derive(number), data, rows)
            if number:  # the first traces and compiles
                fastest[kind] = min(fastest[kind], time.perf_counter() - started)
    return min(fastest["private", False], fastest["private", True]) / min(
        fastest["plain", False], fastest["plain", True]
    )
