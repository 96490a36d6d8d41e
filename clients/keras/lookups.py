"""Numbers of examples that a model cannot take: labels that are no class, and numbers without a row in a table.

TensorFlow's graphs on a CPU end at them. XLA, JAX, and a graph on a GPU, go on with NaN, zeros or some other row,
without a word. So the numbers are looked at before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from .building import check_labels


class Table(NamedTuple):
    """Table of a model: an embedding."""

    name: str  # where in the model it is looked up
    rows: int


def fault_of(tables: Mapping[int, Table], examples: Examples) -> str | None:
    """Say which number of examples no row of its table has; None for none. What lies on a device is not looked at.

    tables: the smallest that each input's numbers are looked up in, by the input's place in keras.tree.flatten(x).
    """
    inputs = keras.tree.flatten(examples.x)
    for place, (name, rows) in tables.items():
        array = inputs[place]
        if not isinstance(array, np.ndarray) or not array.size:
            continue
        low, high = int(array.min()), int(array.max())
        if high >= rows or low < -rows:
            return f"x has the number {high if high >= rows else low}, and {name} has {rows} rows: 0 to {rows - 1}"
    return None


def check_lookups(tables: Mapping[int, Table], examples: Examples, kind: str) -> None:
    """Raise ConfigError for a number of examples that has no row in a table of the model. kind: which they are."""
    fault = fault_of(tables, examples)
    if fault is not None:
        raise ConfigError(f"{kind}: {fault}")


def fault_of_client(model: keras.Model, tables: Mapping[int, Table], examples: Examples) -> str | None:
    """Say which of a client's labels is no class, or which number has no row in a table; None for none.

    What lies on the device was looked at before.
    """
    try:
        check_labels(model, examples)
    except ConfigError as error:
        return str(error)
    return fault_of(tables, examples)
