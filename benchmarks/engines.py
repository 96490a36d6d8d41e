"""Umbel's two engines on the same work, by turns: seconds and processor time of a round, and of the start.

    python benchmarks/engines.py [--works digits10,lstm] [--passes 2] [--rounds 10] [--json]        at most six minutes

`make bench` plays it too. Each run is a process of its own; the second pass goes through them backwards. Beside both
lies a bare loop over vmapped steps, JAX by hand, for the work that it can play; and a million clients, of which a
thousand take part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
WARM = 2  # rounds left out: compiling, and what is laid out once
ENGINES, BARE = ("tensorflow", "jax"), "bare"


class Work(NamedTuple):
    """A federation to play: clients, each with some examples, all in every round."""

    model: str  # name of a function below
    clients: int
    examples: int
    batch: int
    target: float  # how many times JAX's seconds a round is to take TensorFlow
    is_bare: bool = False  # whether a bare loop plays it as well


WORKS: Mapping[str, Work] = {
    "digits10": Work("digits", 1_000, 10, 10, 6.0, True),
    "digits50": Work("digits", 1_000, 50, 10, 5.0, True),
    "2nn": Work("two_layers", 10, 600, 32, 0.9),
    "lstm": Work("lstm", 10, 40, 10, 1.5),
    "transformer": Work("transformer", 10, 40, 10, 1.0),
}
MILLION = "million"
Results = dict[tuple[str, str], list[dict[str, float]]]  # what was measured in each pass, by engine and work


def digits(keras: Any) -> Any:
    """Make an MLP 64-32-10."""
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])


def two_layers(keras: Any) -> Any:
    """Make an MLP 784-200-200-10."""
    hidden = [keras.layers.Dense(200, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])


def lstm(keras: Any) -> Any:
    """Make an LSTM of 64 over 32 letters."""
    layers = [keras.layers.Embedding(80, 8), keras.layers.LSTM(64), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((32,), dtype="int32"), *layers])


def transformer(keras: Any) -> Any:
    """Make one block of attention of width 64 over 32 letters."""
    layers = keras.layers
    letters = keras.Input((32,), dtype="int32")
    x = layers.Embedding(80, 64)(letters)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 16)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(64)(layers.Dense(128, "relu")(x)))
    return keras.Model(letters, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


MODELS: Mapping[str, Callable[[Any], Any]] = {
    "digits": digits, "two_layers": two_layers, "lstm": lstm, "transformer": transformer,
}  # fmt: skip


def examples(work: Work) -> tuple[Any, Any]:
    """Draw the examples of all clients."""
    import numpy as np

    generator, count = np.random.default_rng(0), work.clients * work.examples
    shape = {"digits": (64,), "two_layers": (784,)}.get(work.model, (32,))
    is_text = work.model in ("lstm", "transformer")
    x = (
        generator.integers(0, 80, (count, *shape), np.int32)
        if is_text
        else generator.random((count, *shape), np.float32)
    )
    return x, generator.integers(0, 10, count, np.int32)


def play(work: Work, rounds: int) -> dict[str, float]:
    """Play rounds on the engine of this process's Keras."""
    import keras

    from umbel import AllClients, Experiment, FedAvg, Local, Simulation, server
    from umbel.data import Iid, Partitioned

    def model() -> Any:
        made = MODELS[work.model](keras)
        made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        return made

    experiment = Experiment(
        name="engines",
        model=model,
        population=Partitioned(examples(work), by=Iid(), clients=work.clients),
        strategy=FedAvg(),
        sampler=AllClients(),
        local=Local(batch_size=work.batch, learning_rate=0.1),
        rounds=rounds,
    )
    cpu, wall = [0.0], []
    for event in server.play(experiment, Simulation()):
        if isinstance(event, server.RoundDone):
            cpu.append(time.process_time())
            wall.append(event.record.seconds)
    return measured([after - before for before, after in itertools.pairwise(cpu)], wall)


