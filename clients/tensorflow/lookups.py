"""Tables that a model looks rows up in by the numbers of its inputs, read off its graph: see keras/lookups.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...core.examples import map_arrays
from ..keras.lookups import Table
from . import compat

# Operations that leave a number as it is, or count it from the end where it is negative, as Keras does.
PASSING = {"Cast", "Identity", "Reshape", "ExpandDims", "Squeeze", "SelectV2", "Transpose"}
LOOKUPS = {"GatherV2": 1, "ResourceGather": 1}  # operations, with the place of their indices among the inputs


def tables_of(model: keras.Model, x: Any) -> Mapping[int, Table]:
    """Find the smallest table that each input's numbers are looked up in, by the input's place in tf.nest.flatten(x).

    x: inputs of an example. A model that cannot be traced has none.
    """
    if not any(np.issubdtype(np.asarray(array).dtype, np.integer) for array in _arrays(x)):
        return {}
    specs = map_arrays(lambda array: tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype)), x)
    try:
        traced = compat.graph_function(lambda x: model(x, training=True)).get_concrete_function(specs)
    except Exception:
        return {}
    places = {id(tensor): place for place, tensor in enumerate(traced.graph.inputs[: len(tf.nest.flatten(specs))])}
    tables: dict[int, Table] = {}
    for operation in traced.graph.get_operations():
        if operation.type not in LOOKUPS:
            continue
        rows, place = _rows_of(operation), _input_behind(operation.inputs[LOOKUPS[operation.type]], places)
        if rows and place is not None and rows < tables.get(place, Table("", rows + 1)).rows:
            tables[place] = Table(operation.name.rpartition("/")[0] or operation.name, rows)
    return tables


def _arrays(x: Any) -> list[Any]:
    return [array for array in tf.nest.flatten(x) if isinstance(array, np.ndarray)]


def _rows_of(operation: tf.Operation) -> int | None:
    """Return the length of the table's first axis; None where it is not known, or not what is looked up along."""
    if operation.type == "ResourceGather":
        kind = compat.variable_type(operation.inputs[0])
        return kind.shape[0] if kind is not None and kind.shape.rank else None
    axis = tf.get_static_value(operation.inputs[2])
    is_variable = operation.inputs[0].op.type == "ReadVariableOp" or operation.inputs[0].op.type in PASSING
    shape = operation.inputs[0].shape
    return int(shape[0]) if axis == 0 and is_variable and shape.rank and shape[0] is not None else None


def _input_behind(tensor: tf.Tensor, places: Mapping[int, int]) -> int | None:
    """Return the place of the input that a tensor's numbers are; None for what is worked out."""
    while id(tensor) not in places:
        operation = tensor.op
        if operation.type not in PASSING:
            return None
        tensor = operation.inputs[2 if operation.type == "SelectV2" else 0]
    return places[id(tensor)]
