"""Rehearsal of a run, `umbel run X --dry-run`: what it would take, before anything is spent or kept."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import RunStopped
from ..core.reading.loading import load_experiment
from ..core.reading.overrides import fit_to, override
from ..core.system.quiet import without_native_logs
from ..core.validation import require
from ..server import run
from .console import to_json
from .run import DEFAULT_EXPERIMENT, Request

if TYPE_CHECKING:
    from ..core.recipe import Recipe

TRIED = 3  # rounds that are tried: the first compiles
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Rehearsal:
    """Time, memory, bytes and ε that a run would take, from a few rounds that are forgotten."""

    experiment: str
    rounds: int
    clients: int
    expected_cohort: float
    parameters: int
    bytes_up: int | None  # sent by clients in the whole run
    bytes_down: int | None  # sent to clients in the whole run
    first_seconds: float  # time of the first round, which compiles
    seconds: float  # time of the whole run, at the pace of the last round tried
    peak_bytes: int | None  # memory of this process, at its highest; None where the system does not say
    epsilon: float | None  # ε spent after all rounds; None without a plan
    delta: float | None
    rounds_in_budget: int | None  # number of rounds after which the plan ends the run; None without a plan

    def __str__(self) -> str:
        facts = {
            "rounds": f"{self.rounds} of about {self.expected_cohort:.4g} of {self.clients} clients",
            "model": f"{self.parameters:,} numbers travel",
            "time": f"about {self.seconds:.3g} s here, the first round {self.first_seconds:.2g} s",
            "memory": None if self.peak_bytes is None else f"{size(self.peak_bytes)} so far, at most",
            "sent": None if self.bytes_up is None else f"{size(self.bytes_up)} up, {size(self.bytes_down or 0)} down",
            "privacy": None if self.epsilon is None else f"ε {self.epsilon:.4g} at δ {self.delta:g}{self._end()}",
        }
        width = max(map(len, facts))
        lines = [f"  {name:<{width}}  {fact}" for name, fact in facts.items() if fact]
        return "\n".join([f"{self.experiment}, tried for {min(TRIED, self.rounds)} rounds; nothing is kept", *lines])

    def _end(self) -> str:
        """Say where the budget ends the run before its rounds are done."""
        if self.rounds_in_budget is None or self.rounds_in_budget >= self.rounds:
            return ""
        return f"; the budget ends the run after round {self.rounds_in_budget}"


def rehearse(request: Request) -> Rehearsal:
    """Try a few rounds in this process, in memory alone, and reckon with them.

    Errors: those of `umbel.run`; ConfigError over Flower, on a cluster and for a run that is to be resumed.
    """
    others = [f"--runtime {request.runtime}"] if request.runtime != "simulation" else []
    others += ["--resume"] if request.resume is not None else []
    require(not others, f"--dry-run is of a new simulation; drop {' and '.join(others)}")
    from ..clients.teams import load as load_engine
    from ..runtimes.simulation import Simulation, prepare

    with without_native_logs():
        experiment = load_experiment(request.reference or DEFAULT_EXPERIMENT, request.overrides)
        if request.clients is not None:
            experiment = override(experiment, fit_to(experiment, request.clients))
        prepare(experiment.resolved)
        load_engine()
    tried = min(TRIED, experiment.rounds)
    short = dataclasses.replace(experiment, rounds=tried, callbacks=())
    with contextlib.closing(Simulation(request.workers, request.compile, aggregation=request.aggregation)) as runtime:
        history = run(short, runtime, watchers=())
    each = [record.seconds + (record.eval_seconds or 0.0) for record in history.rounds]
    recipe, rounds = experiment.resolved, experiment.rounds
    up, down = (
        None if None in counts else round(sum(counts) / tried * rounds)
        for counts in zip(*((record.bytes_up, record.bytes_down) for record in history.rounds), strict=True)
    )
    epsilon, lasting = priced(recipe)
    return Rehearsal(
        experiment.name,
        rounds,
        len(experiment.population),
        recipe.sampler.expected_cohort(len(experiment.population)),
        history.spec.size,
        up,
        down,
        each[0],
        each[0] + each[-1] * (rounds - 1),
        peak_memory(),
        epsilon,
        None if recipe.plan is None else recipe.plan.delta,
        lasting,
    )


def priced(recipe: Recipe) -> tuple[float | None, int | None]:
    """Return the ε of all rounds that the budget allows, and their number; None for both without a plan."""
    plan = recipe.plan
    if plan is None:
        return None, None
    ledger: dict[str, int] = {}
    for done in range(recipe.rounds):
        charged = plan.charge(ledger)
        try:
            plan.check_budget(charged)
        except RunStopped:
            return plan.spent(ledger), done
        ledger = charged
    return plan.spent(ledger), recipe.rounds


def peak_memory() -> int | None:
    """Return the bytes of memory that this process had at its highest.

    None where the system does not say.
    """
    if sys.platform == "win32":
        return None
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def size(count: int) -> str:
    """Format a number of bytes as people say it."""
    found = next(((unit, name) for unit, name in SIZES if count >= unit), None)
    return f"{count} B" if found is None else f"{count / found[0]:.3g} {found[1]}"


def show(request: Request, output: Any) -> None:
    """Print what a run would take: as text, or as one JSON object to a stream."""
    found = rehearse(request)
    if output is None:
        print(found)
    else:
        print(to_json(dataclasses.asdict(found)), file=output, flush=True)
