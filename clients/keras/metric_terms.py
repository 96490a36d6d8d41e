"""Terms that a run agrees on about its model's metrics: how their states join, and which values are made of them.

It is found once, by whoever builds the model first, and taken over by all others: a trial that fell out otherwise on
another client would give states that do not fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from ...core.errors import ConfigError
from ...core.types import Join
from ..engine import StepName

STEPS: tuple[StepName, ...] = ("train", "test")


class UnitTerms(NamedTuple):
    """One metric of the model."""

    kind: str  # name of the metric's class
    shapes: tuple[tuple[int, ...], ...]  # shapes of the metric's variables
    joins: tuple[Join, ...]  # one per variable; () where the state does not add up: its values are averaged


class Averaged(NamedTuple):
    """A value of a metric whose state does not add up: its mean over calls, by their examples."""

    name: str
    unit: int
    path: tuple[str, ...]  # keys into the metric's result
    shape: tuple[int, ...]


class Tracked(NamedTuple):
    """A value that a step returns and no metric tracks: its mean over batches, by their examples."""

    name: str
    shape: tuple[int, ...]


class Reported(NamedTuple):
    """A value that is made of one state."""

    name: str  # name under which Keras logs it
    key: str  # name under which the state travels
    path: tuple[str, ...]  # keys into the metric's result


class StepTerms(NamedTuple):
    """Measurements of train_step or test_step."""

    states: tuple[tuple[str, int], ...]  # (name under which a state travels, number of its unit)
    averaged: tuple[Averaged, ...]
    tracked: tuple[Tracked, ...]
    reported: tuple[Reported, ...]


class MetricTerms(NamedTuple):
    """The metrics of a model, and what its steps report."""

    units: tuple[UnitTerms, ...]
    train: StepTerms
    test: StepTerms

    def of(self, step: StepName) -> StepTerms:
        """Return the terms of one step."""
        return self.train if step == "train" else self.test

    def to_json(self) -> str:
        """Write one line of text; see `from_json`."""
        return json.dumps(self, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> MetricTerms:
        """Read what `to_json` wrote. Errors: ConfigError for anything else."""
        try:
            units, train, test = json.loads(text)
            return MetricTerms(tuple(_unit(*unit) for unit in units), _step(*train), _step(*test))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"expected the terms that metrics travel on, got {text[:80]!r}") from error

    def check(self, metrics: Sequence[keras.metrics.Metric]) -> None:
        """Raise ConfigError unless these are the metrics that the terms are about."""
        expected = [(unit.kind, unit.shapes) for unit in self.units]
        actual = [(type(metric).__name__, shapes_of(metric)) for metric in metrics]
        if expected != actual:
            raise ConfigError(f"expected a model with the metrics {_brief(expected)}, got {_brief(actual)}")


def sums_of(variables: Sequence[Any]) -> tuple[Join, ...]:
    """Return the joins of a metric whose variables are all sums."""
    return tuple("sum" for _ in variables)


def shapes_of(metric: keras.metrics.Metric) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a metric's variables."""
    return tuple(tuple(int(size) for size in variable.shape) for variable in metric.variables)


def _unit(kind: str, shapes: list, joins: list) -> UnitTerms:
    return UnitTerms(str(kind), tuple(map(tuple, shapes)), tuple(joins))


def _step(states: list, averaged: list, tracked: list, reported: list) -> StepTerms:
    return StepTerms(
        tuple((key, int(unit)) for key, unit in states),
        tuple(Averaged(name, int(unit), tuple(path), tuple(shape)) for name, unit, path, shape in averaged),
        tuple(Tracked(name, tuple(shape)) for name, shape in tracked),
        tuple(Reported(name, key, tuple(path)) for name, key, path in reported),
    )


def _brief(metrics: Sequence[tuple[str, tuple]]) -> str:
    return ", ".join(f"{kind}{[list(shape) for shape in shapes]}" for kind, shapes in metrics) or "none"
