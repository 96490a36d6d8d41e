"""What a model measured while it trained or was evaluated, as sums over examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from ..core.errors import ConfigError
from ..core.types import Weighted


def metric_sums(model: keras.Model, examples: tf.Tensor) -> tuple[list[str], tf.Tensor]:
    """Names and (sum, count) pairs, shape (names, 2), of all that the model measured since its metrics were reset.

    A mean (loss, accuracy) gives its own sum and count. Another metric (AUC) has no sum over clients: its value is
    weighted by the number of examples.
    """
    means = {metric.name: metric for metric in walk_metrics(model.metrics) if isinstance(metric, keras.metrics.Mean)}
    names, sums = [], []
    for name, value in sorted(flat_results(model.get_metrics_result())):
        count = tf.cast(examples, tf.float32)
        if name in means and name != "loss":
            count = tf.cast(tf.convert_to_tensor(means[name].count), tf.float32)
        names.append(name)
        sums.append(tf.stack([tf.cast(value, tf.float32) * count, count]))
    return names, tf.stack(sums) if sums else tf.zeros([0, 2])


def flat_results(results: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Metric results without nesting: {"a": {"b": 1}} is ("a_b", 1); a vector of n > 1 numbers is "a_0" to "a_(n-1)".

    Errors: ConfigError for a matrix.
    """
    for name, value in results.items():
        if isinstance(value, dict):
            yield from flat_results(value, f"{prefix}{name}_")
            continue
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) > 1:
            raise ConfigError(f"metric {prefix + name!r} has the shape {shape}; make it a number or a vector")
        if not shape:
            yield prefix + name, value
        for position in range(shape[0] if shape else 0):  # F1Score: a number per class
            yield prefix + name + (f"_{position}" if shape[0] > 1 else ""), value[position]


def walk_metrics(metrics: Sequence[Any]) -> Iterator[Any]:
    """Every metric, containers opened."""
    for metric in metrics:
        inner = getattr(metric, "metrics", None)
        if inner:
            yield from walk_metrics(inner)
        else:
            yield metric


def named_sums(names: Sequence[str], sums: tf.Tensor) -> dict[str, Weighted]:
    """Metric sums by name."""
    return {
        name: Weighted(float(total), float(count)) for name, (total, count) in zip(names, sums.numpy(), strict=True)
    }
