"""Cost of privacy, against AES, memcpy and Flower's own code timed in the same run.

    python -m umbel.benchmarks.privacy [--only masking,noise] [--json]

A run of everything writes docs/benchmarks-privacy.md; a part of it only prints.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from umbel.benchmarks import report
from umbel.benchmarks.privacy_rows import ROWS, SIZE, Row
from umbel.benchmarks.privacy_training import per_example, simulation

CORES = 2
SUBJECTS = (*ROWS, simulation, per_example)
HEADINGS = ("what", "measured", "target", "ok?")
PACKAGES = ("umbel", "cryptography", "numpy", "dp-accounting", "tenseal", "flwr")


def play(subjects: Sequence, console: Console) -> tuple[list[Row], list[str]]:
    """Return the rows of all subjects, and a sentence for each that could not be measured."""
    rows: list[Row] = []
    failures: list[str] = []
    for subject in subjects:
        console.print(f"{subject.__name__} …", markup=False)
        try:
            rows += subject()
        except Exception as error:  # a package that is missing, or a module that changed: the others are measured
            failures.append(f"{subject.__name__} was not measured: {type(error).__name__}: {error}")
            console.print(failures[-1], style="red", markup=False)
    return rows, failures


def cells(row: Row) -> tuple[str, str, str, str]:
    """Return a row as text."""
    verdict = {None: "–", True: "yes", False: "no"}[row.is_met]
    if row.target is None:
        return row.what, amount(row.measured, row.unit), "–", verdict
    return (
        row.what,
        amount(row.measured, row.unit),
        f"{'≥' if row.at_least else '≤'} {row.target:g} {row.unit}",
        verdict,
    )


def amount(number: float, unit: str) -> str:
    """Write three digits and a unit."""
    digits = 3 if number < 0.1 or 0.995 < number < 1.095 else 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{digits}f} {unit}"


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table for the terminal."""
    shown = Table(title="What privacy costs", title_justify="left")
    for position, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if position in (0, 3) else "right")
    for row in rows:
        shown.add_row(*cells(row), style="red" if row.is_met is False else None)
    return shown


def write(rows: Sequence[Row]) -> None:
    """Write docs/benchmarks-privacy.md, whole."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    text = PREAMBLE.format(
        machine=report.machine(), date=datetime.date.today(), size=f"{SIZE:,}", packages=", ".join(found)
    )
    lines = report.markdown_table(HEADINGS, map(cells, rows))
    (report.ROOT / "docs" / "benchmarks-privacy.md").write_text(f"{text}\n\n{lines}\n\n{NOTES}\n")


def arguments() -> argparse.Namespace:
    names = [subject.__name__ for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="What privacy costs.")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(names)}")
    parser.add_argument("--json", action="store_true", help="results as JSON on standard output")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else names
    unknown = {*chosen} - {*names}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    options.subjects = [subject for subject in SUBJECTS if subject.__name__ in chosen]
    return options


def main() -> int:
    """Measure and print; return 0 when all was measured and every target met, 1 otherwise."""
    options = arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    rows, failures = play(options.subjects, Console(stderr=True))
    output = sys.stderr if options.json else sys.stdout
    Console(file=output, width=None if output.isatty() else 140).print(table(rows))
    if options.json:
        print(json.dumps([row._asdict() | {"is_met": row.is_met} for row in rows], indent=1))
    if options.subjects == list(SUBJECTS) and not failures:
        write(rows)
    return 1 if failures or any(row.is_met is False for row in rows) else 0


PREAMBLE = """# What privacy costs

Written by `make bench-privacy` (`python -m umbel.benchmarks.privacy`); every number below comes from one run of it.

Vectors of {size} float32 numbers, a 5×5 CNN's, unless a row says otherwise. What is compared takes turns in one
process; numbers are medians, times those of the processor, and of the clock on the wall for simulated rounds. `×` is a
ratio to what the row names, timed in the same run.

Machine: {machine}. {date}.
Versions: {packages}."""

NOTES = """## Notes

- *AES-128-CTR*: OpenSSL's, by `cryptography`, in blocks that stay in the cache. No mask can be made faster.
- *A client among 100*: all five messages, signatures checked, shares sealed and opened, the vector encoded, masked with
  all 99 others. *Flower's SecAgg+*: the functions of its client mod, complete graph, default ranges, without the
  serialisation of its state between messages. It signs nothing.
- *Server unmasks*: secrets rebuilt from shares and checked against the adverts, masks taken off.
- *A simulated round*: 600 examples a client, XLA, two workers; with the whole protocol, all hundred clients and the
  server share the two cores, which on real devices each have their own. With distributed DP each of them draws noise
  for all its numbers: a hundred times what central DP draws.
- *DP-SGD*: one worker, noise included, a private and a plain client each as it compiles best, the fastest of five. In
  small batches the noise alone, a number for each parameter, takes longer than a plain step: for the MLP's 199,210
  parameters 0.43 ms of processor time, 2.1 ns a number, a quarter of it AES; a plain step of 32 examples takes 0.29."""

if __name__ == "__main__":
    sys.exit(main())
