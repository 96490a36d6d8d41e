"""Report of the results: a check that all learned the same, tables, docs/benchmarks.md and README.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.table import Table

from umbel.benchmarks import scale
from umbel.benchmarks.environments import versions
from umbel.benchmarks.measure import WARM_UP, Contender, Result
from umbel.core.system.processors import processors

Results = Mapping[tuple[Contender, str], Result]

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
OURS, FLOOR = "umbel_simulation", "bare_"
CAPTIONS = {"mlp": "MLP 784-200-200-10, 199,210 parameters", "cnn": "5×5 CNN, 1,663,370 parameters"}
LEARNED = 0.5  # accuracy above which a model has learned something; chance is 0.1
TOLERANCE = 0.05  # difference allowed in accuracy after few rounds, between contenders that shuffle differently
PINNED = (("flower", ("flwr", "ray")), ("fedjax", ("fedjax", "jax")), ("pfl", ("pfl", "tf-keras")))


def of_model(results: Results, model: str) -> dict[Contender, Result]:
    """Return the results on one model."""
    return {contender: result for (contender, played), result in results.items() if played == model}


def models(results: Results) -> list[str]:
    """List the models played, in order."""
    return list(dict.fromkeys(model for _, model in results))


def disagreements(results: Results) -> list[str]:
    """Return a sentence for each contender that did not learn, or not what the others learned."""
    faults = []
    for model in models(results):
        ran = {contender: result for contender, result in of_model(results, model).items() if result.runs}
        if not ran:
            continue
        middle = statistics.median(result.accuracy for result in ran.values())
        for contender, result in ran.items():
            if result.accuracy < LEARNED or abs(result.accuracy - middle) > TOLERANCE:
                faults.append(
                    f"{contender.title}, {model}: accuracy {result.accuracy:.3f}, the median is {middle:.3f}; "
                    f"expected within {TOLERANCE} of it and above {LEARNED}"
                )
    return faults


def ratio(results: Mapping[Contender, Result], result: Result) -> float | None:
    """Return how many times Umbel's seconds a result took; None without both."""
    ours = next((one for contender, one in results.items() if contender.script == OURS), None)
    return result.seconds / ours.seconds if ours and ours.runs and result.runs else None


def above_floor(results: Mapping[Contender, Result]) -> float | None:
    """Return Umbel's seconds over those of the fastest hand-written loop; None without both."""
    ours = [one.seconds for contender, one in results.items() if contender.script == OURS and one.runs]
    floor = [one.seconds for contender, one in results.items() if contender.script.startswith(FLOOR) and one.runs]
    return ours[0] / min(floor) if ours and floor else None


def rows(results: Mapping[Contender, Result]) -> Iterable[tuple[str, ...]]:
    """Yield contender, seconds per round, spread, times Umbel, first round, accuracy, what it chose."""
    for contender, result in results.items():
        if not result.runs:
            yield (contender.title, "–", "–", "–", "–", "–", result.reason or "")
            continue
        low, high = result.spread
        times = ratio(results, result)
        yield (
            contender.title,
            f"{result.seconds:.3f}",
            f"{low:.3f}–{high:.3f}",
            f"{times:.2f}×" if times else "–",
            f"{result.first_round:.1f}",
            f"{result.accuracy:.3f}",
            result.reason or result.note,
        )


HEADINGS = ("contender", "s/round", "min–max", "× Umbel", "first round, s", "accuracy", "")


def tables(results: Results) -> list[Table]:
    """Return one table a model, for the terminal."""
    shown = []
    for model in models(results):
        own = of_model(results, model)
        excess = above_floor(own)
        caption = f"Umbel is at {excess:.2f}× the fastest hand-written loop." if excess else None
        table = Table(title=CAPTIONS[model], caption=caption, title_justify="left", caption_justify="left")
        for position, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="right" if 0 < position < 6 else "left", no_wrap=position < 6)
        for row in rows(own):
            table.add_row(*row)
        shown.append(table)
    return shown


def as_json(results: Results, source: str, scaled: dict | None) -> dict:
    """Return everything measured."""
    entries = [
        {"contender": contender.script, "model": model, "reason": result.reason}
        | {"runs": [run._asdict() for run in result.runs]}
        for (contender, model), result in results.items()
    ]
    return {"data": source, "machine": machine(), "results": entries, "scale": scaled}


