"""Report of a model's step, and what each of its values is made of.

    one eager step, every metric's result() watched ─► name → a metric, metrics' states, or the batch alone

Keras names what it measures in many ways (several outputs, metrics of one name, a dict from one metric, whatever a
custom step returns). No rule for it is written again here: a value that is the very tensor which a metric's result()
returned is that metric's, under the name that the step gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from .joining import is_from_keras

log = logging.getLogger(__name__)

Step = Callable[[tuple], Any]  # Keras's train_step or test_step


class FromMetric(NamedTuple):
    """A metric's result, or what a dict from it holds."""

    metric: int  # the metric's number among `metrics_of`
    path: tuple[str, ...]  # keys into the result; () for all of it


class FromStates(NamedTuple):
    """A value that a step works out of metrics' states alone, such as exp(loss)."""

    places: tuple[tuple[int, int], ...]  # variables that it takes: (number of a metric, number of its variable)
    function: Callable[..., Any]


class OfBatch(NamedTuple):
    """A value of the batch at hand, which no metric tracks."""

    shape: tuple[int, ...]


Source = FromMetric | FromStates | OfBatch


class Eager(Protocol):
    """The backend outside of compiled programs, where a model's metrics are tried."""

    def tensors(self, arrays: Any) -> Any:
        """Return nested arrays as the backend's tensors."""

    def step(self, model: keras.Model, name: str) -> Step:
        """Return a model's own step ("train_step", "test_step") as a call that changes the model's variables."""

    def put_back(self, variables: Iterable[keras.Variable]) -> AbstractContextManager[Any]:
        """Run code inside; what it assigns is put back after, those variables in any case."""

    def states_behind(
        self, model: keras.Model, step: str, batch: tuple, names: Sequence[str], metrics: Sequence[keras.metrics.Metric]
    ) -> Mapping[str, FromStates]:
        """Find which of a step's values follow from metrics' states alone, and how."""

    def check_metric(self, metric: keras.metrics.Metric, call: tuple[tuple, dict], model: keras.Model) -> None:
        """Raise ConfigError for a metric that keeps what Keras neither lists nor resets."""


def metrics_of(model: keras.Model) -> list[keras.metrics.Metric]:
    """List every metric of a model once: loss tracker, compiled ones, losses of single outputs, its own, its layers'.

    A metric inside a metric is part of that. The order is that of Keras, so that all builds of a model share it.
    """
    found: dict[int, keras.metrics.Metric] = {}
    # An overridden `metrics` property may leave some out, which Keras updates all the same.
    for listed in [*model.metrics, *model._get_own_metrics()]:
        inner = getattr(listed, "metrics", None)  # of CompileMetrics alone
        for metric in [listed] if inner is None else inner:
            found.setdefault(id(metric), metric)
    return list(found.values())


def is_keras_step(model: keras.Model, step: str) -> bool:
    """Return whether a model's step ("train_step", "test_step"), and how it measures, are Keras's own."""
    methods = (step, "compute_metrics", "get_metrics_result", "reset_metrics")
    code = [getattr(type(model), name) for name in methods] + [type(model).metrics.fget]
    return all(map(is_from_keras, code))


def report_of(
    model: keras.Model, metrics: Sequence[keras.metrics.Metric], step: str, batch: tuple, eager: Eager
) -> dict[str, Source]:
    """Find what a step ("train_step", "test_step") reports, by the names that Keras logs it under.

    Runs it once, eagerly, on batch: the caller puts the variables back. Names that only `get_metrics_result` has count
    where the step updated their metric.
    """
    # Keras's own step updates what is compiled, and reports all that get_metrics_result does: nothing need be run.
    compiled = {id(metric) for metric in _compiled(model)}
    if is_keras_step(model, step) and all(id(metric) in compiled for metric in metrics):
        with watched(metrics) as seen:
            results = flat_logs(model.get_metrics_result())
        return {name: seen.results[id(value)] for name, value in results.items()}
    with watched(metrics) as seen:
        logs = eager.step(model, step)(batch)
        results = flat_logs(model.get_metrics_result())
    values = {name: value for name, value in flat_logs(logs).items() if is_numeric(step, name, value)}
    report: dict[str, Source] = {name: seen.results[id(value)] for name, value in values.items() if seen.has(value)}
    rest = [name for name in values if name not in report]
    derived = eager.states_behind(model, step, batch, rest, metrics) if rest else {}
    report |= {name: derived.get(name) or OfBatch(tuple(map(int, np.shape(values[name])))) for name in rest}
    reported = {source.metric for source in report.values() if isinstance(source, FromMetric)}
    for name, value in results.items():
        source = seen.results.get(id(value))
        if source is not None and source.metric in seen.updated - reported:
            report.setdefault(name, source)
    return report


