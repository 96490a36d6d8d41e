"""Contents of a report about a run: from a store, or from a History."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...core.types import RoundRecord

if TYPE_CHECKING:
    from ...core.experiment import Experiment
    from ...server.history import History
    from ...server.store import RunDetails, RunTotals, Store

WITHHELD = "It is withheld: the run has a plan or an aggregation, which are to hide what single clients have."
ELSEWHERE = "It is not known here: the experiment is not at hand, or its data are its clients'."


@dataclass(frozen=True)
class Contents:
    """Contents of a report about one run."""

    details: Mapping[str, Any]  # run, rounds, settings, budget and command, as the page `umbel ui` shows them
    description: Mapping[str, str]  # the experiment's settings by path; empty where they are not at hand
    hashes: Mapping[str, str]  # the model's hashes, each by the name of what it is of
    findings: Sequence[Mapping[str, Any]] | None  # results of an audit; None where none was handed over
    population: Experiment | None  # experiment whose population may be shown; None where it may not
    no_population: str = ""  # reason why the population may not be shown


def of_run(
    store: Store,
    run: str,
    experiment: Experiment | None = None,
    findings: Sequence[Mapping[str, Any]] | None = None,
) -> Contents:
    """Collect the contents for a stored run.

    experiment: what was run, for a picture of who has what data; None where it is not at hand. findings: of any runs,
    as `umbel audit --json` prints them. Errors: StoreError for an unknown run.
    """
    from ...server.ui import runs

    found = store.views.details(run)
    details = runs.details(store, found.overview.run)
    hashes = {}
    for number in details["models"]:
        version = next(one for one in store.models.list(found.overview.experiment) if one.version == number)
        hashes[f"version {number}, params (SHA-256)"] = version.params_sha256
        hashes[f"version {number}, in the chain"] = version.hash
    own = None if findings is None else [one for one in findings if one.get("run") == found.overview.run]
    return _contents(found, details, hashes, experiment, own)


def of_history(history: History) -> Contents:
    """Collect the contents for a run that this process has played, or read back."""
    from ...server.ui import runs

    experiment = history.played
    found = _details(history)
    versions = () if history.model_version is None else (history.model_version,)
    details = runs.shown(found, history.rounds, versions)
    return _contents(found, details, {"params (SHA-256)": history.params_sha256}, experiment, None)


def read_findings(path: Path) -> list[dict[str, Any]]:
    """Read the lines that `umbel audit --json` printed. Errors: ConfigError for a file that holds anything else."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read audit={str(path)!r}: {error}; umbel audit RUN --json writes it") from error
    if not all(isinstance(line, dict) and {"attack", "verdict", "run"} <= line.keys() for line in lines):
        raise ConfigError(f"audit={str(path)!r} does not hold what umbel audit RUN --json prints")
    return lines


def _contents(
    found: RunDetails,
    details: Mapping[str, Any],
    hashes: Mapping[str, str],
    experiment: Experiment | None,
    findings: Sequence[Mapping[str, Any]] | None,
) -> Contents:
    described = found.description
    protections = ("plan", "secure_aggregation", "local.per_example")
    hides = any(described.get(name, "None") != "None" for name in protections)
    why = WITHHELD if hides else ELSEWHERE if experiment is None else ""
    return Contents(details, described, hashes, findings, None if why else experiment, why)


def _details(history: History) -> RunDetails:
    """Return a History as the store would show it."""
    from ...server.store import RunDetails, RunOverview

    experiment, rounds = history.played, history.rounds
    described = {} if experiment is None else dict(experiment.describe())
    noise = history.privacy.get("noise")
    now = datetime.now(UTC).isoformat()
    overview = RunOverview(
        history.run or "not stored",
        history.experiment,
        "finished",
        history.stopped_early,
        rounds[-1].round if rounds else 0,
        len(rounds) if experiment is None else experiment.rounds,
        0 if experiment is None else experiment.seed,
        now,
        now,
        rounds[-1].epsilon if rounds else None,
        rounds[-1].metrics if rounds else {},
    )
    return RunDetails(overview, _totals(rounds), described, {} if noise is None else {"noise": noise})


def _totals(rounds: Sequence[RoundRecord]) -> RunTotals | None:
    from ...server.store import RunTotals

    if not rounds:
        return None
    sent = [count for record in rounds for count in (record.bytes_up, record.bytes_down) if count is not None]
    measured = [record.metrics for record in rounds if record.eval_seconds is not None]
    seconds = sum(record.seconds + (record.eval_seconds or 0.0) for record in rounds)
    failures = sum(record.failures for record in rounds)
    return RunTotals(seconds, sum(sent) if sent else None, failures, measured[-1] if measured else {})


def picture_of(experiment: Experiment) -> tuple[Any, str]:
    """Draw the population and describe it in figures, as text.

    Errors: an UmbelError where its data cannot be read.
    """
    from ...data.summary import plot_population, summarize

    return plot_population(experiment.population), str(summarize(experiment.population))
