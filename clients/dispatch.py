"""Compiled functions called directly: traced once for a whole team of workers, and without per-call checks.

TensorFlow binds, casts and checks every argument of a tf.function: 0.5 ms a call, half of a tiny client's round, under
Python's lock. And it traces a function for every model, although the workers' models differ in nothing but their
variables. A traced function takes flat tensors in 0.2 ms, and its variables are inputs like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tensorflow as tf


class FlatCall:
    """A function traced once for a signature; called with arguments of exactly that structure."""

    def __init__(self, traced: Any, specs: Sequence[tf.TensorSpec], captured: Sequence[tf.Tensor]):
        self._traced, self._specs, self._captured = traced, specs, captured
        # Not public; there in TensorFlow 2.21. Without it calls are slower, and each worker traces.
        self._call_flat = getattr(traced, "_call_flat", None)

    @staticmethod
    def trace(function: Callable[..., Any], signature: Sequence[Any]) -> FlatCall:
        """Trace function for signature, a nested structure of TensorSpecs."""
        traced = tf.function(function, autograph=False, input_signature=list(signature)).get_concrete_function()
        return FlatCall(traced, tf.nest.flatten(list(signature)), list(traced.captured_inputs))

    def __call__(self, *arguments: Any) -> Any:
        if self._call_flat is None:
            return self._traced(*arguments)
        tensors = [
            value if isinstance(value, tf.Tensor) else tf.convert_to_tensor(value, spec.dtype)
            for value, spec in zip(tf.nest.flatten(list(arguments)), self._specs, strict=True)
        ]
        return self._call_flat(tensors, self._captured)

    def rebound(self, own: Sequence[tf.Variable], other: Sequence[tf.Variable]) -> FlatCall | None:
        """The same function over the variables `other` in place of `own`.

        None where it holds anything else with a state (a lookup table, a generator), which must not be shared.
        """
        if self._call_flat is None:
            return None
        handles = {id(one.handle): two.handle for one, two in zip(own, other, strict=True)}
        captured = [handles.get(id(tensor), tensor) for tensor in self._captured]
        kept = zip(self._captured, captured, strict=True)
        if any(before is after and before.dtype == tf.resource for before, after in kept):
            return None
        return FlatCall(self._traced, self._specs, captured)


class Library:
    """A team's traced programs: the first worker that needs one traces it, the others take it over."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def take(self, key: Hashable, state: Any, make: Callable[[], Any]) -> Any:
        """The program of `key` over the variables of state; make() traces it where there is none to take over."""
        with self._lock:
            if key not in self._programs:
                self._programs[key] = make()
                return self._programs[key]
        return self._programs[key].over(state) or make()
