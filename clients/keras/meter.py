"""Meter of what a model measures, as the states of its metrics: they add up over batches, chunks and clients.

    call    reset ─► loop of steps ─► read(): every unit's variables in one vector per type
    host    states(): float64, less what a reset leaves ─► joined over chunks and clients ─► results(): values, once

A *unit* is one metric of the model. How each joins, and what it is reported as, is agreed on once for a run: see
`MetricTerms`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ...core.examples import Examples
from ...core.parts.phases import PERSONAL
from ...core.types import OWN_LOSS, Join, Metrics, MetricState, Value, Weighted
from ..engine import Measured
from .agreed import Agreement, agree, losses_of_outputs, resets_of
from .metric_terms import STEPS, Averaged, MetricTerms, StepName, sums_of
from .reported import flat_logs, follow, is_keras_step, metrics_of


class StepMean(keras.metrics.Metric):
    """The mean over a round's examples of a value that a step returns, and that no metric tracks."""

    def __init__(self, shape: tuple[int, ...], name: str):
        super().__init__(name=name, dtype="float32")
        self.total = self.add_variable(shape=shape, initializer="zeros", name="total")
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def update_state(self, value: Any, examples: Any) -> None:
        """Add a batch's value, and the number of its examples."""
        weight = ops.cast(examples, "float32")
        self.total.assign_add(weight * ops.cast(ops.convert_to_tensor(value), "float32"))
        self.count.assign_add(weight)

    def result(self) -> Any:
        """Return Σ examples·value / Σ examples."""
        return keras.ops.divide_no_nan(self.total, self.count)


class Unit:
    """One metric of a model: its variables, what they hold when nothing was measured, and how they join."""

    def __init__(self, metric: keras.metrics.Metric, resets: Sequence[np.ndarray], joins: Sequence[Join]):
        """Take a metric and how it is reset and joined. resets: float64, one array per variable.

        joins: one per variable.
        """
        self.metric, self.variables, self.joins = metric, list(metric.variables), tuple(joins)
        self.resets = [np.asarray(reset, np.float64) for reset in resets]

    @property
    def is_mean(self) -> bool:
        """Return whether its state is a sum and a weight, and its value their quotient."""
        scalar = len(self.variables) == 2 and not any(len(variable.shape) for variable in self.variables)
        result = type(self.metric).result
        return scalar and (result is keras.metrics.Mean.result or result is StepMean.result)

    @property
    def relative_to(self) -> np.ndarray:
        """Numbers to subtract from a state's, so that those of two states join: a sum's reset, shape (n,)."""
        parts = [
            reset.ravel() if join == "sum" else np.zeros(reset.size)
            for reset, join in zip(self.resets, self.joins, strict=True)
        ]
        return np.concatenate([*parts, np.zeros(0)])

    @property
    def runs(self) -> tuple[tuple[Join, int], ...]:
        """Joins of its numbers, as in MetricState."""
        runs: list[tuple[Join, int]] = []
        for join, reset in zip(self.joins, self.resets, strict=True):
            if runs and runs[-1][0] == join:
                runs[-1] = join, runs[-1][1] + reset.size
            else:
                runs.append((join, reset.size))
        return tuple(runs)

    def variables_of(self, numbers: Any) -> list[tuple[keras.Variable, Any]]:
        """Return its variables, and their values in a state. numbers: float64, shape (n,), an array or a tensor."""
        held, start, values = numbers + self.relative_to, 0, []
        for variable, reset in zip(self.variables, self.resets, strict=True):
            part = ops.reshape(held[start : start + reset.size], reset.shape)
            values.append((variable, ops.cast(part, variable.dtype)))
            start += reset.size
        return values

    def value_of(self, numbers: Any) -> Any:
        """Return the metric's result for a state: a tensor, or a dict of them."""
        if type(self.metric).result in ITSELF:
            return numbers[0] if self.relative_to.size == 1 else numbers
        with keras.StatelessScope(state_mapping=self.variables_of(numbers)):
            # A variable's own value: Keras leaves a variable a variable, which has another value out of the scope.
            return keras.tree.map_structure(value_in_scope, self.metric.result())


