"""Weights & Biases, online or offline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .tracker import Ending, TrackedRun, Tracker, imported

STEP = "round"


class WeightsAndBiases(Tracker):
    """Writes a run into a project of Weights & Biases.

    Code and console are not sent; the machine's statistics are.

    Parameters
    ----------
    project
        None: named as the experiment.
    mode
        None: as WANDB_MODE says, else online. "offline" writes to the folder wandb, which `wandb sync` sends later.

    Raises
    ------
    ConfigError
        Where its package is not installed.
    """

    def __init__(self, project: str | None = None, mode: Literal["online", "offline"] | None = None):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would tell others of errors here
        imported("wandb", "wandb")
        self.project = project
        self.mode = mode
        self._run: Any = None

    def begin(self, tracked: TrackedRun) -> int:
        """Open a run with the settings as its configuration; one that is resumed goes on where it is."""
        wandb = imported("wandb", "wandb")
        self._run = wandb.init(
            project=self.project or tracked.experiment,
            id=tracked.run,
            name=tracked.run,
            config=dict(tracked.settings),
            mode=self.mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        return max(0, int(self._run.starting_step) - 1)

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a round's numbers, its number their step."""
        self._run.log({STEP: round, **numbers}, step=round)

    def keep(self, files: Sequence[Path], ending: Mapping[str, str]) -> None:
        """Store the model's files as an artifact, and what the run ended with in the summary."""
        artifact = imported("wandb", "wandb").Artifact("model", "model", metadata=dict(ending))
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)
        self._run.summary.update(dict(ending))

    def end(self, ending: Ending) -> None:
        """Close the run: failed where an error ended it, or where it was paused."""
        if self._run is not None:
            self._run.finish(exit_code=0 if ending == "finished" else 1)
            self._run = None
