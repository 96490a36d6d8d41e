"""Stock Flower against Umbel over Flower, as real processes on loopback, in one run.

    python benchmarks/deploy.py [--rounds 6] [--json]        (make bench-deploy)
    python benchmarks/deploy.py --only large                 (Umbel's alone; nothing is written)

Three clients train and evaluate a tiny Keras MLP; two exchange a model of 100 MB. Seconds are per round, from one
broadcast to the next. The server's memory is the peak of the process that the ServerApp runs in, over what it had when
the model was built and the first round had not begun. It writes docs/benchmarks-deploy.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from umbel.benchmarks import deploy_work as work
from umbel.benchmarks.report import ROOT, machine, markdown_table
from umbel.runtimes.flower.control import ControlApi, without_proxy
from umbel.runtimes.flower.local import LocalFederation, pyproject
from umbel.runtimes.flower.processes import SWITCHES, free_ports, healthy
from umbel.server import RoundDone, Started

MIB = 2**20
SAMPLE_SECONDS = 0.02
GOAL, MEMORY_GOAL = 8.0, 3.0  # how many times faster a round is; the server's memory in models
TRIP_GOAL = 0.060  # seconds of processor time of a round trip, all processes together
STOCK_ROUNDS = 3  # number of stock Flower's rounds, of half a minute each


class Measured(NamedTuple):
    """One contender on one piece of work."""

    processors: dict[str, float]  # seconds of processor time of a round trip, by kind of process

    seconds: list[float]  # seconds of each round, the first left out
    memory: float  # bytes of the server's peak over its beginning
    resident: float  # bytes of the peak itself
    accuracy: float | None


# Words in the command of each kind of process of ours, the longest first.
KINDS = (("flower.link.executor", "executor"), ("flower.link.play", "run"), ("flower.link", "SuperLink"))
KINDS += (("flower.node", "node"),)


class Processors:
    """The processor time of a federation's processes, by kind: all whose environment names its folder."""

    def __init__(self, home: Path):
        self._mark = f"FLWR_HOME={home}".encode()
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """Begin to count."""
        self._before = self._read()

    def per(self, trips: int) -> dict[str, float]:
        """Return the seconds of each kind of process since the beginning, for each of so many round trips."""
        return {kind: (now - self._before.get(kind, 0.0)) / trips for kind, now in self._read().items()}

    def _read(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_text().replace("\0", " ")
                kind = next((kind for word, kind in KINDS if word in words), None)
                if kind is None or self._mark not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
                used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                seconds[kind] = seconds.get(kind, 0.0) + used
        return seconds


class ServerMemory:
    """A watch over the process of the ServerApp, found by the folder that its federation lives in."""

    def __init__(self, home: Path):
        self._mark = f"FLWR_HOME={home}".encode()
        self.before = self.peak = 0
        self._stop = threading.Event()
        self._process: Path | None = None

    def begin(self) -> None:
        """Begin to watch: the model is built, and from here on peaks count."""
        self._process = self._find()
        with contextlib.suppress(OSError):
            (self._process / "clear_refs").write_text("5")  # forget the peak so far
        self.before = self._read("VmRSS")
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """Watch no more."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self._read("VmHWM"))

    def _read(self, name: str) -> int:
        assert self._process is not None
        try:
            lines = (self._process / "status").read_text().splitlines()
        except OSError:
            return 0
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)

    def _find(self) -> Path:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                is_server = b"flwr-serverapp" in words or b"flower.link.play" in words
                if is_server and self._mark in (entry / "environ").read_bytes().split(b"\0"):
                    return entry
        raise RuntimeError("the process of the ServerApp was not found")


def ours(name: str, clients: int, rounds: int) -> Measured:
    """Measure Umbel's own federation, as `umbel run --runtime flower` starts it."""
    with tempfile.TemporaryDirectory() as folder, LocalFederation(clients, memory=folder) as federation:
        home = federation._processes.home
        memory, processors, seconds, accuracy = ServerMemory(home), Processors(home), [], None
        reference = f"{ROOT / 'benchmarks' / 'deploy_work.py'}"
        for event in federation.submit(f"{reference}:{name}", [f"rounds={rounds}"], join_seconds=300):
            if isinstance(event, Started):
                memory.begin()
            if isinstance(event, RoundDone):
                record = event.record
                seconds.append(record.seconds + (record.eval_seconds or 0.0))
                if len(seconds) == 1:
                    processors.begin()
                if len(seconds) == rounds:
                    trips = processors.per((rounds - 1) * clients * (2 if record.eval_seconds else 1))
                accuracy = record.metrics.get("validation_accuracy")
        memory.end()
    return Measured(trips, seconds[1:], memory.peak - memory.before, memory.peak, accuracy)


def stock(name: str, clients: int, rounds: int) -> Measured:
    """Measure Flower's own commands with their defaults, but for telemetry, update checks and late installations."""
    with tempfile.TemporaryDirectory() as folder, _stock_federation(Path(folder), clients) as control:
        config = {"work": name, "clients": clients, "rounds": rounds}
        app = pyproject(config).replace("umbel.runtimes.flower.server:app", "umbel.benchmarks.deploy_stock:server")
        run = control.start_run(app.replace("umbel.runtimes.flower.client:app", "umbel.benchmarks.deploy_stock:client"))
        memory, times, accuracy = ServerMemory(Path(folder)), [], None
        for event, content in control.events(run):
            if event == "start":
                memory.begin()
            else:
                times.append(content["time"])
                accuracy = content.get("accuracy")
        memory.end()
        if len(times) != rounds + 1:
            raise RuntimeError(f"the stock run ended as {control.status(run)}; see {folder}")
    seconds = [after - before for before, after in itertools.pairwise(times[1:])]
    return Measured({}, seconds, memory.peak - memory.before, memory.peak, accuracy)


@contextlib.contextmanager
def _stock_federation(home: Path, clients: int) -> Iterator[ControlApi]:
    """Start a SuperLink and SuperNodes as their documentation does."""
    link, *ports = free_ports(1 + clients)
    environment = without_proxy({**os.environ, **SWITCHES, "FLWR_HOME": str(home)})
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    scripts = Path(sys.executable).parent
    environment["PATH"] = os.pathsep.join([str(scripts), environment.get("PATH", os.defpath)])
    commands = [["flower-superlink", "--insecure", "--port", str(link)]]
    for client, port in enumerate(ports):
        options = ["--superlink", f"127.0.0.1:{link}", "--port", str(port), "--node-config"]
        commands.append(["flower-supernode", "--insecure", *options, f"partition-id={client} num-partitions={clients}"])
    running: list[subprocess.Popen] = []
    try:
        for number, command in enumerate(commands):
            with open(home / f"{number}.log", "wb") as log:
                words = [str(scripts / command[0]), *command[1:]]
                running.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True))
            while number == 0 and not healthy(f"127.0.0.1:{link}"):
                time.sleep(0.1)
        control = ControlApi(f"127.0.0.1:{link}")
        try:
            yield control
        finally:
            control.close()
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def rows(results: dict[str, Measured]) -> list[tuple[str, ...]]:
    """Return the rows that are shown: the work, stock, ours, and one over the other."""
    tiny, tiny_stock = results["tiny"], results["tiny, stock"]
    large, large_stock = results["large"], results["large, stock"]

    def row(what: str, theirs: Measured, own: Measured) -> tuple[str, ...]:
        before, now = statistics.median(theirs.seconds), statistics.median(own.seconds)
        return what, f"{before:.2f} s", f"{now:.2f} s", f"{before / now:.1f}×"

    def memory(one: Measured) -> str:
        return f"{one.memory / work.LARGE_BYTES:.1f}× ({one.memory / MIB:.0f} MiB)"

    def whole(one: Measured) -> str:
        return f"{one.resident / MIB:.0f} MiB"

    ratio = large_stock.memory / max(large.memory, 1)
    return [
        row("a round of the tiny MLP, train and evaluate, 3 clients", tiny_stock, tiny),
        row("a round of a 100 MB model, 2 clients", large_stock, large),
        (
            "the server's memory above its start, in models of 100 MB",
            memory(large_stock),
            memory(large),
            f"{ratio:.1f}×",
        ),
        (
            "the server's whole process at its peak",
            *(f"{one.resident / MIB:.0f} MiB" for one in (large_stock, large)),
            "",
        ),
        ("processor time of a round trip of the tiny MLP", "", spent(tiny.processors), ""),
    ]