def value_in_scope(result: Any) -> Any:
    """Return a result as a tensor, with the value that it has where this is called."""
    return ops.convert_to_tensor(result.value if isinstance(result, keras.Variable) else result)


# Results of metrics whose value is their state, which float32 would round above 2²⁴.
ITSELF = (keras.metrics.TruePositives.result, keras.metrics.Sum.result)


@dataclass(frozen=True)
class StatePlace:
    """The place of a state in what `Meter.read` returns."""

    key: str  # name under which the state travels
    unit: Unit
    parts: tuple[tuple[int, int, int], ...]  # number of the vector, start, end; in the order of the unit's numbers
    is_mean: bool


class Column(NamedTuple):
    """The states of one metric, of many clients."""

    numbers: np.ndarray  # float64, a row for each client; of a mean (sum, weight)
    joins: tuple[tuple[Join, int], ...] | None  # as in MetricState; None for a mean


class Meter:
    """The metrics of one build of a model, and the terms that their states travel on."""

    def __init__(self, model: keras.Model, agreement: Agreement):
        """Set the meter up for a model. Errors: ConfigError for a model with other metrics than were agreed on."""
        self.model, self.agreement, self.terms = model, agreement, agreement.terms
        metrics = metrics_of(model)
        self.terms.check(metrics)
        _weigh_losses_as_graphs_do(model)
        resets = resets_of(model, metrics)
        self._units = [
            Unit(metric, values, terms.joins or sums_of(values))  # without joins its state does not travel
            for metric, values, terms in zip(metrics, resets, self.terms.units, strict=True)
        ]
        self._trackers = {step: _trackers(self.terms, step) for step in STEPS}
        self._places = {step: self._laid_out(step) for step in STEPS}

    @staticmethod
    def of(model: keras.Model, sample: Examples, agreement: Agreement | None = None) -> Meter:
        """Set a meter up for a model.

        agreement: what a build before it found; None: find it, with examples of sample.
        """
        return Meter(model, agree(model, sample) if agreement is None else agreement)

    @property
    def variables(self) -> list[tuple[keras.Variable, np.ndarray]]:
        """All variables that measuring changes, and what a reset leaves in them."""
        units = [*self._units, *(unit for step in STEPS for unit in self._trackers[step].values())]
        return [pair for unit in units for pair in zip(unit.variables, unit.resets, strict=True)]

    def joins(self, step: StepName) -> dict[str, tuple[tuple[Join, int], ...]]:
        """Return how the numbers of each state of a step join, by what it travels under; () for a mean."""
        joins = {place.key: () if place.is_mean else place.unit.runs for place in self._places[step]}
        for one in self.terms.of(step).averaged:
            joins[one.name] = (("sum", math.prod(one.shape) + 1),) if one.shape else ()
        return joins

    def reports(self, step: StepName, name: str) -> bool:
        """Return whether a step reports a value of that name."""
        return any(one.name == name for one in self.terms.of(step).reported) or name in self.agreement.derived[step]

    @contextlib.contextmanager
    def tracing(self, step: StepName) -> Iterator[None]:
        """Let a step of Keras's own inside compute no values: nobody reads them, and some cannot be in a graph."""
        if not is_keras_step(self.model, f"{step}_step"):
            yield
            return
        self.model.get_metrics_result = dict
        try:
            yield
        finally:
            del self.model.get_metrics_result

    def track(self, step: StepName, logs: Any, examples: Any) -> None:
        """Add up what a step returned and no metric tracks. examples: number of examples in the batch."""
        if self._trackers[step]:
            values = flat_logs(logs)
            for name, unit in self._trackers[step].items():
                unit.metric.update_state(values[name], examples)

    def read(self, step: StepName) -> list[Any]:
        """Read the states of what a step reports, in a graph: a vector per type, and after them what is averaged."""
        by_type: dict[str, list[Any]] = {}
        for place in self._places[step]:
            for variable in place.unit.variables:
                by_type.setdefault(variable.dtype, []).append(ops.reshape(ops.convert_to_tensor(variable.value), [-1]))
        tensors = [ops.concatenate(parts, 0) for _, parts in sorted(by_type.items())]
        averaged = self.terms.of(step).averaged
        if averaged:
            results = {number: self._units[number].metric.result() for number in {one.unit for one in averaged}}
            values = [follow(results[one.unit], one.path) for one in averaged]
            tensors.append(ops.concatenate([ops.reshape(ops.cast(value, "float32"), [-1]) for value in values], 0))
        return tensors

    def states(self, step: StepName, tensors: Sequence[Any], examples: int) -> dict[str, Weighted | MetricState]:
        """Return what `read` returned, by the names it travels under.

        examples: number of examples measured, those of all passes together.
        """
        arrays = [np.asarray(tensor) for tensor in tensors]
        states: dict[str, Weighted | MetricState] = {}
        for place in self._places[step]:
            if place.is_mean:
                (array, start, end), *_ = place.parts
                states[place.key] = Weighted(*arrays[array][start:end].tolist())
            else:
                numbers = np.concatenate([arrays[array][start:end] for array, start, end in place.parts])
                states[place.key] = MetricState(numbers.astype(np.float64) - place.unit.relative_to, place.unit.runs)
        start = 0
        for one in self.terms.of(step).averaged:
            end = start + int(np.prod(one.shape))
            states[one.name] = _weighed(arrays[-1][start:end].astype(np.float64), one, examples)
            start = end
        return states

    def columns(self, step: StepName, arrays: Sequence[np.ndarray], examples: np.ndarray) -> dict[str, Column]:
        """Same as `states`, for many clients: arrays with a row for each; examples of each, shape (clients,)."""
        columns: dict[str, Column] = {}
        for place in self._places[step]:
            numbers = np.concatenate([arrays[number][:, start:end] for number, start, end in place.parts], 1)
            numbers = numbers.astype(np.float64)
            if place.is_mean:
                columns[place.key] = Column(numbers, None)
            else:
                columns[place.key] = Column(numbers - place.unit.relative_to, place.unit.runs)
        start, counts = 0, np.asarray(examples, np.float64)[:, None]
        for one in self.terms.of(step).averaged:
            end = start + int(np.prod(one.shape))
            numbers = np.concatenate([arrays[-1][:, start:end].astype(np.float64) * counts, counts], 1)
            columns[one.name] = Column(numbers, (("sum", numbers.shape[1]),) if one.shape else None)
            start = end
        return columns

    def with_loss(self, step: StepName, metrics: Measured, examples: int) -> Measured:
        """Return metrics, and the loss as one mean where it is the state of some other metric.

        Who weighs clients by what they lose knows no metrics.
        """
        if isinstance(metrics.get("loss"), Weighted) or not self.reports(step, "loss"):
            return metrics
        loss = self.results(step, metrics)["loss"]
        return metrics | {OWN_LOSS: Weighted(float(np.mean(loss)) * examples, float(examples))}

    def results(self, step: StepName, metrics: Metrics) -> dict[str, Value]:
        """Return the values of joined states, by the names that Keras logs them under.

        What the model knows nothing of, such as a cluster's share, is its mean. States that are not there have no
        value.
        """
        values: dict[str, Value] = {}
        used = {OWN_LOSS}
        for prefix in ("", PERSONAL):
            mine = {key: metrics[prefix + key] for key in self._keys(step) if prefix + key in metrics}
            used |= {prefix + key for key in mine}
            values |= {prefix + name: value for name, value in self._values(step, mine).items()}
        rest = {name: state for name, state in metrics.items() if name not in used}
        return values | {name: state.mean() for name, state in rest.items() if isinstance(state, Weighted)}

    def unit(self, step: StepName, key: str) -> Unit | None:
        """Return the metric whose state travels under key; None for what is averaged."""
        return next((place.unit for place in self._places[step] if place.key == key), None)

    def _keys(self, step: StepName) -> list[str]:
        """List the names under which the states of a step travel."""
        return [place.key for place in self._places[step]] + [one.name for one in self.terms.of(step).averaged]

    def _values(self, step: StepName, states: Metrics) -> dict[str, Value]:
        """Return the values of states, without any prefix."""
        results = {key: self._result(step, key, state) for key, state in states.items()}
        reported = [one for one in self.terms.of(step).reported if one.key in results]
        values = {one.name: to_value(follow(results[one.key], one.path)) for one in reported}
        for name, source in self.agreement.derived[step].items():
            held = self._held(step, states)
            if all(number in held for number, _ in source.places):
                values[name] = to_value(source.function(*(held[number][place] for number, place in source.places)))
        return values

    def _result(self, step: StepName, key: str, state: Weighted | MetricState) -> Any:
        """Return the value of one state: a number, a tensor, or a dict of them."""
        if isinstance(state, Weighted):
            return state.mean()
        unit = self.unit(step, key)
        if unit is not None:
            return unit.value_of(state.numbers)
        shape = next(one.shape for one in self.terms.of(step).averaged if one.name == key)
        return (state.numbers[:-1] / state.numbers[-1]).reshape(shape)

    def _held(self, step: StepName, states: Metrics) -> dict[int, list[Any]]:
        """Return what the variables of each metric hold in these states, by the metric's number."""
        held = {}
        for key, number in self.terms.of(step).states:
            state = states.get(key)
            if state is not None:
                numbers = [state.sum, state.count] if isinstance(state, Weighted) else state.numbers
                unit = self._units[number]
                held[number] = [value for _, value in unit.variables_of(np.asarray(numbers, np.float64))]
        return held

    def _laid_out(self, step: StepName) -> list[StatePlace]:
        units = [(key, self._units[number]) for key, number in self.terms.of(step).states]
        units += self._trackers[step].items()
        kinds = sorted({variable.dtype for _, unit in units for variable in unit.variables})
        ends = dict.fromkeys(kinds, 0)
        places = []
        for key, unit in units:
            parts: list[tuple[int, int, int]] = []
            for variable, reset in zip(unit.variables, unit.resets, strict=True):
                array, start = kinds.index(variable.dtype), ends[variable.dtype]
                ends[variable.dtype] = start + reset.size
                if parts and parts[-1][0] == array and parts[-1][2] == start:
                    start = parts.pop()[1]
                parts.append((array, start, ends[variable.dtype]))
            places.append(StatePlace(key, unit, tuple(parts), unit.is_mean))
        return places


