"""Traced functions called directly: one trace for a whole team of workers, each over variables of its own.

TensorFlow binds, casts and checks every argument of a tf.function: 0.5 ms a call, half of a tiny client's round, under
Python's lock. A traced function takes flat tensors in 0.2 ms, and the variables that it captures are inputs like any
other. So a model is built and traced once, and a worker is a set of variables: its twins of those that a call assigns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ...core.errors import ConfigError
from . import compat

MOST_CONSTANTS = 256


class FlatCall:
    """A function traced once for a signature; called with arguments of exactly that structure."""

    def __init__(self, concrete: Any, specs: Sequence[tf.TensorSpec]):
        self.concrete = concrete
        self._specs = specs
        self.captured = list(concrete.captured_inputs)
        self.assigned = compat.assigned(concrete)

    @staticmethod
    def trace(function: Callable[..., Any], signature: Sequence[Any], xla: bool = False) -> FlatCall:
        """Trace function for signature, a nested structure of TensorSpecs. xla: as one compiled program."""
        traced = compat.graph_function(function, xla=xla, signature=list(signature)).get_concrete_function()
        return FlatCall(traced, tf.nest.flatten(list(signature)))

    @staticmethod
    def join(calls: Sequence[FlatCall]) -> None:
        """Let calls share twins: what one of them assigns, the others read."""
        assigned = {handle: writer for call in calls for handle, writer in call.assigned.items()}
        for call in calls:
            call.assigned = assigned

    def __call__(self, twins: Twins, *arguments: Any) -> Any:
        """Return the function's outputs, over twins in place of the variables that it assigns."""
        tensors = [
            value if isinstance(value, tf.Tensor) else twins.tensor(value, spec.dtype)
            for value, spec in zip(tf.nest.flatten(list(arguments)), self._specs, strict=True)
        ]
        return compat.call_flat(self.concrete, tensors, twins.captured_by(self))

    def inside(self, *arguments: Any) -> Any:
        """Return the function's outputs as part of another that is being traced."""
        return self.concrete(*arguments)


class Twins:
    """A worker's own variables: one for each that any of its calls assigns. The model's own stay as they were built."""

    def __init__(self, are_the_models_own: bool = False):
        """Begin without twins.

        are_the_models_own: whether the model is this worker's alone, and its own variables are assigned.
        """
        self._are_the_models_own = are_the_models_own
        self._variables: dict[int, tf.Variable] = {}  # {id of the handle of the model's variable: twin}
        self._captured: dict[FlatCall, list[tf.Tensor]] = {}
        self._constants: dict[tuple, tf.Tensor] = {}

    def captured_by(self, call: FlatCall) -> list[tf.Tensor]:
        """Return what call captures, with this worker's variables in place of those that it assigns."""
        if self._are_the_models_own:
            return call.captured
        if call not in self._captured:
            self._captured[call] = [
                self._twin(tensor).handle if id(tensor) in call.assigned else tensor for tensor in call.captured
            ]
        return self._captured[call]

    def tensor(self, value: Any, dtype: tf.DType) -> tf.Tensor:
        """Return a value as a tensor; numbers, and arrays without any, are made once, since most calls repeat them.

        Making one takes 15 µs, a fiftieth of a tiny client's round.
        """
        if isinstance(value, np.ndarray):
            if value.size:
                return tf.convert_to_tensor(value, dtype)
            key: tuple = dtype, value.shape
        else:
            key = dtype, type(value), value
        if key not in self._constants:
            if len(self._constants) >= MOST_CONSTANTS:
                self._constants.clear()
            self._constants[key] = tf.convert_to_tensor(value, dtype)
        return self._constants[key]

    def _twin(self, handle: tf.Tensor) -> tf.Variable:
        if id(handle) not in self._variables:
            self._variables[id(handle)] = tf.Variable(compat.read(handle), trainable=False, name="twin")
        return self._variables[id(handle)]


class Start:
    """Values of variables before the first client, which they are put back to before each."""

    def __init__(self) -> None:
        # {id: (handle, value)}: the handle keeps its id alive.
        self._values: dict[int, tuple[tf.Tensor, tf.Tensor | None]] = {}

    def of(self, concrete: Any) -> list[tf.Tensor]:
        """Return the handles of the variables that a traced step assigns, noted before any call of it.

        Errors: ConfigError for a step that changes what cannot be put back, a table or a queue say.
        """
        writers, handles = compat.assigned(concrete), []
        for handle in concrete.captured_inputs:
            if id(handle) not in writers:
                continue
            if compat.variable_type(handle) is None:
                operation = writers[id(handle)]
                raise ConfigError(
                    f"a step changes what {operation.name} ({operation.type}) holds, which cannot be put back before "
                    "the next client; keep it in a tf.Variable"
                )
            self._note(handle)
            handles.append(handle)
        return handles

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note what eager code inside assigns, before it does."""
        with compat.watching_assignments(self._see):
            yield

    def note(self, handles: Iterable[tf.Tensor]) -> None:
        """Note what variables hold, whether they will be assigned or not."""
        for handle in handles:
            self._note(handle)

    def knows(self, handle: tf.Tensor) -> bool:
        """Return whether the variable behind a handle was noted."""
        return id(handle) in self._values

    def put_everything_back(self) -> None:
        """Assign every variable that was noted what it held at first."""
        self.put_back([handle for handle, _ in self._values.values()])

    def _see(self, handle: tf.Tensor) -> None:
        if compat.variable_type(handle) is not None:
            with contextlib.suppress(tf.errors.FailedPreconditionError, tf.errors.NotFoundError):  # about to be made
                self._note(handle)

    def _note(self, handle: tf.Tensor) -> None:
        if id(handle) in self._values:
            return
        value = compat.read(handle)
        # Zeros are made by an operation: as values, Adam's moments would be held once more.
        self._values[id(handle)] = handle, value if np_any(value) else None

    def put_back(self, handles: Iterable[tf.Tensor]) -> None:
        """Assign each of the variables what it held at first."""
        for handle in handles:
            _, value = self._values[id(handle)]
            if value is None:
                kind = compat.variable_type(handle)
                assert kind is not None
                value = tf.zeros(kind.shape, kind.dtype)
            compat.assign(handle, value)


def np_any(value: tf.Tensor) -> bool:
    """Return whether any number of a tensor is not zero."""
    return bool(value.numpy().any())
