"""Debugging: a client takes its steps alone and uncompiled, and an error names client, round and batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import ClientError
from ..engine import TrainTask


class Watched:
    """A client's steps, counted, so that what goes wrong is told with its place."""

    def __init__(self, task: TrainTask):
        self._task, self._taken = task, 0

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same step, whose errors are a ClientError that names client, round and batch."""

        def watched(*arguments: Any) -> Any:
            try:
                state = step(*arguments)
            except Exception as error:
                said = str(error) if isinstance(error, ClientError) else f"{type(error).__name__}: {error}"
                where = {"round": self._task.round, "client": self._task.client, "batch": self._taken}
                raise ClientError(said, **where) from error
            self._taken += 1
            return state

        return watched


def check_loss(logs: Any) -> None:
    """Raise ClientError for a loss that is not finite, at the batch where it first appears."""
    loss = float(logs.get("loss", 0.0)) if isinstance(logs, Mapping) else 0.0
    if not math.isfinite(loss):
        raise ClientError(f"the loss is {loss}")
