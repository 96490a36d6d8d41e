"""`umbel store`: checks of whether a store is sound, and what of it can go."""

from __future__ import annotations

from typing import Annotated

import typer

from ..core.errors import StoreError
from ..server.progress import counted
from .options import StoreKeyOption
from .run import DEFAULT_STORE

app = typer.Typer(no_args_is_help=True, help="Check a store, and delete runs from it.")

StoreOption = Annotated[
    str, typer.Option(metavar="URL", envvar="UMBEL_STORE", help="Which store: sqlite:///FILE.db or postgresql://….")
]


@app.command()
def check(store: StoreOption = DEFAULT_STORE, store_key: StoreKeyOption = None) -> None:
    """Read everything, and say what is damaged, missing or forged, one line each; nothing is changed.

    Exits with 2 where anything is.
    """
    from ..server.store import Store

    with Store.open(store, create=False, key=store_key) as opened:
        found, runs = opened.check(), len(opened.runs())
    for problem in found:
        print(problem)
    if found:
        raise StoreError(f"{counted(len(found), 'problem')} found; what is not named can still be read")
    print(f"sound: {counted(runs, 'run')}")


@app.command()
def delete(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of one, or latest.")],
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Delete a run: its records, checkpoints, ledger, what its clients kept. Versions of models made from it stay."""
    from ..server.store import Store

    with Store.open(store, create=False, key=store_key) as opened:
        found = opened.find(run)
        about = f"run {found.run}: {found.experiment}, {found.state}, {counted(found.rounds_done, 'round')}"
        if not yes:
            typer.confirm(f"Delete {about}?", abort=True)
        opened.delete_run(found.run)
    print(f"deleted {about}")