@dataclass
class Seen:
    """All that metrics did while they were watched."""

    results: dict[int, FromMetric] = field(default_factory=dict)  # {identity of what result() returned: its source}
    updated: set[int] = field(default_factory=set)  # numbers of the metrics that were updated
    calls: dict[int, list[tuple[tuple, dict]]] = field(default_factory=dict)  # arguments of update_state, by metric
    alive: list[Any] = field(default_factory=list)  # all results: an identity lasts as long as its object

    def has(self, value: Any) -> bool:
        """Return whether value is what a metric's result() returned."""
        return id(value) in self.results


@contextmanager
def watched(metrics: Sequence[keras.metrics.Metric]) -> Iterator[Seen]:
    """Watch calls of the metrics' result() and update_state() inside; they do what they always do."""
    seen = Seen()
    replaced = []
    for number, metric in enumerate(metrics):
        before = {name: vars(metric)[name] for name in ("result", "update_state") if name in vars(metric)}
        replaced.append((metric, before))
        metric.result = _watched_result(seen, number, metric.result)
        metric.update_state = _watched_update(seen, number, metric.update_state)
    try:
        yield seen
    finally:
        for metric, before in replaced:
            del metric.result, metric.update_state
            for name, method in before.items():
                setattr(metric, name, method)


def flat_logs(logs: Any) -> dict[str, Any]:
    """Flatten a step's logs as Keras does: what a dict holds goes by its own name.

    Of two values of one name, which Keras would make one, the second is named after the dict as well.
    """
    flat: dict[str, Any] = {}
    for name, value in logs.items() if isinstance(logs, Mapping) else ():
        if not isinstance(value, Mapping):
            flat[name] = value
            continue
        for inner, one in flat_logs(value).items():
            flat[inner if inner not in flat and inner not in logs else f"{name}_{inner}"] = one
    return flat


def is_numeric(step: str, name: str, value: Any) -> bool:
    """Return whether value is made of numbers; says so where it is not, since it cannot be reported."""
    try:
        is_number = np.issubdtype(keras.ops.convert_to_numpy(value).dtype, np.number) or value.dtype == "bool"
    except Exception:
        is_number = isinstance(value, (int, float))
    if not is_number:
        log.warning("%s returns %r, a %s and no number: it is not reported", step, name, type(value).__name__)
    return is_number


def _compiled(model: keras.Model) -> Iterable[keras.metrics.Metric]:
    """Yield the metrics that `compile` makes, which Keras's own steps update."""
    if model._loss_tracker is not None:
        yield model._loss_tracker
    for container in (model._compile_metrics, model._compile_loss):
        yield from () if container is None else container.metrics


def _watched_result(seen: Seen, number: int, result: Callable[[], Any]) -> Callable[[], Any]:
    def watched_result() -> Any:
        value = result()
        for path, leaf in leaves_of(value):
            seen.results[id(leaf)] = FromMetric(number, path)
            seen.alive.append(leaf)
        return value

    return watched_result


def _watched_update(seen: Seen, number: int, update: Callable[..., Any]) -> Callable[..., Any]:
    def watched_update(*args: Any, **kwargs: Any) -> Any:
        seen.updated.add(number)
        seen.calls.setdefault(number, []).append((args, kwargs))
        return update(*args, **kwargs)

    return watched_update


def leaves_of(result: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values in a metric's result, which may be a dict, each with its keys."""
    if isinstance(result, Mapping):
        for name, value in result.items():
            yield from leaves_of(value, (*path, name))
    else:
        yield path, result


def follow(result: Any, path: Sequence[str]) -> Any:
    """Return what lies in a metric's result under the keys of path."""
    for key in path:
        result = result[key]
    return result
