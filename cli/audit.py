"""`umbel audit`: the attacks on a stored run, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError, UmbelError
from ..core.system.backend import require_tensorflow
from ..core.system.quiet import without_native_logs
from .console import print_table, to_json
from .options import StoreOption
from .run import DEFAULT_STORE, Request, resumed

if TYPE_CHECKING:  # TensorFlow and SQLAlchemy are imported when an audit begins
    from ..server.store import StoredRun
    from ..studies.audit import Audit, Finding


FIGURES = {
    "failure oracle": "the form of a reply tells in {advantage:.0%}",
    "repeated rounds": "{replies:.0f} replies, ε = {epsilon:.3g}",
    "low bits": "they tell in {advantage:.0%}",
    "decrypting clients": "what they see correlates {correlation:.2f}",
    "roll of three": "the victim's update, correlation {correlation:.2f}",
    "inversion": "reconstructions correlate {correlation:.2f}",
    "membership": "AUC {auc:.2f}, {true_positives:.1%} found at 1 % false alarms, ε ≥ {lower:.2g}",
    "canaries": "ε about {epsilon:.2g}, at least {epsilon_at_least:.2g}",
}


def audit(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or latest.")],
    experiment: Annotated[
        str | None, typer.Argument(help="The run's .py file, if its experiment is not one of Umbel's own.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--experiment", metavar="FILE.py", help="The same, as an option."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting that the run was started with; may be repeated."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=10, help="Number of clients to add, and of directions to compare with.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the attacks' own randomness.")] = 0,
    store: StoreOption = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per attack.")] = False,
) -> None:
    """Attack a run, and compare what is found with what was claimed.

    The attacks are canaries (clients with known updates; trains the run again), membership inference, gradient
    inversion, and one on each promise that the run makes: that failures tell nothing, that a client counts its replies
    itself, that low bits tell nothing, that no client decrypts what is not noisy, that no sum is of three.

    Each is also tried without protection: an attack that fails even there is inconclusive.

    Exits with 1 when an attack refutes the run's ε, or breaks a promise.
    """
    from ..server.store import Store

    if experiment is not None and file is not None:
        raise ConfigError(f"the experiment is named twice, {experiment!r} and --experiment {file!r}; name it once")
    request = Request(reference=experiment or file, settings=settings or [], store=store, resume=run)
    with Store.open(store, create=False) as opened:
        stored = opened.load_run(run)
    with without_native_logs():
        auditing = prepared(request, stored, canaries, seed)
    findings = []
    for finding in auditing.findings():
        findings.append(finding)
        if as_json:
            print(to_json(finding._asdict() | {"run": stored.run, "epsilon_claimed": auditing.claimed}), flush=True)
    if not as_json:
        report(findings, auditing.claimed, auditing.delta)
    check_verdicts(findings, auditing.claimed)


def check_verdicts(findings: Sequence[Finding], claimed: float | None) -> None:
    """Raise UmbelError where an attack found more than was claimed, or broke a promise."""
    refuted = [finding.attack for finding in findings if finding.verdict == "exceeds the claim"]
    if refuted:
        raise UmbelError(f"{', '.join(refuted)}: found more than the claimed ε = {claimed:.4g}; do not release")
    broken = [finding.attack for finding in findings if finding.verdict == "breaks the promise"]
    if broken:
        raise UmbelError(f"{', '.join(broken)}: succeeded, and the run promises that they do not; do not release")


def prepared(request: Request, stored: StoredRun, canaries: int, seed: int) -> Audit:
    """Prepare the attacks on a stored run, and import TensorFlow. Errors: ConfigError for a changed experiment."""
    from ..core.reading.loading import load_experiment
    from ..runtimes.simulation import prepare
    from ..studies.audit import Audit

    experiment = load_experiment(*resumed(request, stored))
    stored.check_goes_on(experiment)
    require_tensorflow("An audit trains, and inverts gradients,")
    auditing = Audit(experiment, stored, canaries, seed)
    prepare(experiment.resolved)
    from ..clients.tensorflow import engine  # noqa: F401  imports TensorFlow

    return auditing


def report(findings: list[Finding], claimed: float | None, delta: float) -> None:
    """Print the findings as a table, and the claim above it."""
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
