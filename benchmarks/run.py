"""Umbel and its peers on the same work, in one run, on two cores.

    python benchmarks/run.py [--only umbel,flower_tuned] [--models mlp,cnn] [--rounds 7] [--json]

Every contender runs in a fresh interpreter, twice, in turn, so that a machine that slows down slows all alike. A run
of everything writes docs/benchmarks.md and the table in README.md; a part of it only prints.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from umbel.benchmarks import engines, report, scale
from umbel.benchmarks.contenders.workload import MODELS, mnist_file
from umbel.benchmarks.measure import WARM_UP, Contender, Result, RunFailed, measure, measure_scale

CONTENDERS = (
    Contender("Umbel", "umbel_simulation"),
    Contender("Umbel, Keras on JAX", "umbel_simulation", models=("mlp",), backend="jax"),
    Contender("Umbel over Ray", "umbel_ray", models=("mlp",)),
    Contender("Flower 1.42, usual Keras client", "flower_usual", "flower"),
    Contender("Flower 1.42, one model per actor", "flower_tuned", "flower"),
    Contender("Keras `fit` per client, one process", "keras_fit"),
    Contender("FedJAX", "fedjax_fedavg", "fedjax"),
    Contender("pfl-research 0.6 (TensorFlow)", "pfl_fedavg", "pfl"),
    Contender("bare TensorFlow, by hand", "bare_tensorflow"),
    Contender("bare JAX, by hand", "bare_jax", "fedjax", models=("mlp",)),
)
PASSES = 2
CORES = 2


def play(contenders: Sequence[Contender], models: Sequence[str], rounds: int, console: Console) -> report.Results:
    """Measure each contender on each model in every pass; the second pass goes through them backwards."""
    turns = [(contender, model) for model in models for contender in contenders if model in contender.models]
    runs: dict = {turn: [] for turn in turns}
    reasons: dict = {}
    for number in range(PASSES):
        for turn in turns if number % 2 == 0 else reversed(turns):
            contender, model = turn
            if turn in reasons:
                continue
            try:
                run = measure(contender, model, rounds)
            except RunFailed as failure:
                reasons[turn] = str(failure)
                console.print(f"{contender.title}, {model}: {failure}", style="red", markup=False)
                continue
            runs[turn].append(run)
            middle = sorted(run.seconds)[len(run.seconds) // 2]
            console.print(f"{contender.title}, {model}: {middle:.3f} s, accuracy {run.accuracy:.3f}", markup=False)
    return {turn: Result(tuple(runs[turn]), reasons.get(turn)) for turn in turns}


def play_scale(console: Console) -> dict | None:
    """Measure a million clients; None, and the reason printed, when that fails."""
    try:
        result = measure_scale()
    except RunFailed as failure:
        console.print(f"scale: {failure}", style="red", markup=False)
        return None
    console.print(scale.table(result))
    return result


def play_engines(console: Console) -> str | None:
    """Measure both engines on work of other kinds; None, and the reason printed, when that fails."""
    try:
        table = engines.table(engines.by_turns())
    except RuntimeError as failure:
        console.print(f"engines: {failure}", style="red", markup=False)
        return None
    console.print(table, markup=False)
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Umbel against its peers, on the same work.")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(one.script for one in CONTENDERS)}")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated: mlp, cnn")
    parser.add_argument("--rounds", type=int, default=7, help=f"per process, the first {WARM_UP} left out")
    parser.add_argument("--json", action="store_true", help="results as JSON on standard output")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [one.script for one in CONTENDERS]
    unknown = {*names} - {one.script for one in CONTENDERS} | {*options.models.split(",")} - {*MODELS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.rounds <= WARM_UP:
        parser.error(f"expected --rounds {options.rounds} > {WARM_UP}, the rounds of warm-up")
    options.contenders = [one for one in CONTENDERS if one.script in names]
    options.models = options.models.split(",")
    return options


def main() -> int:
    """Measure, print and write the pages; return 0 when every contender ran and learned the same, 1 otherwise."""
    options = arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    console = Console(stderr=True)
    source = "MNIST" if mnist_file() else "synthetic digits of MNIST's shapes (mnist.npz is not in $UMBEL_DATA)"
    console.print(f"work: {source}")
    results = play(options.contenders, options.models, options.rounds, console)
    faults = report.disagreements(results)
    output = sys.stderr if options.json else sys.stdout
    Console(file=output, width=None if output.isatty() else 140).print(*report.tables(results), sep="\n")
    for fault in faults:
        console.print(fault, style="red", markup=False)
    whole = options.contenders == list(CONTENDERS) and options.models == list(MODELS)
    scaled = play_scale(console) if whole else None
    beside = play_engines(console) if whole else None
    if options.json:
        print(json.dumps(report.as_json(results, source, scaled), indent=1))
    if whole:
        report.write(results, source, scaled, beside)
    return 1 if faults or any(result.reason for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
