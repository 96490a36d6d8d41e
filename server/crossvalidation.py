"""Federated cross-validation: one run per fold, and the spread of what was held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.protocols import Population, Runtime
from ..core.validation import require
from .history import History
from .loop import run

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True)
class CrossValidation:
    """One history per fold."""

    histories: Sequence[History]

    def scores(self, metric: str = "validation_accuracy") -> np.ndarray:
        """The metric after each fold's last round: shape (folds,)."""
        return np.array([history.column(metric)[-1] for history in self.histories])

    def summary(self, metric: str = "validation_accuracy") -> str:
        """ "validation_accuracy 0.912 ± 0.013 over 5 folds": mean and standard deviation."""
        scores = self.scores(metric)
        return f"{metric} {scores.mean():.3f} ± {scores.std(ddof=1):.3f} over {len(scores)} folds"


def cross_validate(
    experiment: Experiment,
    runtime: Runtime,
    folds: Iterable[tuple[Population, Population]],
    *,
    store: str | Store | None = None,
) -> CrossValidation:
    """Run experiment once per (train, validation) of folds, evaluating on what is held out.

        cross_validate(experiment, Simulation(), kfold_within(experiment.population, 5))

    Errors: ConfigError for fewer than two folds; what `run` raises.
    """
    require(
        isinstance(folds, Iterable),
        f"expected folds={folds!r} to be pairs: data.kfold_within(experiment.population, 5)",
    )
    histories = []
    for number, (train, validation) in enumerate(folds, 1):
        fold = dataclasses.replace(
            experiment, name=f"{experiment.name}-fold{number}", population=train, validation=validation
        )
        histories.append(run(fold, runtime, store=store))
    if len(histories) < 2:
        raise ConfigError(f"expected at least two folds, got {len(histories)}")
    return CrossValidation(tuple(histories))
