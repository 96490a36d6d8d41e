"""Importance of settings in runs that were played with different ones, by the functional analysis of variance.

Hutter, Hoos, Leyton-Brown 2014: An Efficient Approach for Assessing Hyperparameter Importance.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

LEAST = 4  # runs with which a share means anything


def importance_of(
    axes: Sequence[Mapping[str, Any]], settings: Sequence[Sequence[str]], values: Sequence[float]
) -> dict[str, float]:
    """Return each setting's share of the values' variance; nothing where too few runs tell, or Optuna is missing.

    axes: {"path", "low", "high", "log"} for numbers, {"path", "values"} for others. settings: of each run, as text, in
    the order of axes.
    """
    is_told = len(axes) > 1 and len(values) >= LEAST and len(set(values)) > 1
    if not is_told or importlib.util.find_spec("optuna") is None:
        return {}
    from .sweep import imported

    optuna = imported()
    distributions = {axis["path"]: _distribution(optuna, axis) for axis in axes}
    study = optuna.create_study()
    for chosen, value in zip(settings, values, strict=True):
        taken = {
            axis["path"]: text if "values" in axis else float(text) for axis, text in zip(axes, chosen, strict=True)
        }
        study.add_trial(optuna.trial.create_trial(params=taken, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in shares.items()}


def _distribution(optuna: Any, axis: Mapping[str, Any]) -> Any:
    if "values" in axis:
        return optuna.distributions.CategoricalDistribution(tuple(axis["values"]))
    return optuna.distributions.FloatDistribution(axis["low"], axis["high"], log=axis["log"])
