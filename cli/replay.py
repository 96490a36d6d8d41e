"""`umbel replay`: one client's round of a stored run, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..core.errors import ConfigError
from ..core.loading import load_experiment
from ..core.quiet import without_native_logs
from ..core.types import ClientUpdate, Failure, Weighted, json_float
from ..studies.replay import Replay, replay
from .console import exclusive_output, print_table, to_json
from .options import JsonOption, StoreKeyOption, StoreOption, WorkersOption
from .run import DEFAULT_STORE, Request, named_store_key, resumed


def replay_command(
    run: Annotated[str, typer.Argument(help="Its id, the beginning of one, or latest.", show_default=False)],
    round: Annotated[int, typer.Option(min=1, help="Number of the round.", show_default=False)],
    client: Annotated[int, typer.Option(min=0, help="Number of the client.", show_default=False)],
    experiment: Annotated[
        str | None, typer.Option(metavar="FILE", help="The run's experiment, where it is not one of Umbel's own.")
    ] = None,
    workers: WorkersOption = None,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.npz", help="Keep what it started from, and sent.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play one client's round again: bit for bit as it was, and once more eagerly, so that breakpoints stop inside.

    An error in it names the batch. Refused of a run with a privacy plan or a hidden sum.
    """
    if output is not None and output.suffix != ".npz":
        raise ConfigError(f"expected output={str(output)!r} to end in .npz")
    stream = exclusive_output() if as_json else None
    from ..server.store import Store

    with named_store_key(store_key), Store.open(store, create=False, key=store_key) as opened:
        with without_native_logs():
            request = Request(reference=experiment, store=store, resume=run)
            reference, overrides = resumed(request, opened.load_run(run))
            chosen = load_experiment(reference, overrides)
        found = replay(chosen, opened, run, round=round, client=client, workers=workers)
    if output is not None:
        _keep(found, output)
    if stream:
        print(to_json(_row(found)), file=stream)
    else:
        _report(found)


def _keep(found: Replay, path: Path) -> None:
    arrays = {f"before/{name}": array for name, array in found.spec.unflatten(found.params).items()}
    arrays |= {f"delta/{name}": array for name, array in found.deltas().items()}
    try:
        with open(path, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place") from error


def _row(found: Replay) -> dict[str, Any]:
    """Return a replay as JSON shows it."""
    row: dict[str, Any] = {"run": found.run, "round": found.round, "client": found.client, "checked": found.is_checked}
    if isinstance(found.sent, Failure):
        return row | {"failure": found.sent.reason, "detail": found.sent.detail}
    norms = {name: float(np.linalg.norm(array)) for name, array in found.deltas().items()}
    row |= {"weight": found.sent.weight, "norm": float(np.linalg.norm(found.sent.delta)), "norms": norms}
    return row | {"metrics": _metrics(found.sent), "eager_difference": found.difference}


def _metrics(update: ClientUpdate) -> dict[str, Any]:
    means = {name: value.mean() for name, value in update.metrics.items() if isinstance(value, Weighted)}
    return {name: json_float(value) for name, value in means.items()}


def _report(found: Replay) -> None:
    """Print what the client sent."""
    sent = found.sent
    if isinstance(sent, Failure):
        print(f"client {found.client} left out of round {found.round} ({sent.reason}): {sent.detail}")
        return
    deltas, before = found.deltas(), found.spec.unflatten(found.params)
    rows = [
        [name, "×".join(map(str, delta.shape)), *(f"{np.linalg.norm(array):.4g}" for array in (before[name], delta))]
        for name, delta in deltas.items()
    ]
    print_table(["variable", "shape", "norm before", "norm of the update"], rows)
    measured = "  ".join(f"{name} {value:.4f}" for name, value in _metrics(sent).items() if isinstance(value, float))
    print(f"weight {sent.weight:g}  {measured}".rstrip())
    if found.is_checked:
        print("the whole round was played again, and came to the record that the run has")
    difference = found.difference
    if difference is not None:
        print("eagerly: equal bits" if difference == 0 else f"eagerly: equal to {difference:.2g}, rounding")
