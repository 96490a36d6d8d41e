"""Counters, gauges and histograms whose labels are closed sets: prometheus-client's, behind a thin wrapper.

Every combination of labels of a counter or histogram exists from the start, counters at 0: a rate is right from the
first event on, and what is rendered has the same number of lines after a year as after a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import prometheus_client
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
OTHER = "other"  # stands for every value of a label that is not listed, where it is listed itself
NAME = re.compile(r"[a-z][a-z0-9_]*")
CREATED = "_created"  # suffix of the series in which prometheus-client writes when another one began


class Registry(Collector):
    """The metrics of a process. Safe for threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def counter(self, name: str, help: str, **labels: Sequence[str]) -> Counter:
        """Make a number that only grows; its name ends in _total. labels: all the values that each can take."""
        return Counter(self._registry, name, help, labels)

    def gauge(self, name: str, help: str, **labels: Sequence[str]) -> Gauge:
        """Make a number that goes up and down; not rendered until it is first set."""
        return Gauge(self._registry, name, help, labels)

    def histogram(self, name: str, help: str, bounds: Sequence[float], **labels: Sequence[str]) -> Histogram:
        """Make counts of values that were at most each of `bounds`, which ascend; with their number and sum."""
        return Histogram(self._registry, name, help, labels, bounds)

    def collect(self) -> Iterator[Metric]:
        """Same as in prometheus-client, without the series that say when another one began."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith(CREATED)]
            yield metric

    def render(self) -> str:
        """Return all metrics, as Prometheus reads them; the content type is CONTENT_TYPE."""
        return prometheus_client.generate_latest(self).decode()


class ClosedLabels:
    """Labels of a metric, and all the values that each can take."""

    def __init__(self, name: str, labels: dict[str, Sequence[str]]):
        for word in (name, *labels, *(value for values in labels.values() for value in values)):
            if not NAME.fullmatch(word):
                raise ValueError(f"expected {word!r} to be a lower-case word with underscores")
        self.name = name
        self._labels = {label: tuple(values) for label, values in labels.items()}

    def place(self, metric: Any, labels: dict[str, str]) -> Any:
        """Return the series of a metric that has these labels.

        Errors: ValueError for a label that is not declared, and a value that is not listed where OTHER is not.
        """
        if labels.keys() != self._labels.keys():
            raise ValueError(f"{self.name} has the labels {', '.join(self._labels) or 'none'}, got {', '.join(labels)}")
        return metric.labels(*(self._listed(label, labels[label]) for label in self._labels)) if labels else metric

    def make_all(self, metric: Any) -> None:
        """Make the series of every combination of labels."""
        if self._labels:
            for values in product(*self._labels.values()):
                metric.labels(*values)

    def _listed(self, label: str, value: str) -> str:
        values = self._labels[label]
        if value in values:
            return value
        if OTHER in values:
            return OTHER
        raise ValueError(f"{self.name}: {label}={value[:80]!r} is not one of {', '.join(values)}")


class Counter:
    """A number per combination of labels that only grows."""

    def __init__(self, registry: CollectorRegistry, name: str, help: str, labels: dict[str, Sequence[str]]):
        self._labels = ClosedLabels(name, labels)
        self._metric = prometheus_client.Counter(name, help, tuple(labels), registry=registry)
        self._labels.make_all(self._metric)

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count so much more. Errors: ValueError for less than 0, and for labels that are not listed."""
        if not amount >= 0:
            raise ValueError(f"{self._labels.name} cannot grow by {amount}")
        self._labels.place(self._metric, labels).inc(amount)


class Gauge:
    """A number per combination of labels, as it is now."""

    def __init__(self, registry: CollectorRegistry, name: str, help: str, labels: dict[str, Sequence[str]]):
        self._labels = ClosedLabels(name, labels)
        # prometheus-client would show one without labels as 0 before it is set.
        self._metric = prometheus_client.Gauge(name, help, tuple(labels), registry=registry if labels else None)
        self._unset = None if labels else registry

    def set(self, value: float, **labels: str) -> None:
        """Set the number to value. Errors: ValueError for labels that are not listed."""
        self._labels.place(self._metric, labels).set(value)
        registry, self._unset = self._unset, None
        if registry is not None:
            registry.register(self._metric)


class Histogram:
    """Counts of values that were at most each bound, per combination of labels."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        help: str,
        labels: dict[str, Sequence[str]],
        bounds: Sequence[float],
    ):
        if not bounds or list(bounds) != sorted(set(bounds)) or not all(map(math.isfinite, bounds)):
            raise ValueError(f"{name}: expected bounds={list(bounds)} to ascend")
        self._labels = ClosedLabels(name, labels)
        self._metric = prometheus_client.Histogram(name, help, tuple(labels), registry=registry, buckets=bounds)
        self._labels.make_all(self._metric)

    def observe(self, value: float, **labels: str) -> None:
        """Count a value. Errors: ValueError for one that is not finite, and for labels that are not listed."""
        if not math.isfinite(value):
            raise ValueError(f"{self._labels.name} cannot count {value}")
        self._labels.place(self._metric, labels).observe(value)
