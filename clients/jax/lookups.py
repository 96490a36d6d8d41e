"""Tables that a model looks rows up in by the numbers of its inputs, read off its operations: see keras/lookups.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from ...core.examples import leaves, map_arrays
from ..keras.lookups import Table
from .eager import groups_of, values_of

log = logging.getLogger(__name__)

# Operations that leave a number as it is, with the first operand that it may be; a choice counts a negative one from
# the end, as Keras does.
PASSING = {"convert_element_type": 0, "broadcast_in_dim": 0, "reshape": 0, "squeeze": 0, "transpose": 0, "select_n": 1}
INSIDE = ("jaxpr", "call_jaxpr")  # parameters that hold operations which are called with an operation's operands


def tables_of(model: Any, x: Any) -> Mapping[int, Table]:
    """Find the smallest table that each input's numbers are looked up in, by its place in keras.tree.flatten(x).

    x: inputs of an example. A model that cannot be traced has none.
    """
    if not any(np.issubdtype(np.asarray(array).dtype, np.integer) for array in leaves(x)):
        return {}
    variables = [variable for group in groups_of(model)[:2] for variable in group]
    trained, others = values_of(groups_of(model)[:2])
    try:
        traced = jax.make_jaxpr(lambda trained, others, x: model.stateless_call(trained, others, x)[0])(
            trained, others, map_arrays(jnp.asarray, x)
        ).jaxpr
    except Exception as error:
        log.warning(
            "whether numbers have a row in what %s looks up is not checked, since its call cannot be traced: %s",
            type(model).__name__,
            error,
        )
        return {}
    weights, inputs = traced.invars[: len(variables)], traced.invars[len(variables) :]
    reader = LookupReader()
    reader.read(traced, dict(zip(weights, variables, strict=True)), {one: place for place, one in enumerate(inputs)})
    return reader.found


class LookupReader:
    """A walk over operations, in their order, that finds what is looked up."""

    def __init__(self) -> None:
        self.found: dict[int, Table] = {}

    def read(self, traced: Any, tables: dict[Any, Any], inputs: dict[Any, int]) -> None:
        """Read operations. tables, inputs: variables, and places of inputs, by what stands for them; both grow."""
        for one in traced.eqns:
            operands = [None if isinstance(operand, Literal) else operand for operand in one.invars]
            inside = next((one.params[name] for name in INSIDE if name in one.params), None)
            if inside is not None:
                self._enter(one, inside.jaxpr if isinstance(inside, ClosedJaxpr) else inside, operands, tables, inputs)
            elif one.primitive.name in PASSING:
                first = PASSING[one.primitive.name]
                for known in (tables, inputs):
                    behind = [known[operand] for operand in operands[first:] if operand in known]
                    known.update({one.outvars[0]: behind[0]} if behind else {})
            elif one.primitive.name == "gather" and operands[0] in tables and operands[1] in inputs:
                self._note(tables[operands[0]], inputs[operands[1]])

    def _enter(self, one: Any, inner: Any, operands: list[Any], tables: dict[Any, Any], inputs: dict[Any, int]) -> None:
        """Read the operations inside another; what they hand through is known outside."""
        if len(inner.invars) != len(operands):
            return
        pairs = list(zip(inner.invars, operands, strict=True))
        own_tables, own_inputs = ({own: known[out] for own, out in pairs if out in known} for known in (tables, inputs))
        self.read(inner, own_tables, own_inputs)
        for known, own in ((tables, own_tables), (inputs, own_inputs)):
            ends = [
                (out, end) for out, end in zip(one.outvars, inner.outvars, strict=False) if not isinstance(end, Literal)
            ]
            known.update({out: own[end] for out, end in ends if end in own})

    def _note(self, variable: Any, place: int) -> None:
        rows = variable.shape[0]
        if rows < self.found.get(place, Table("", rows + 1)).rows:
            self.found[place] = Table(variable.path.rpartition("/")[0] or variable.path, rows)