def to_value(result: Any) -> Value:
    """Return a metric's result as a number, or as nested tuples of numbers."""

    def nested(rows: Any) -> Value:
        return tuple(map(nested, rows)) if isinstance(rows, list) else float(rows)

    return nested(np.asarray(result).tolist())


def _trackers(terms: MetricTerms, step: StepName) -> dict[str, Unit]:
    """Make the means of what a step returns and no metric tracks, by name."""
    trackers = {}
    for one in terms.of(step).tracked:
        metric = StepMean(one.shape, one.name)
        trackers[one.name] = Unit(metric, [np.zeros(one.shape), np.zeros(())], ("sum", "sum"))
    return trackers


def _weighed(values: np.ndarray, one: Averaged, examples: int) -> Weighted | MetricState:
    """Weigh a value by the number of examples. values: its numbers, float64, flat."""
    if not one.shape:
        return Weighted(float(values[0]) * examples, float(examples))
    return MetricState(np.append(values * examples, float(examples)), (("sum", len(values) + 1),))


def _weigh_losses_as_graphs_do(model: keras.Model) -> None:
    """Let each batch count 1 in the losses of single outputs, as in Keras's own graphs.

    Keras weighs them by the batch's size where it is known when traced: in its graphs never, in ours for full batches,
    and on JAX always.
    """
    for tracker in losses_of_outputs(model):
        mean = type(tracker).update_state
        tracker.update_state = lambda values, sample_weight=None, mean=mean, own=tracker: mean(own, values)
