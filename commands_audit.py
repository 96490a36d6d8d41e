"""`umbel audit`: the attacks on a stored run, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_table, to_json, without_native_logs
from .core.errors import UmbelError
from .launch import DEFAULT_STORE, Request, resumed

if TYPE_CHECKING:  # TensorFlow and SQLAlchemy are imported when an audit begins
    from .audit import Finding


FIGURES = {
    "inversion": "reconstructions correlate {correlation:.2f}",
    "membership": "AUC {auc:.2f}, {true_positives:.1%} found at 1 % false alarms, ε ≥ {lower:.2g}",
    "canaries": "ε about {epsilon:.2g}, at least {epsilon_at_least:.2g}",
}


def audit(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or latest.")],
    experiment: Annotated[
        str | None, typer.Argument(help="The run's .py file, if its experiment is not one of Umbel's own.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As the run was started with.")
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=10, help="Clients to add, and as many directions to compare with.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Of the attacks' own randomness.")] = 0,
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="UMBEL_STORE", help="Where the run is kept.")
    ] = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per attack on standard output.")] = False,
) -> None:
    """Attack a run, and compare what is found with what was claimed.

    Canaries (clients with known updates; trains the run again), membership inference, gradient inversion.

    Each is also tried without protection: an attack that fails even there is inconclusive.

    Exits with 1 when an attack refutes the run's ε.
    """
    from .core.loading import load_experiment
    from .server.store import Store

    request = Request(experiment, settings or [], "simulation", None, None, store, run, "auto", False)
    with Store.open(store, create=False) as opened:
        stored = opened.load_run(run)
    with without_native_logs():
        from .audit import Audit
        from .runtimes.simulation import prepare

        found = load_experiment(*resumed(request, stored))
        found.check_unchanged(stored.description)
        auditing = Audit(found, stored, canaries, seed)
        prepare(found)
        from .clients import worker  # noqa: F401  imports TensorFlow
    findings = []
    for finding in auditing.findings():
        findings.append(finding)
        if as_json:
            print(to_json(finding._asdict() | {"run": stored.run, "epsilon_claimed": auditing.claimed}), flush=True)
    if not as_json:
        report(findings, auditing.claimed, auditing.delta)
    refuted = [finding.attack for finding in findings if finding.verdict == "exceeds the claim"]
    if refuted:
        raise UmbelError(
            f"{', '.join(refuted)}: found more than the claimed ε = {auditing.claimed:.4g}; do not release"
        )


def report(findings: list[Finding], claimed: float | None, delta: float) -> None:
    """The findings as a table, and the claim above it."""
    print("claimed: nothing" if claimed is None else f"claimed: ε = {claimed:.4g} at δ = {delta:g}")
    rows = [
        (
            one.attack,
            one.adversary,
            FIGURES[one.attack].format(**one.found) if one.found else "",
            FIGURES[one.attack].format(**one.control) if one.control else "",
            f"{one.verdict}: {one.why}" if one.why else one.verdict,
        )
        for one in findings
    ]
    print_table(["attack", "by", "found", "without protection", "verdict"], rows)
