"""Counters, gauges and histograms whose labels are closed sets, and their text for Prometheus.

The format is Prometheus's own, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/
Every combination of labels exists from the start, counters at 0: a rate is right from the first event on, and what is
rendered has the same number of lines after a year as after a second.
"""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"  # stands for every value of a label that is not listed, where it is listed itself
NAME = re.compile(r"[a-z][a-z0-9_]*")

Labels = tuple[str, ...]
Metric = TypeVar("Metric", "Counter", "Gauge", "Histogram")


class Registry:
    """The metrics of a process. Safe for threads."""

    def __init__(self) -> None:
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, help: str, **labels: Sequence[str]) -> Counter:
        """A number that only grows; its name ends in _total. labels: all the values that each can take."""
        return self._add(Counter(name, help, labels))

    def gauge(self, name: str, help: str, **labels: Sequence[str]) -> Gauge:
        """A number that goes up and down; not rendered until it is first set."""
        return self._add(Gauge(name, help, labels))

    def histogram(self, name: str, help: str, bounds: Sequence[float], **labels: Sequence[str]) -> Histogram:
        """How many values were at most each of `bounds`, which ascend; their number and their sum."""
        return self._add(Histogram(name, help, labels, bounds))

    def _add(self, metric: Metric) -> Metric:
        if metric.name in self._metrics:
            raise ValueError(f"there is a metric {metric.name!r} already")
        self._metrics[metric.name] = metric
        return metric

    def render(self) -> str:
        """The whole, as Prometheus reads it; the content type is CONTENT_TYPE."""
        return "".join(f"{line}\n" for metric in self._metrics.values() for line in metric.lines())


class Family:
    """A name, and the combinations of labels below it."""

    kind = ""

    def __init__(self, name: str, help: str, labels: dict[str, Sequence[str]]):
        for word in (name, *labels, *(value for values in labels.values() for value in values)):
            if not NAME.fullmatch(word):
                raise ValueError(f"expected {word!r} to be a lower-case word with underscores")
        self.name, self._help, self._labels = name, help, {label: tuple(values) for label, values in labels.items()}
        self._lock = threading.Lock()

    def _place(self, given: dict[str, str]) -> Labels:
        """The combination meant. Errors: ValueError for a label, or a value without OTHER to stand for it, unlisted."""
        if given.keys() != self._labels.keys():
            raise ValueError(f"{self.name} has the labels {', '.join(self._labels) or 'none'}, got {', '.join(given)}")
        return tuple(self._listed(label, given[label]) for label in self._labels)

    def _listed(self, label: str, value: str) -> str:
        values = self._labels[label]
        if value in values:
            return value
        if OTHER in values:
            return OTHER
        raise ValueError(f"{self.name}: {label}={value[:80]!r} is not one of {', '.join(values)}")

    def _combinations(self) -> Iterator[Labels]:
        return product(*self._labels.values())

    def _head(self) -> list[str]:
        return [f"# HELP {self.name} {self._help}", f"# TYPE {self.name} {self.kind}"]

    def _line(self, suffix: str, place: Labels, value: float, more: Iterable[tuple[str, str]] = ()) -> str:
        pairs = [f'{label}="{text}"' for label, text in [*zip(self._labels, place, strict=True), *more]]
        return f"{self.name}{suffix}{'{' + ','.join(pairs) + '}' if pairs else ''} {number(value)}"


class Counter(Family):
    """A number per combination of labels that only grows."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: dict[str, Sequence[str]]):
        super().__init__(name, help, labels)
        self._values = dict.fromkeys(self._combinations(), 0.0)

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count so much more. Errors: ValueError for less than 0, and for labels that are not listed."""
        if not amount >= 0:
            raise ValueError(f"{self.name} cannot grow by {amount}")
        place = self._place(labels)
        with self._lock:
            self._values[place] += amount

    def lines(self) -> list[str]:
        """The metric as text."""
        with self._lock:
            return self._head() + [self._line("", place, value) for place, value in self._values.items()]


class Gauge(Family):
    """A number per combination of labels, as it is now."""

    kind = "gauge"

    def __init__(self, name: str, help: str, labels: dict[str, Sequence[str]]):
        super().__init__(name, help, labels)
        self._values: dict[Labels, float] = {}

    def set(self, value: float, **labels: str) -> None:
        """The number is now value. Errors: ValueError for labels that are not listed."""
        place = self._place(labels)
        with self._lock:
            self._values[place] = float(value)

    def lines(self) -> list[str]:
        """The metric as text."""
        with self._lock:
            return self._head() + [self._line("", place, value) for place, value in self._values.items()]


class Histogram(Family):
    """How often values fell below each bound, per combination of labels."""

    kind = "histogram"

    def __init__(self, name: str, help: str, labels: dict[str, Sequence[str]], bounds: Sequence[float]):
        super().__init__(name, help, labels)
        if not bounds or list(bounds) != sorted(set(bounds)) or not all(map(math.isfinite, bounds)):
            raise ValueError(f"{name}: expected bounds={list(bounds)} to ascend")
        self._bounds = tuple(map(float, bounds))
        self._counts = {place: [0] * (len(bounds) + 1) for place in self._combinations()}
        self._sums = dict.fromkeys(self._counts, 0.0)

    def observe(self, value: float, **labels: str) -> None:
        """Count a value. Errors: ValueError for one that is not finite, and for labels that are not listed."""
        if not math.isfinite(value):
            raise ValueError(f"{self.name} cannot count {value}")
        place = self._place(labels)
        with self._lock:
            self._counts[place][bisect_left(self._bounds, value)] += 1
            self._sums[place] += value

    def lines(self) -> list[str]:
        """The metric as text."""
        found = self._head()
        with self._lock:
            for place, counts in self._counts.items():
                so_far = 0
                for bound, count in zip([*self._bounds, math.inf], counts, strict=True):
                    so_far += count
                    found.append(self._line("_bucket", place, so_far, [("le", number(bound))]))
                found += [self._line("_sum", place, self._sums[place]), self._line("_count", place, so_far)]
        return found


def number(value: float) -> str:
    """A float as the format writes it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
