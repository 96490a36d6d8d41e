"""Reweighting: clients' say in the mean, changed from round to round by what they lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .errors import IncompatibleError
from .types import State

if TYPE_CHECKING:
    from .experiment import Experiment


class Reweighting(Protocol):
    """A frozen dataclass; state in, state out."""

    def init(self, sizes: np.ndarray) -> State:
        """sizes: what each client weighs by itself, shape (clients,)."""

    def factors(self, state: State, clients: Sequence[int]) -> np.ndarray:
        """What those clients' weights are multiplied by: ≥ 0, shape (len(clients),)."""

    def heard(self, state: State, losses: Mapping[int, float]) -> State:
        """After a round. losses: each client's mean training loss, of those whose updates were counted."""


def check_reweighting(experiment: Experiment) -> None:
    """Errors: IncompatibleError for what hides a client's loss, or has no cohorts to weigh."""
    reweighting = experiment.reweighting
    if reweighting is None:
        return
    for name in ("plan", "aggregation"):
        if (part := getattr(experiment, name)) is not None:
            raise IncompatibleError(f"{reweighting!r} needs each client's loss, which {name}={part!r} hides")
    if experiment.local.per_example is not None:
        raise IncompatibleError(
            f"{reweighting!r} needs each client's loss, which {experiment.local.per_example!r} does not report"
        )
    for kind, attribute in (("is asynchronous", "receive"), ("trains in halves", "handed_on")):
        if hasattr(experiment.strategy, attribute):
            raise IncompatibleError(
                f"{reweighting!r} weighs the cohorts of plain rounds; {experiment.strategy!r} {kind}"
            )
