"""Finding the terms on which a model's metrics travel: names by watching its steps, joins by trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np

from ...core.errors import ConfigError, UmbelError
from ...core.examples import Examples
from ...core.types import Join
from .building import batch_of, declared_batch, reason, shapes
from .joining import (
    Call,
    depends_on_batches,
    has_rows,
    is_from_keras,
    is_of_keras,
    joins_of,
    metrics_by_batch,
    trials_of,
)
from .metric_terms import (
    STEPS,
    Averaged,
    MetricTerms,
    Reported,
    StepName,
    StepTerms,
    Tracked,
    UnitTerms,
    shapes_of,
    sums_of,
)
from .reported import (
    Eager,
    FromMetric,
    FromStates,
    OfBatch,
    Source,
    follow,
    is_keras_step,
    metrics_of,
    report_of,
    watched,
)

ROWS = 16  # examples of a trial, where the model takes any number

Reports = Mapping[StepName, Mapping[str, Source]]


def eager_of() -> Eager:
    """Return what the process's backend does outside of compiled programs."""
    if keras.backend.backend() == "jax":
        from ..jax.eager import EAGER as ON_JAX

        return ON_JAX
    from ..tensorflow.eager import EAGER

    return EAGER


class Agreement(NamedTuple):
    """The terms of a run, and what only the build of the model has that they were found with."""

    terms: MetricTerms
    derived: Mapping[StepName, Mapping[str, FromStates]]  # values that a step works out of metrics' states
    notes: tuple[str, ...]  # sentences about values that are not what all examples at once would give
    by_batch: bool = True  # whether a value may depend on how examples are divided into batches

    @staticmethod
    def on(terms: MetricTerms) -> Agreement:
        """Return an agreement on terms that somebody else found: a device's, from its server."""
        return Agreement(terms, {step: {} for step in STEPS}, ())


def agree(model: keras.Model, sample: Examples) -> Agreement:
    """Find how model's metrics travel. sample: at least one example of those it is trained on.

    Runs steps eagerly where the model has code of its own; every variable is put back. Errors: ConfigError for a
    metric that keeps what cannot be put back.
    """
    metrics = metrics_of(model)
    resets = resets_of(model, metrics)
    count = declared_batch(model) or ROWS
    examples = sample.take(np.resize(np.arange(min(sample.count, count)), count))
    measured = [variable for metric in metrics for variable in metric.variables]
    eager = eager_of()
    with eager.put_back([*model.variables, *model.optimizer.variables, *measured]):
        try:
            batch = eager.tensors(batch_of(examples))
            reports: Reports = {step: report_of(model, metrics, f"{step}_step", batch, eager) for step in STEPS}
            joins, by_batch = _tried(model, metrics, resets, examples, eager)
        except UmbelError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the model does not measure a batch of {count} examples of {shapes(examples)}: {reason(error)}"
            ) from error
        train, test = (_step_terms(reports[step], metrics, joins) for step in STEPS)
    units = zip(metrics, joins, strict=True)
    terms = MetricTerms(tuple(UnitTerms(type(one).__name__, shapes_of(one), how) for one, how in units), train, test)
    derived = {
        step: {name: source for name, source in reports[step].items() if isinstance(source, FromStates)}
        for step in STEPS
    }
    is_averaged = not all(joins) or any(step.tracked for step in (train, test))
    return Agreement(terms, derived, _notes(reports, joins, by_batch), bool(by_batch) or is_averaged)


def resets_of(model: keras.Model, metrics: Sequence[keras.metrics.Metric]) -> list[list[np.ndarray]]:
    """Find what `reset_metrics` leaves in every metric's variables: zeros for Keras's own, by trial for others.

    Not what they were initialised with: Keras's base class assigns zeros. A variable that is not reset has the value
    that it holds now.
    """
    strange = [metric for metric in metrics if not is_of_keras(metric)]
    if strange:
        variables = [variable for metric in strange for variable in metric.variables]
        before = [keras.ops.convert_to_numpy(variable) for variable in variables]
        for variable in variables:
            variable.assign(np.full(variable.shape, 7).astype(variable.dtype))
        model.reset_metrics()
        for variable, value in zip(variables, before, strict=True):
            if (keras.ops.convert_to_numpy(variable) == np.full(variable.shape, 7).astype(variable.dtype)).all():
                variable.assign(value)
    return [
        [
            np.zeros(variable.shape) if is_of_keras(metric) else keras.ops.convert_to_numpy(variable).astype(np.float64)
            for variable in metric.variables
        ]
        for metric in metrics
    ]


