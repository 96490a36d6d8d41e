"""MLflow: a run of its own in the tracking server, or in a database on this machine."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tracker import Ending, TrackedRun, Tracker, imported

LONGEST = 6000  # most characters of a parameter's value
BATCH = 100  # most parameters in a call
UNKNOWN = re.compile(r"[^\w\-. :/]")  # characters that MLflow takes in no name
SECONDS = "run/seconds"  # a number that every round has
STATUS: Mapping[Ending, str] = {"finished": "FINISHED", "failed": "FAILED", "paused": "KILLED"}
RUN_TAG = "umbel.run"  # tag by which a resumed run is found again


class MLflow(Tracker):
    """Writes a run into MLflow's experiment of the same name.

    MLflow's telemetry is left off unless MLFLOW_DISABLE_TELEMETRY says otherwise.

    Parameters
    ----------
    uri
        The address of the tracking server, or "sqlite:///mlflow.db"; None: MLFLOW_TRACKING_URI, or MLflow's own
        default.
    experiment
        MLflow's experiment; None: named as Umbel's.

    Raises
    ------
    ConfigError
        Where MLflow is not installed.
    """

    def __init__(self, uri: str | None = None, experiment: str | None = None):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell others that a run was begun
        imported("mlflow", "mlflow")
        self.uri = uri
        self.experiment = experiment
        self._client: Any = None
        self._id: str | None = None

    def begin(self, tracked: TrackedRun) -> int:
        """Make a run with the settings as its parameters, or find the one that is resumed."""
        logging.getLogger("mlflow.store.db.utils").setLevel(
            logging.WARNING
        )  # else it tells of each table that it makes
        client = self._client = imported("mlflow.tracking", "mlflow").MlflowClient(self.uri)
        name = self.experiment or tracked.experiment
        found = client.get_experiment_by_name(name)
        place = client.create_experiment(name) if found is None else found.experiment_id
        if tracked.run is not None and tracked.is_resumed:
            runs = client.search_runs([place], f"tags.`{RUN_TAG}` = '{tracked.run}'")
            if runs:
                self._id = runs[0].info.run_id
                client.update_run(self._id, status="RUNNING")
                return max((one.step for one in client.get_metric_history(self._id, SECONDS)), default=0)
        tags = {} if tracked.run is None else {RUN_TAG: tracked.run}
        self._id = client.create_run(place, tags=tags, run_name=tracked.run or tracked.experiment).info.run_id
        entities = imported("mlflow.entities", "mlflow")
        params = [
            entities.Param(UNKNOWN.sub("_", path), text[:LONGEST] or "none") for path, text in tracked.settings.items()
        ]
        for start in range(0, len(params), BATCH):
            client.log_batch(self._id, params=params[start : start + BATCH])
        return 0

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a round's numbers, its number their step."""
        metric, now = imported("mlflow.entities", "mlflow").Metric, int(1000 * time.time())
        metrics = [metric(UNKNOWN.sub("_", name), number, now, round) for name, number in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def keep(self, files: Sequence[Path], ending: Mapping[str, str]) -> None:
        """Store the model's files as artifacts, and what the run ended with as tags."""
        for file in files:
            self._client.log_artifact(self._id, str(file), "model")
        for name, text in ending.items():
            self._client.set_tag(self._id, f"umbel.{name}", text)

    def end(self, ending: Ending) -> None:
        """Set the run's status."""
        if self._id is not None:
            self._client.set_terminated(self._id, STATUS[ending])
            self._id = None