def spent(processors: dict[str, float]) -> str:
    """Say what a round trip costs, in all and by process."""
    each = ", ".join(f"{kind} {1000 * seconds:.1f}" for kind, seconds in processors.items())
    return f"{1000 * sum(processors.values()):.0f} ms ({each})"


def goals(results: dict[str, Measured]) -> list[str]:
    """Return a sentence for each goal that was missed."""
    median = {name: statistics.median(one.seconds) for name, one in results.items()}
    missed = []
    if median["tiny, stock"] < GOAL * median["tiny"]:
        missed.append(f"a tiny round is {median['tiny, stock'] / median['tiny']:.1f} times faster, expected {GOAL:g}")
    if median["large"] > median["large, stock"]:
        missed.append(f"a 100 MB round takes {median['large']:.1f} s, stock Flower {median['large, stock']:.1f} s")
    if (trip := sum(results["tiny"].processors.values())) > TRIP_GOAL:
        missed.append(f"a round trip costs {1000 * trip:.0f} ms of processor time, expected {1000 * TRIP_GOAL:.0f}")
    models = results["large"].memory / work.LARGE_BYTES
    if models > MEMORY_GOAL:
        missed.append(f"the server takes {models:.1f} times the model, expected {MEMORY_GOAL:g}")
    return missed


