"""JAX outside of compiled programs: a model's own steps as calls that change its variables, and what they assign."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from ...core.errors import ClientError, ConfigError, UmbelError
from ...core.examples import Examples, leaves, map_arrays
from ..keras.building import batch_of, check_inputs, declared_batch, reason, shapes
from ..keras.joining import Call
from ..keras.reported import FromStates, Step


class JaxEager:
    """JAX's `Eager`. Keras's steps are pure functions on JAX: their results are assigned here."""

    def tensors(self, arrays: Any) -> Any:
        """Return nested arrays as JAX's."""
        return map_arrays(jnp.asarray, arrays)

    def step(self, model: keras.Model, name: str) -> Step:
        """Return a model's own step, as a call that changes the model's variables."""
        groups = groups_of(model) if name == "train_step" else groups_of(model)[:2] + groups_of(model)[3:]

        def step(batch: tuple) -> Any:
            logs, after = getattr(model, name)(values_of(groups), batch)
            for variables, values in zip(groups, after, strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)
            return logs

        return step

    @contextmanager
    def put_back(self, variables: Iterable[keras.Variable]) -> Iterator[None]:
        """Run code inside; these variables hold afterwards what they held before."""
        before = [(variable, np.array(variable.value)) for variable in variables]
        try:
            yield
        finally:
            for variable, value in before:
                variable.assign(value)

    def states_behind(
        self, model: keras.Model, step: str, batch: tuple, names: Sequence[str], metrics: Sequence[keras.metrics.Metric]
    ) -> Mapping[str, FromStates]:
        """Return none: on JAX such a value is averaged over batches."""
        return {}

    def check_metric(self, metric: keras.metrics.Metric, call: Call, model: keras.Model) -> None:
        """Do nothing: Keras lists all that a metric can assign inside a compiled step."""


EAGER = JaxEager()


def groups_of(model: keras.Model) -> tuple[list[keras.Variable], ...]:
    """Return a model's variables as its train_step takes them: trained, others, the optimizer's, the metrics'."""
    return (
        list(model.trainable_variables),
        list(model.non_trainable_variables),
        list(model.optimizer.variables),
        list(model.metrics_variables),
    )


def values_of(groups: Sequence[Sequence[keras.Variable]]) -> tuple[list[Any], ...]:
    """Return what variables hold. Copies: `fit` deletes the arrays that variables were given."""
    return tuple([jnp.array(variable.value) for variable in variables] for variables in groups)


def create_variables(model: keras.Model, batch: Examples) -> frozenset[int]:
    """Create what Keras creates lazily, as `fit` does; return the places in `model.weights` of what a step assigns.

    A step assigns what it does not return as it was handed it, also under a condition. Nothing is computed.
    """
    check_step(model)
    check_numbers(batch)
    check_inputs(model, batch)
    arrays = batch_of(batch)
    lazy = (*model._flatten_layers(), *filter(None, (model._compile_metrics, model._compile_loss)))
    if not all(one.built for one in lazy):
        model._symbolic_build(data_batch=map_arrays(np.asarray, arrays))
    check_compiled(model)
    model.optimizer.build(model.trainable_variables)
    model.reset_metrics()
    assigned = {id(variable) for variable in assigned_by(model, traced_step(model, arrays))}
    return frozenset(place for place, weight in enumerate(model.weights) if id(weight) in assigned)


def traced_step(model: keras.Model, arrays: tuple) -> Any:
    """Return a model's training step on a batch as JAX's operations. Nothing is computed."""
    state, batch = values_of(groups_of(model)), map_arrays(jnp.asarray, arrays)
    return jax.make_jaxpr(lambda state, batch: model.train_step(state, batch)[1])(state, batch).jaxpr


def assigned_by(model: keras.Model, traced: Any) -> list[keras.Variable]:
    """Return the variables that a training step assigns. traced: the step, as `traced_step` returns it."""
    variables = [variable for group in groups_of(model) for variable in group]
    pairs = zip(variables, traced.invars, traced.outvars, strict=False)
    return [variable for variable, before, after in pairs if after is not before]


def convolves(traced: Any) -> bool:
    """Return whether a step has a convolution among its operations, those inside others included."""
    return "conv_general_dilated" in str(traced)


def check_step(model: keras.Model) -> None:
    """Raise ConfigError for a model that Keras on JAX does not train as a pure function."""
    name = type(model).__name__
    for step, arguments in (("train_step", ("self", "state", "data")), ("test_step", ("self", "state", "data"))):
        if len(inspect.signature(getattr(type(model), step)).parameters) < len(arguments):
            raise ConfigError(
                f"{name}.{step} is written for TensorFlow; on JAX it is {step}(self, state, data) and returns logs and "
                "the new state. Write it so, or set KERAS_BACKEND=tensorflow"
            )


def check_numbers(examples: Examples) -> None:
    """Raise ConfigError for examples that are no numbers: JAX has no text."""
    for name, part in zip(("x", "y", "sample_weight"), examples, strict=True):
        for array in leaves(part):
            if isinstance(array, np.ndarray) and array.dtype.kind not in "fiubc":
                what = "text" if array.dtype.kind in "OSUT" else str(array.dtype)
                raise ConfigError(
                    f"{name} is {what}, and examples of type {array.dtype} are no numbers, which JAX takes alone: "
                    "encode them, or set KERAS_BACKEND=tensorflow"
                )


def fixed_batch(model: keras.Model, sample: Examples) -> int | None:
    """Return the only batch size that the model takes; None where it takes any.

    It is the declared one, where the model refuses another.
    """
    declared = declared_batch(model)
    if declared is None:
        return None
    other = map_arrays(jnp.asarray, sample.take(np.zeros(declared + 1, np.intp)).x)
    trained, others = values_of(groups_of(model)[:2])
    try:
        jax.eval_shape(lambda x: model.stateless_call(trained, others, x, training=True), other)
    except Exception:
        return declared
    return None


@contextmanager
def explained(examples: Examples) -> Iterator[None]:
    """Raise ConfigError, with Keras's reason, for what goes wrong inside while a step on such examples is traced."""
    try:
        yield
    except (UmbelError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise ConfigError(f"the model does not take examples of {shapes(examples)}: {reason(error)}") from error


def fetched(found: Any) -> Any:
    """Return arrays of the device as NumPy's. Errors: ClientError for what went wrong there meanwhile."""
    try:
        return jax.device_get(found)
    except jax.errors.JaxRuntimeError as error:
        raise ClientError(str(error).splitlines()[0]) from error


def check_compiled(model: keras.Model) -> None:
    """Raise ConfigError for an optimizer that was built for other variables than are trained: JAX's step fails then."""
    known = [id(variable) for variable in getattr(model.optimizer, "_trainable_variables", ())]
    if model.optimizer.built and known != [id(variable) for variable in model.trainable_variables]:
        raise ConfigError(
            f"{type(model).__name__} was compiled, and its optimizer built, for {len(known)} variables, and "
            f"{len(model.trainable_variables)} are trainable now: compile it after trainable is set"
        )