def _tried(
    model: keras.Model,
    metrics: Sequence[keras.metrics.Metric],
    resets: Sequence[Sequence[np.ndarray]],
    examples: Examples,
    eager: Eager,
) -> tuple[list[tuple[Join, ...]], set[int]]:
    """Find how each metric's variables join, () where they do not; and the metrics that depend on the batches."""
    sums = [sums_of(metric.variables) for metric in metrics]
    outputs = {id(tracker) for tracker in losses_of_outputs(model)}
    by_batch = {number for number, metric in enumerate(metrics) if id(metric) in outputs}
    strange = [number for number, metric in enumerate(metrics) if not is_of_keras(metric)]
    if not strange and is_keras_step(model, "test_step") and _loss_is_per_example(model):
        return sums, by_batch
    batch, count = eager.tensors(batch_of(examples)), examples.count
    calls = _calls(model, metrics, strange, batch, eager)
    joins = list(sums)
    for number in strange:
        if number not in calls:  # nothing ever updates it
            continue
        eager.check_metric(metrics[number], calls[number][0], model)
        reset = _resetting(metrics[number], resets[number])
        trials = trials_of(metrics[number], calls[number], count, reset)
        joins[number] = joins_of(trials, resets[number])
        if joins[number] and depends_on_batches(trials, resets[number], joins[number]):
            by_batch.add(number)
    if declared_batch(model) is not None or count < 2:  # its batches are all alike
        return joins, by_batch
    whole = [number for number in calls if not any(has_rows(one, count) for one in keras.tree.flatten(calls[number]))]
    resetting = [_resetting(metrics[number], resets[number]) for number in whole]
    depends = metrics_by_batch(
        [metrics[number] for number in whole], eager.step(model, "test_step"), batch, count, resetting
    )
    return joins, by_batch | {number for number, differs in zip(whole, depends, strict=True) if differs}


def _calls(
    model: keras.Model, metrics: Sequence[keras.metrics.Metric], strange: Sequence[int], batch: tuple, eager: Eager
) -> dict[int, list[Call]]:
    """Record the arguments that a step gives to each metric's update_state."""
    with watched(metrics) as seen:
        eager.step(model, "test_step")(batch)
    if set(strange) <= set(seen.calls):
        return seen.calls
    with watched(metrics) as more:
        eager.step(model, "train_step")(batch)
    return more.calls | seen.calls


def _resetting(metric: keras.metrics.Metric, resets: Sequence[np.ndarray]) -> Callable[[], None]:
    """Make a function that puts a metric's variables where a reset leaves them."""

    def reset() -> None:
        for variable, value in zip(metric.variables, resets, strict=True):
            variable.assign(value.astype(variable.dtype))

    return reset


def losses_of_outputs(model: keras.Model) -> Iterable[keras.metrics.Metric]:
    """Return the trackers of single outputs' losses in which a batch of any size counts 1; on JAX there are none."""
    is_counted = model._compile_loss is not None and keras.backend.backend() != "jax"
    return model._compile_loss.metrics if is_counted else ()


def _loss_is_per_example(model: keras.Model) -> bool:
    """Return whether the loss is surely a mean over examples: Keras's own, of Keras's own layers, without masks."""
    losses = [loss for loss in keras.tree.flatten(model.loss) if loss is not None]
    simple = all(isinstance(loss, str) or is_from_keras(loss) for loss in losses)
    simple = simple and all(
        getattr(loss, "reduction", "sum_over_batch_size") == "sum_over_batch_size" for loss in losses
    )
    if not simple or not is_from_keras(type(model).compute_loss):
        return False
    for layer in model._flatten_layers(include_self=False):
        makes_masks = isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False)
        if makes_masks or not is_from_keras(layer) or getattr(layer, "activity_regularizer", None) is not None:
            return False
    return True


def _step_terms(
    report: Mapping[str, Source], metrics: Sequence[keras.metrics.Metric], joins: Sequence[tuple[Join, ...]]
) -> StepTerms:
    """Work out how the values that a step reports travel."""
    states: dict[int, str] = {}
    averaged: list[Averaged] = []
    tracked: list[Tracked] = []
    reported: list[Reported] = []

    def key_of(number: int, name: str) -> str:
        while number not in states and (name in states.values() or name in report.keys() - {name}):
            name += "_state"
        return states.setdefault(number, name)

    for name, source in report.items():
        if isinstance(source, FromStates):
            numbers = {number for number, _ in source.places}
            if all(joins[number] for number in numbers):
                for number in sorted(numbers):
                    key_of(number, metrics[number].name)
            else:
                source = OfBatch(())
        if isinstance(source, OfBatch):
            tracked.append(Tracked(name, source.shape))
            reported.append(Reported(name, name, ()))
        elif isinstance(source, FromMetric) and joins[source.metric]:
            key = key_of(source.metric, metrics[source.metric].name if source.path else name)
            reported.append(Reported(name, key, source.path))
        elif isinstance(source, FromMetric):
            shape = tuple(np.shape(follow(metrics[source.metric].result(), source.path)))
            averaged.append(Averaged(name, source.metric, source.path, shape))
            reported.append(Reported(name, name, ()))
    stated = tuple((key, number) for number, key in states.items())
    return StepTerms(stated, tuple(averaged), tuple(tracked), tuple(reported))


def _notes(reports: Reports, joins: Sequence[tuple[Join, ...]], by_batch: set[int]) -> tuple[str, ...]:
    """Write what the user hears, once, of values that are not what all examples at once would give."""

    def names(numbers: set[int]) -> str:
        found = {
            name: None
            for step in STEPS
            for name, source in reports[step].items()
            if isinstance(source, FromMetric) and source.metric in numbers
        }
        return ", ".join(found)

    notes = []
    if averaged := names({number for number, how in enumerate(joins) if not how}):
        notes.append(
            f"averaged by examples over calls and clients, since their states do not add up: {averaged}. Keep sums, a "
            "maximum or a minimum in a metric's variables for the value over all examples"
        )
    if divided := names(by_batch):
        notes.append(
            f"depend on how examples are divided into batches, as in Keras: {divided}. They are those of "
            "model.evaluate(batch_size=512), or of the clients' own batches"
        )
    return tuple(notes)
