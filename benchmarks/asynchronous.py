"""Time to accuracy with one slow node: synchronous rounds against FedBuff, over real processes on loopback.

    python benchmarks/asynchronous.py [--target 0.85]

Four clients train a linear classifier of digits; one takes ten times as long as each of the others. Seconds are from
the end of the first round, in which models are built, to the round whose model reaches the target on the test set.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time

from umbel.benchmarks import asynchronous_work as work
from umbel.benchmarks.report import ROOT
from umbel.runtimes.flower.local import LocalFederation
from umbel.server import RoundDone

TARGET, GOAL = 0.85, 3.0  # accuracy to reach, and how many times sooner


def seconds_to(federation: LocalFederation, name: str, target: float) -> tuple[float, int]:
    """Return how long the experiment takes to reach the target, and in which round it does."""
    reference, began = f"{ROOT / 'benchmarks' / 'asynchronous_work.py'}:{name}", 0.0
    with contextlib.closing(federation.submit(reference, join_seconds=300)) as events:
        for event in events:
            if not isinstance(event, RoundDone):
                continue
            record = event.record
            if record.round == 1:
                began = time.perf_counter()
            elif record.numbers["test_accuracy"] >= target:
                return time.perf_counter() - began, record.round
    raise RuntimeError(f"{name} never came to an accuracy of {target}")


def compare(target: float) -> dict[str, tuple[float, int]]:
    """Play both in one federation, one after the other."""
    with tempfile.TemporaryDirectory() as folder, LocalFederation(work.CLIENTS, memory=folder) as federation:
        return {name: seconds_to(federation, name, target) for name in work.experiments}


def main() -> int:
    """Measure and print; return 0 when FedBuff is as much sooner as it is to be, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Synchronous rounds against FedBuff, one node ten times slower.")
    parser.add_argument("--target", type=float, default=TARGET, help="accuracy on the test set")
    found = compare(parser.parse_args().target)
    for name, (seconds, round) in found.items():
        print(f"{name}: {seconds:.1f} s, {round} rounds")
    ratio = found["synchronous"][0] / found["asynchronous"][0]
    print(f"{ratio:.1f} times sooner")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
