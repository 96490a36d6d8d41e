"""`umbel report`: stored runs as one HTML file for reviewers and auditors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError, StoreError
from ..core.system.quiet import without_native_logs
from .options import StoreKeyOption, StoreOption
from .run import DEFAULT_STORE, Request, resumed

if TYPE_CHECKING:
    from ..core.experiment import Experiment
    from ..server.store import Store


def report(
    run: Annotated[list[str], typer.Argument(metavar="RUN…", help="Ids of runs, beginnings of one, or latest.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write, .html.")
    ] = "report.html",
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py",
            help="File of the runs' experiment, if it is not one of Umbel's own; says who has what data.",
        ),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of what umbel audit RUN --json printed, of these runs.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
) -> None:
    """Write one self-contained HTML file about runs: settings, curves, promises, costs, and how to repeat them.

    Several runs are also shown beside one another.
    """
    from ..server.store import Store
    from ..studies import report as reports

    if Path(output).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"expected --output={output!r} to end in .html")
    findings = None if audit is None else reports.read_findings(audit)
    with Store.open(store, create=False, key=store_key) as opened, without_native_logs():
        contents = [
            reports.of_run(opened, one, played(opened, one, experiment, store), findings) for one in dict.fromkeys(run)
        ]
    try:
        reports.write(contents, Path(output))
    except OSError as error:
        raise ConfigError(f"cannot write --output={output!r}: {error.strerror or error}") from error
    print(output)


def played(store: Store, run: str, reference: str | None, url: str) -> Experiment | None:
    """Return the experiment of a run, as it was run.

    None where it is not one of Umbel's own, and no file is named.

    Errors: ConfigError for a file that defines another.
    """
    from ..core.reading.loading import load_experiment

    request = Request(reference=reference, store=url, resume=run)
    try:
        stored = store.load_run(run)
    except StoreError:
        if reference is not None:
            raise
        return None  # of an earlier version, whose checkpoints are not read
    try:
        found = load_experiment(*resumed(request, stored))
        stored.check_goes_on(found)
    except ConfigError:
        if reference is not None:
            raise
        return None
    return found
