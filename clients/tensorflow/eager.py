"""TensorFlow outside of compiled programs: steps tried eagerly, and values followed back through a traced step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

from ...core.errors import ConfigError
from ...core.examples import map_arrays
from ..keras.joining import Call
from ..keras.reported import FromStates, Step, flat_logs
from .roles import put_back


class TensorFlowEager:
    """TensorFlow's `Eager`."""

    def tensors(self, arrays: Any) -> Any:
        """Return nested arrays as tensors."""
        return map_arrays(tf.convert_to_tensor, arrays)

    def step(self, model: keras.Model, name: str) -> Step:
        """Return a model's own step, which changes the model's variables."""
        step: Step = getattr(model, name)
        return step

    def put_back(self, variables: Iterable[keras.Variable]) -> AbstractContextManager[Any]:
        """Same as `roles.put_back`."""
        return put_back(variables)

    def states_behind(
        self, model: keras.Model, step: str, batch: tuple, names: Sequence[str], metrics: Sequence[keras.metrics.Metric]
    ) -> Mapping[str, FromStates]:
        """Same as `states_behind`."""
        return states_behind(self.step(model, step), batch, names, metrics)

    def check_metric(self, metric: keras.metrics.Metric, call: Call, model: keras.Model) -> None:
        """Same as `check_variables`."""
        check_variables(metric, call, model)


EAGER = TensorFlowEager()


def states_behind(
    step: Step, batch: tuple, names: Sequence[str], metrics: Sequence[keras.metrics.Metric]
) -> dict[str, FromStates]:
    """Find which of a step's values follow from metrics' states alone, and how.

    The step is traced, and each value followed back through the graph: it must meet nothing but constants and reads
    of metrics' variables. A step that cannot be traced has none.
    """
    specs = tf.nest.map_structure(lambda array: tf.TensorSpec(array.shape, tf.as_dtype(array.dtype)), batch)
    try:
        traced = tf.compat.v1.wrap_function(
            lambda *parts: {name: tf.convert_to_tensor(flat_logs(step(parts))[name]) for name in names}, list(specs)
        )
    except Exception:
        return {}
    by_handle = {
        id(variable.value.handle): (number, position)
        for number, metric in enumerate(metrics)
        for position, variable in enumerate(metric.variables)
    }
    captured = {id(inside): by_handle.get(id(outside)) for outside, inside in traced.graph.captures}
    found = {}
    for name, value in traced.structured_outputs.items():
        reads = _reads_behind(value, captured)
        if reads:
            places = tuple(place for read in reads if (place := captured[id(read.op.inputs[0])]) is not None)
            found[name] = FromStates(places, traced.prune(reads, value))
    return found


def _reads_behind(value: tf.Tensor, captured: Mapping[int, tuple[int, int] | None]) -> list[tf.Tensor]:
    """List the reads of metrics' variables that value follows from; none where it follows from anything else."""
    reads: dict[int, tf.Tensor] = {}
    waiting, visited = [value], set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor.op) in visited:
            continue
        visited.add(id(tensor.op))
        operation = tensor.op
        if operation.type == "ReadVariableOp" and captured.get(id(operation.inputs[0])) is not None:
            reads[id(tensor)] = tensor
            continue
        if operation.type == "Placeholder" or operation.op_def.is_stateful:
            return []
        waiting.extend(operation.inputs)
    return list(reads.values())


def check_variables(metric: keras.metrics.Metric, call: Call, model: keras.Model) -> None:
    """Raise ConfigError for a metric that keeps a tf.Variable, which Keras neither lists nor resets."""
    try:
        args, kwargs = call
        traced = tf.compat.v1.wrap_function(lambda: metric.update_state(*args, **kwargs), [])
    except Exception:  # what needs to be eager fails where it is compiled, with TensorFlow's own words
        return
    variables = [*metric.variables, *model.variables]
    listed = {id(variable.value.handle) for variable in variables}
    captured = {id(inside): outside for outside, inside in traced.graph.captures}
    for operation in traced.graph.get_operations():
        if operation.type.startswith(("Assign", "ResourceScatter")) and operation.inputs:
            handle = captured.get(id(operation.inputs[0]))
            if handle is not None and id(handle) not in listed:
                raise ConfigError(
                    f"metric {metric.name!r} keeps a tf.Variable, which Keras neither lists nor resets, so that its "
                    "values run on from client to client; use self.add_variable"
                )
