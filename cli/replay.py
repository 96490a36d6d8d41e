"""`umbel replay`: a stored run again, or one client's round of it."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer

from ..core.errors import ConfigError
from ..core.reading.loading import load_experiment
from ..core.system.quiet import without_native_logs
from ..core.types import ClientUpdate, Failure, Weighted, json_float
from ..studies.replay import Replay, Replayed, replay, replay_run
from .console import exclusive_output, print_table, to_json
from .options import JsonOption, StoreKeyOption, StoreOption, WorkersOption
from .run import DEFAULT_STORE, Request, named_store_key, resumed


def replay_command(
    run: Annotated[str, typer.Argument(help="Its id, the beginning of one, or latest.", show_default=False)],
    round: Annotated[
        int | None, typer.Option(min=1, help="Number of the round; none: the whole run.", show_default=False)
    ] = None,
    client: Annotated[
        int | None, typer.Option(min=0, help="Number of the client; none: the whole run.", show_default=False)
    ] = None,
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
    """Play a run again in a simulation, and hold every round and the model to its bits; or one client's round of it.

    An asynchronous run among real devices is played in the order in which its updates arrived. A client's round is
    played once more eagerly, so that breakpoints stop inside; an error in it names the batch. Refused of a run with a
    privacy plan or a hidden sum.
    """
    if (round is None) != (client is None):
        raise ConfigError("expected both --round and --client, for one client's round, or neither, for the whole run")
    if output is not None and (output.suffix != ".npz" or round is None):
        raise ConfigError(f"expected output={str(output)!r} to end in .npz, and to be of --round and --client")
    stream = exclusive_output() if as_json else None
    from ..server.store import Store

    with named_store_key(store_key), Store.open(store, create=False, key=store_key) as opened:
        with without_native_logs():
            request = Request(reference=experiment, store=store, resume=run)
            reference, overrides = resumed(request, opened.load_run(run))
            chosen = load_experiment(reference, overrides)
        if round is None or client is None:
            _report_run(replay_run(chosen, opened, run, workers=workers), stream)
            return
        found = replay(chosen, opened, run, round=round, client=client, workers=workers)
    if output is not None:
        _keep(found, output)
    if stream:
        print(to_json(_row(found)), file=stream)
    else:
        _report(found)


def _report_run(found: Replayed, stream: IO[str] | None) -> None:
    """Print what a whole run came to once more, which is what it had come to."""
    rounds, digest = len(found.history.rounds), found.history.params_sha256
    if stream:
        print(
            to_json({"run": found.run, "rounds": rounds, "landings": found.landings, "params_sha256": digest}),
            file=stream,
        )
        return
    order = f", {found.landings} updates in the order in which they had arrived" if found.landings else ""
    print(f"{rounds} rounds were played again{order}: every round has the record's numbers")
    print(f"the model has the run's bits: {digest}")


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