HEADINGS = ("", "stock Flower", "Umbel over Flower", "ratio")
PAGE = """# Benchmarks: deployment

Written by `make bench-deploy`; every number below comes from one run of it.

{table}

Medians over {rounds} rounds of Umbel's and {stock} of stock Flower's, the first round of each left out. SuperLink and
SuperNodes are real processes on loopback, without TLS. Both train the tiny MLP (64-32-10) on scikit-learn's digits,
dealt to three clients, one epoch, batches of 32, and evaluate it on each client's test digits (accuracy at the end:
stock {stock_accuracy:.2f} after {all_stock} rounds, Umbel {accuracy:.2f} after {all_rounds}). Of the 100 MB model,
Umbel's clients take a step of SGD in TensorFlow; stock Flower's only send it back. «Memory above its start» is the peak
of the process that the ServerApp runs in, over what it had when the first round began; stock Flower's does not import
TensorFlow, so that its process as a whole begins smaller. Stock: `flower-superlink` and `flower-supernode` with their
defaults, telemetry, update checks and installations at run time off.

Of Umbel's models above the start, one is the round's sum and one the update that is being read; afterwards one is the
mean, and one the next model. What a cohort is sent is the model's own memory, and goes out in pieces of 5 MiB, two at a
time; what comes in is read the same way, into its place. A strategy that remembers (FedAdam) keeps that besides.

A round trip is one message to one client and its reply, training or evaluation; the processor time is that of all
processes of its kind, the training itself with it. Where messages are small they bring their objects with them
(decision 53).

Machine: {machine}. {date}."""


def write(results: dict[str, Measured]) -> None:
    """Write docs/benchmarks-deploy.md."""
    tiny, tiny_stock = results["tiny"], results["tiny, stock"]
    text = PAGE.format(
        table=markdown_table(HEADINGS, rows(results)),
        rounds=len(tiny.seconds),
        stock=len(tiny_stock.seconds),
        all_rounds=len(tiny.seconds) + 1,
        all_stock=len(tiny_stock.seconds) + 1,
        accuracy=tiny.accuracy,
        stock_accuracy=tiny_stock.accuracy,
        machine=machine(),
        date=datetime.date.today(),
    )
    (ROOT / "docs" / "benchmarks-deploy.md").write_text(text + "\n")


def main() -> int:
    """Measure, print and write the page; return 0 when every goal was met, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Stock Flower against Umbel over Flower.")
    parser.add_argument("--rounds", type=int, default=6, help="of Umbel's; the first is left out")
    parser.add_argument("--only", choices=("tiny", "large"), help="this one of Umbel's; no page is written")
    parser.add_argument("--json", action="store_true", help="results as JSON on standard output")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"expected --rounds {options.rounds} > 1, the round of warm-up")
    console = Console(stderr=True)
    if options.only:
        one = ours(options.only, work.CLIENTS if options.only == "tiny" else work.LARGE_CLIENTS, options.rounds)
        print(json.dumps({**one._asdict(), "models": one.memory / work.LARGE_BYTES}))
        return 0
    results: dict[str, Measured] = {}
    for name, clients in (("tiny", work.CLIENTS), ("large", work.LARGE_CLIENTS)):
        for contender, play, rounds in ((f"{name}, stock", stock, STOCK_ROUNDS), (name, ours, options.rounds)):
            results[contender] = measured = play(name, clients, rounds)
            console.print(f"{contender}: {statistics.median(measured.seconds):.2f} s a round", markup=False)
    table = Table(title="Deployment", title_justify="left")
    for position, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if position else "left")
    for row in rows(results):
        table.add_row(*row)
    Console(file=sys.stderr if options.json else sys.stdout).print(table)
    if options.json:
        print(json.dumps({name: one._asdict() for name, one in results.items()}, indent=1))
    write(results)
    missed = goals(results)
    for sentence in missed:
        console.print(sentence, style="red", markup=False)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