def markdown_table(headings: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table, the first column to the left and the numbers to the right."""
    headings = list(headings)
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, rule, *body])


def cell(results: Mapping[Contender, Result], contender: Contender, result: Result) -> str:
    """Write seconds per round and, for a peer, times Umbel."""
    if not result.runs:
        return "–"
    times = ratio(results, result)
    return f"{result.seconds:.3f}" + (f" ({times:.1f}×)" if times and contender.script != OURS else "")


def summary(results: Results) -> str:
    """Write README's table: seconds per round and times Umbel, a column a model."""
    names = models(results)
    body = {}
    for model in names:
        own = of_model(results, model)
        for contender, result in own.items():
            body.setdefault(contender.title, {})[model] = cell(own, contender, result)
    lines = [[title, *(cells.get(model, "–") for model in names)] for title, cells in body.items()]
    return markdown_table(["seconds per round", *(CAPTIONS[model] for model in names)], lines)


def machine() -> str:
    """Describe the machine: processor, cores in use, memory, system."""
    try:
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        name = None
    cores = processors()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = name.group(1) if name else platform.processor() or platform.machine()
    return f"{processor}, {cores} cores used, {memory:.0f} GiB, {platform.system()}"


def packages() -> str:
    """List the versions that took part."""
    own = [f"{name} {importlib.metadata.version(name)}" for name in ("umbel", "tensorflow", "keras")]
    pinned = [f"{name} {version}" for env, names in PINNED for name, version in versions(env, names).items()]
    return ", ".join(own + pinned)


def write(results: Results, source: str, scaled: dict | None, engines: str | None = None) -> None:
    """Write docs/benchmarks.md whole, and README.md and docs/jax.md between their markers, where they have them.

    engines: a table of both engines, as Markdown.
    """
    parts = [
        PREAMBLE.format(
            data=source, machine=machine(), packages=packages(), date=datetime.date.today(), warm_up=WARM_UP
        )
    ]
    for model in models(results):
        own = of_model(results, model)
        parts.append(f"## {CAPTIONS[model]}\n\n{markdown_table(HEADINGS, rows(own))}")
        excess = above_floor(own)
        if excess:
            parts.append(f"Umbel takes {excess:.2f}× the time of the fastest hand-written loop.")
    if scaled:
        title = f"{scaled['clients']:,} clients, {scaled['cohort']:,} a round, {scaled['rounds']} rounds"
        lines = markdown_table(["`benchmarks/scale.py`", ""], scale.describe(scaled))
        parts.append(f"## {title}\n\n{lines}")
    if engines:
        dated = f"{engines}\n\n{machine()}. {datetime.date.today()}."
        parts.append(
            f"## Keras on TensorFlow and on JAX\n\n`benchmarks/engines.py`; what each work is, it says.\n\n{dated}"
        )
        between_markers(ROOT / "docs" / "jax.md", dated)
    docs = ROOT / "docs" / "benchmarks.md"
    docs.parent.mkdir(exist_ok=True)
    docs.write_text("\n\n".join([*parts, NOTES]) + "\n")
    between_markers(ROOT / "README.md", summary(results))


def between_markers(file: Path, text: str) -> bool:
    """Put text between the markers of a file; False, and nothing written, when it has none."""
    before = file.read_text() if file.exists() else ""
    if BEGIN not in before or END not in before:
        return False
    head, rest = before.split(BEGIN, 1)
    file.write_text(head + BEGIN + "\n" + text + "\n" + END + rest.split(END, 1)[1])
    return True


PREAMBLE = """# Benchmarks

Written by `make bench`; every number below comes from one run of it.

Work: {data}, 60,000 training examples dealt IID to 100 clients of 600, 10 clients a round, batches of 32, one local
epoch, SGD with learning rate 0.1, float32. All contenders start from the same weights, and are held to the same test
accuracy after the same rounds. Each runs in a fresh interpreter, twice, in turn; seconds are per round, from sampling
the cohort to the new weights, after {warm_up} rounds of warm-up: median, fastest and slowest. «First round» is from the
start of the process to the end of round 1, data loaded, the better of the two.

Machine: {machine}. {date}.
Versions: {packages}."""

NOTES = """## Notes

- *Flower, usual client*: its TensorFlow template: session cleared, model built and compiled for each message; the data
  set is kept in the actor. *One model per actor*: that model is kept. Both with two actors of one CPU; telemetry and
  update checks off.
- *Keras `fit`*: one compiled model; weights set, `fit`, weights got and averaged.
- *FedJAX*: its own `federated_averaging`, jit backend. *pfl-research*: `FederatedAveraging` over `SimulatedBackend`, in
  one process.
- *Umbel*: `compile="auto"`, which judges by the length of the run: a run of 1,000 rounds is asked for, then stopped.
- *Umbel over Ray*: a cluster of this machine, two processes of one thread. Cohorts that are worth one are in
  docs/ray.md (`make bench-ray`).
- *Bare TensorFlow*: the floor. Hand-written steps over raw variables, one compiled call per client, two threads, XLA
  where it is faster. *Bare JAX*: a whole round as one compiled call over two CPU devices; not for the CNN, whose
  convolutions XLA runs 25 times slower there.
- Packages are byte-compiled, and no contender uses a GPU."""
