"""Federated cross-validation: one run per fold, and the spread of what was held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.bases import Population
from ..core.experiment import Experiment
from ..core.runtime import Runtime
from ..core.validation import require, shown
from ..server.arguments import check_experiment
from ..server.history import History
from ..server.loop import run

if TYPE_CHECKING:
    from ..server.store import Store


@dataclass(frozen=True)
class CrossValidation:
    """Results of a cross-validation: one history per fold."""

    histories: Sequence[History]

    def scores(self, metric: str = "validation_accuracy") -> np.ndarray:
        """Return the metric after each fold's last round: shape (folds,)."""
        return np.array([history.curve(metric)[-1] for history in self.histories])

    def summary(self, metric: str = "validation_accuracy") -> str:
        """Summarise as "validation_accuracy 0.912 ± 0.013 over 5 folds": mean and standard deviation."""
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

    Parameters
    ----------
    experiment
        What is run; its population and its validation are each fold's.
    runtime
        Where clients are.
    folds
        Pairs of populations, to train and to evaluate on: `data.kfold_within`, `data.kfold_clients`, or your own.
    store
        Database URL, or an open Store, that keeps each fold as a run; None: in memory.

    Raises
    ------
    ConfigError
        For fewer than two folds.
    UmbelError
        Whatever `run` raises.
    """
    check_experiment(experiment)
    pairs = list(folds) if isinstance(folds, Iterable) else []
    require(
        bool(pairs) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs),
        f"expected folds={shown(folds)} to be pairs: data.kfold_within(experiment.population, 5)",
    )
    require(len(pairs) > 1, f"expected at least two folds, got {len(pairs)}")
    histories = []
    for number, (train, validation) in enumerate(pairs, 1):
        fold = dataclasses.replace(
            experiment, name=f"{experiment.name}-fold{number}", population=train, validation=validation
        )
        histories.append(run(fold, runtime, store=store, watchers=()))
    return CrossValidation(tuple(histories))
