"""Directions of a model's metrics, as far as their classes tell: the one place that asks Keras for them."""

from __future__ import annotations

from typing import Any

import keras

from ...core.reading.directions import Directions, Measures, Mode, direction_of, whole
from .reported import flat_logs, metrics_of

WORDS: dict[str | None, Mode] = {"up": "max", "down": "min"}  # Keras's words, and ours
# Directions for the classes about which Keras itself says nothing. A subclass has its base's.
TABLE: dict[type, Mode] = {
    keras.metrics.TruePositives: "max",
    keras.metrics.TrueNegatives: "max",
    keras.metrics.FalsePositives: "min",
    keras.metrics.FalseNegatives: "min",
}


def measures_of(model: keras.Model) -> Measures:
    """Find the metrics of a model that was built and compiled. Its metrics are as they were after the call."""
    cls, base = type(model), keras.Model
    names = list(flat_logs(model.get_metrics_result()))
    methods = ("get_metrics_result", "train_step", "test_step")
    is_keras = {name: getattr(cls, name) is getattr(base, name) for name in methods}
    directions = _directions(model) if is_keras["get_metrics_result"] else {}
    known = {name: direction_of(name, {whole(name): None, **directions}) for name in names}
    return Measures(known, is_complete=all(is_keras.values()))


def direction_of_metric(metric: keras.metrics.Metric) -> Mode | None:
    """Return the way that a metric is to go; None where its class does not tell.

    A subclass that counts or concludes in a way of its own (a signal-to-noise ratio on top of a squared error) is not
    taken to go the way of its base.
    """
    cls = type(metric)
    if not all(_is_of_keras(method) for method in (cls.update_state, cls.result)):
        return None
    # A private attribute: Keras has had it since 3.6, and a test holds every class of keras.metrics to it.
    if (mode := WORDS.get(getattr(metric, "_direction", None))) is not None:
        return mode
    return next((mode for base, mode in TABLE.items() if isinstance(metric, base)), None)


def _directions(model: keras.Model) -> Directions:
    """Find the direction of each metric, by the name that Keras gives it among the others."""
    metrics = metrics_of(model)
    found: dict[str, Mode | None] = {}
    try:
        for metric in metrics:
            metric.result = _itself(metric)  # Keras's own rules then name the metrics in place of their values
        for name, metric in flat_logs(model.get_metrics_result()).items():
            found[name] = direction_of_metric(metric)
    finally:
        for metric in metrics:
            vars(metric).pop("result", None)
    return found


def _itself(metric: keras.metrics.Metric) -> Any:
    """Make a result() that returns the metric."""
    return lambda: metric


def _is_of_keras(function: Any) -> bool:
    """Return whether a method is Keras's own."""
    return str(function.__module__).partition(".")[0] == "keras"