def play_bare(work: Work, rounds: int) -> dict[str, float]:
    """Play the same rounds by hand: SGD of the digits' MLP, a hundred clients a call, each step one call."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    x, y = (jnp.asarray(array) for array in examples(work))
    generator = np.random.default_rng(1)
    weights = [generator.normal(0, 0.1, shape).astype(np.float32) for shape in ((64, 32), (32,), (32, 10), (10,))]

    def loss(weights: Sequence[Any], x: Any, y: Any) -> Any:
        first, bias, second, last = weights
        logits = jax.nn.relu(x @ first + bias) @ second + last
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean()

    def step(weights: Sequence[Any], rows: Any) -> list[Any]:
        gradients = jax.grad(loss)(weights, x[rows], y[rows])
        return [weight - 0.1 * gradient for weight, gradient in zip(weights, gradients, strict=True)]

    width, own = 100, np.arange(work.clients * work.examples).reshape(work.clients, work.examples)
    spread = jax.jit(lambda weights: [jnp.broadcast_to(one, (width, *one.shape)) for one in weights])
    every, total = jax.jit(jax.vmap(step)), jax.jit(lambda weights: [one.sum(0) for one in weights])
    cpu, wall = [0.0], []
    for _ in range(rounds):
        began = time.perf_counter()
        sums = [np.zeros_like(one) for one in weights]
        for start in range(0, work.clients, width):
            orders = generator.permuted(own[start : start + width], axis=1).astype(np.int32)
            state = spread(weights)
            for first in range(0, work.examples, work.batch):
                state = every(state, orders[:, first : first + work.batch])
            sums = [one + np.asarray(part) for one, part in zip(sums, total(state), strict=True)]
        weights = [one / work.clients for one in sums]
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time())
    return measured([after - before for before, after in itertools.pairwise(cpu)], wall)


def measured(cpu: Sequence[float], wall: Sequence[float]) -> dict[str, float]:
    """Return the median round after WARM, and the processor time up to the end of round 1, imports included."""
    return {"seconds": statistics.median(wall[WARM:]), "cpu": statistics.median(cpu[WARM:]), "start_cpu": cpu[0]}


def run(engine: str, name: str, rounds: int) -> dict[str, float]:
    """Play a work in a process of its own. Errors: RuntimeError with the end of what it complained about."""
    command = [sys.executable, str(HERE / "engines.py"), "--engine", engine, "--works", name, "--rounds", str(rounds)]
    if name == MILLION:
        command = [sys.executable, str(HERE / "scale.py"), "--rounds", str(max(rounds, 12)), "--json"]
    backend = "jax" if engine == BARE else engine
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{engine}, {name}: {done.stderr[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def turns(names: Sequence[str]) -> list[tuple[str, str]]:
    """List (engine, work) in the order in which they are played."""
    pairs = []
    for name in names:
        has_bare = name in WORKS and WORKS[name].is_bare
        pairs += [(engine, name) for engine in (*ENGINES, *([BARE] if has_bare else []))]
    return pairs


def by_turns(names: Sequence[str] = (*WORKS, MILLION), passes: int = 2, rounds: int = 10) -> Results:
    """Play works on both engines, every second pass backwards. Errors: RuntimeError, see `run`."""
    results: Results = {}
    order = turns(names)
    for number in range(passes):
        for turn in order if number % 2 == 0 else reversed(order):
            results.setdefault(turn, []).append(run(*turn, rounds))
            print(f"{turn[0]}, {turn[1]}: {results[turn][-1]['seconds']:.3f} s a round", file=sys.stderr, flush=True)
    return results


def table(results: Mapping[tuple[str, str], Sequence[Mapping[str, float]]]) -> str:
    """Return the results as lines of Markdown: the better of the passes of each."""
    lines = [
        "| work | TensorFlow, s a round | Umbel, Keras on JAX | ratio | target | bare vmapped loop, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(name for _, name in results):
        best = {engine: min(one["seconds"] for one in runs) for (engine, work), runs in results.items() if work == name}
        bare = f"{best[BARE]:.3f}" if BARE in best else "–"
        target = f"≥ {WORKS[name].target}" if name in WORKS else "≤ 0.1 s"
        ratio = best["tensorflow"] / best["jax"]
        lines.append(f"| {name} | {best['tensorflow']:.3f} | {best['jax']:.3f} | {ratio:.1f} | {target} | {bare} |")
    starts = {
        engine: min(one["start_cpu"] for one in results[engine, "digits10"])
        for engine in ENGINES
        if (engine, "digits10") in results
    }
    if len(starts) == len(ENGINES):
        share = starts["jax"] / starts["tensorflow"]
        lines.append(
            f"\nTo the end of round 1 of digits10 JAX takes {share:.2f} of TensorFlow's processor time (≤ 0.75)."
        )
    return "\n".join(lines)


def main() -> None:
    """Play all, and print the table; with --engine one work on one engine, and what was measured as JSON."""
    parser = argparse.ArgumentParser(description="Umbel on TensorFlow and on JAX, by turns.")
    parser.add_argument("--works", default=",".join((*WORKS, MILLION)))
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--engine", choices=(*ENGINES, BARE), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.works.split(",")
    unknown = {*names} - {*WORKS, MILLION}
    if unknown or options.rounds <= WARM:
        parser.error(f"expected works of {', '.join((*WORKS, MILLION))}, and more than {WARM} rounds")
    if options.engine:
        player = play_bare if options.engine == BARE else play
        print(json.dumps(player(WORKS[names[0]], options.rounds)))
        return
    results = by_turns(names, options.passes, options.rounds)
    if options.json:
        print(json.dumps({f"{engine}, {name}": runs for (engine, name), runs in results.items()}, indent=1))
    print(table(results), file=sys.stderr if options.json else sys.stdout)


if __name__ == "__main__":
    main()
