"""The ServerApp: the run of an experiment over the grid, and its records on their way to whoever submitted it.

Events, each one JSON object: "start" {run, records}, "round" {record, failures}, "final" (History.final), and "error"
{kind, message} for a run that failed, which Flower then lists as failed too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ...core.errors import UmbelError
from ...core.loading import load_experiment
from ...core.types import Failure, RoundRecord
from ...server import History, run
from ...server.monitoring import relayed
from .private import push_event
from .runtime import FlowerRuntime

# The store's URL may hold a password. A run's configuration is sent to every client; this process's environment is not.
STORE_VARIABLE = "UMBEL_STORE"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run's configuration names.

    Keys: experiment (name or path), overrides (JSON list of key=value), clients (to wait for), timeout_seconds,
    over_selection, join_seconds, compile, resume (a run's id, or ""). The store's URL is read from the variable
    UMBEL_STORE.
    """
    config = context.run_config
    try:
        experiment = load_experiment(str(config["experiment"]), json.loads(str(config["overrides"])))
        runtime = FlowerRuntime(
            grid,
            clients=int(config["clients"]),
            timeout_seconds=float(config["timeout_seconds"]),
            over_selection=float(config["over_selection"]),
            join_seconds=float(config["join_seconds"]),
            compile=str(config["compile"]),  # type: ignore[arg-type]
        )
        store, resume = os.environ.get(STORE_VARIABLE), str(config["resume"]) or None
        try:
            with relayed() as monitors:
                run(experiment, runtime, store=store or None, resume=resume, watchers=[Reporter(grid), *monitors])
        finally:
            runtime.close()
    except Exception as error:
        kind = type(error).__name__
        message = str(error) if isinstance(error, UmbelError) else f"{kind}: {error}"
        push_event(grid, "error", {"kind": kind, "message": message})
        raise  # Flower must not list this run as completed


class Reporter:
    """A Watcher that sends what it sees to the submitter, as the run's events."""

    def __init__(self, grid: Grid):
        self.grid = grid

    def on_start(self, experiment: Any, runtime: Any, run: str | None, records: Sequence[RoundRecord]) -> None:
        """The run's id in the store, and the records of a resumed run."""
        push_event(self.grid, "start", {"run": run, "records": [record._asdict() for record in records]})

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """One finished round."""
        push_event(self.grid, "round", {"record": record._asdict(), "failures": [list(one) for one in failures]})

    def on_end(self, history: History) -> None:
        """The final object."""
        push_event(self.grid, "final", history.final())
