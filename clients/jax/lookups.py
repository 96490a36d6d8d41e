"""Tables that a model looks rows up in by the numbers of its inputs, read off its layers: see keras/lookups.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from ..keras.lookups import Table


def tables_of(model: Any) -> Mapping[int, Table]:
    """Find the smallest embedding that each input of a model goes into as it is, by the input's place.

    A subclassed model shows none: JAX answers a number without a row with NaN there, and the client is left out.
    """
    places = {id(tensor): place for place, tensor in enumerate(model.inputs or ())} if is_of_layers(model) else {}
    tables: dict[int, Table] = {}
    for layer in model._flatten_layers(include_self=False):
        if not isinstance(layer, keras.layers.Embedding):
            continue
        for node in layer._inbound_nodes:
            place = places.get(id(node.input_tensors[0]))
            if place is not None and layer.input_dim < tables.get(place, Table("", layer.input_dim + 1)).rows:
                tables[place] = Table(layer.path, layer.input_dim)
    return tables


def is_of_layers(model: Any) -> bool:
    """Return whether a model is a graph of layers, whose inputs are known."""
    return isinstance(model, (keras.Sequential, keras.src.models.Functional))
