"""TensorFlow's and Keras's parts that Umbel uses and they do not call public: thin functions with our types.

Versions tested: TensorFlow 2.21, Keras 3.15. Each function has a contract test, so that a release that changes one of
these names says so by name.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager import context
from tensorflow.python.framework import auto_control_deps_utils, kernels, ops
from tensorflow.python.framework import function as functions_of_old
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph
from tensorflow.python.ops import gen_random_ops, gen_resource_variable_ops, gen_stateful_random_ops

# They read a table, or ask whether a variable has a value; TensorFlow takes them for writes, to keep them in order.
READS_BESIDES = {"LookupTableFindV2", "LookupTableSizeV2", "LookupTableExportV2", "VarIsInitializedOp"}
# Operations that TensorFlow calls stateful, though they follow what they are handed, or leave no trace.
STATELESS_ALL_THE_SAME = {
    *("While", "If", "Case", "StatefulPartitionedCall", "PartitionedCall", "Placeholder", "NoOp", "VarHandleOp"),
    *("Assert", "Print", "PrintV2", "StringFormat", "CheckNumerics", "CheckNumericsV2", "ControlTrigger", "Empty"),
}
CONTROL_FLOW = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"}
# The first of an operation's inputs that its functions get, by the attribute that names them.
FIRST_INPUT = {"body": 0, "cond": 0, "f": 0, "then_branch": 1, "else_branch": 1, "branches": 1}


def functions_called(operation: tf.Operation) -> Iterator[tuple[Any, int]]:
    """Yield the graphs that an operation runs (a loop's body, a branch, a call), with the place of its first input."""
    library = operation.graph._functions
    for name, first in FIRST_INPUT.items():
        try:
            value = operation.get_attr(name)
        except ValueError:
            continue
        for called in value if isinstance(value, list) else [value]:
            # An attribute of the same name may be no function: MapDefun's "f" is one, a convolution's is not.
            function = library.get(called.name) if isinstance(called, attr_value_pb2.NameAttrList) else None
            if isinstance(function, functions_of_old._DefinedFunction):  # as the gradient of CTC's loss has
                with operation.graph.as_default():  # where the functions that this one calls are found
                    graph = function_def_to_graph(function.definition)
                yield graph, first
            elif function is not None:
                yield function.graph, first


def operations(graph: Any, its_own: bool = False) -> Iterator[tf.Operation]:
    """Yield every operation of a graph and of all functions that it calls, each function once."""
    seen, waiting = {id(graph)}, [graph]
    while waiting:
        for operation in waiting.pop().get_operations():
            yield operation
            if its_own and operation.type not in CONTROL_FLOW:
                continue
            for called, _ in functions_called(operation):
                if id(called) not in seen:
                    seen.add(id(called))
                    waiting.append(called)


def graph_function(function: Callable[..., Any], xla: bool = False, signature: Sequence[Any] | None = None) -> Any:
    """Return function as a tf.function that nobody differentiates, without autograph.

    For every `tf.custom_gradient` that a trace meets, one in each optimizer's step at least, TensorFlow registers a
    gradient that holds the graph, and keeps it as long as the process lives. Those of this function's own graph are
    taken out again once it is traced. A tf.function that it calls keeps its own: others may differentiate it.
    """

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        finally:
            _forget_gradients(ops.get_default_graph())

    return tf.function(traced, autograph=False, jit_compile=xla or None, input_signature=signature)


def _forget_gradients(graph: Any) -> None:
    """Take the gradients of a graph's own custom gradients out of TensorFlow's registry."""
    for operation in operations(graph, its_own=True):
        try:
            name = operation.get_attr("_gradient_op_type").decode()
        except ValueError:  # it has the gradient of its kind
            continue
        if name.startswith("CustomGradient-"):  # and none that a user has registered under a name
            ops.gradient_registry._registry.pop(name, None)


def clear_kernels() -> None:
    """Let go of the kernels that TensorFlow keeps for each operation of other attributes that ran eagerly.

    Programs that are still there make theirs again at their next call, and an operation with a seed of its own begins
    its numbers anew: for the end of an experiment, not of a round.
    """
    context.context().clear_kernel_cache()


def xla_kernels(device: str) -> dict[str, list[dict[str, set[int]]]]:
    """Return the operations that XLA can compile for "CPU" or "GPU", each with the types that its kernels take.

    A kernel's types are the allowed values of the operation's attributes, as TensorFlow's enum.
    """
    return _xla_kernels("XLA_GPU_JIT" if device.startswith("GPU") else "XLA_CPU_JIT")


@functools.cache
def _xla_kernels(kind: str) -> dict[str, list[dict[str, set[int]]]]:
    # The list is empty until XLA was used once.
    tf.function(lambda number: number + 1, jit_compile=True, autograph=False)(tf.constant(0))
    found: dict[str, list[dict[str, set[int]]]] = {}
    for kernel in kernels.get_all_registered_kernels().kernel:
        if kernel.device_type == kind:
            types = {one.name: set(one.allowed_values.list.type) for one in kernel.constraint}
            found.setdefault(kernel.op, []).append(types)
    return found


def lowering_error(step: Callable[..., Any], specs: list[Any]) -> str | None:
    """Return why XLA cannot compile step for arguments of exactly these shapes; None if it can. No code is generated.

    step must use no text: XLA ends the process where it meets some.
    """
    # It takes no dictionaries or lists of specs.
    compiled = graph_function(lambda *flat: step(*tf.nest.pack_sequence_as(specs, flat)), xla=True)
    try:
        compiled.experimental_get_compiler_ir(*tf.nest.flatten(specs))(stage="hlo")
    except (ValueError, tf.errors.OpError) as error:
        return str(error)
    return None


def axis_of(loss: keras.losses.Loss) -> Any:
    """Return the axis that a loss looks along; -1 where it has none.

    Some of Keras's losses leave it out of their config.
    """
    return loss.get_config().get("axis", getattr(loss, "_fn_kwargs", {}).get("axis", -1))


class VariableType(NamedTuple):
    """Type and shape of what a handle's variable holds."""

    dtype: tf.DType
    shape: tf.TensorShape


def variable_type(handle: tf.Tensor) -> VariableType | None:
    """Return type and shape of the variable behind a resource; None for what is no variable (a table, a queue)."""
    data = handle._handle_data
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    (only,) = data.shape_and_type
    return VariableType(tf.as_dtype(only.dtype), tf.TensorShape(only.shape))


def assigned(concrete: Any) -> dict[int, tf.Operation]:
    """Find the captured resources that a traced function may assign: by the handle's id, an operation that assigns it.

    Loops, branches, calls, and functions compiled with XLA are looked into. An operation that is not known counts.
    """
    found: dict[int, tf.Operation] = {}
    captured = concrete.captured_inputs
    inputs = concrete.graph.inputs[len(concrete.graph.inputs) - len(captured) :]
    for handle, placeholder in zip(captured, inputs, strict=True):
        if handle.dtype == tf.resource and (writer := _writer(placeholder)) is not None:
            found[id(handle)] = writer
    return found


def _writer(resource: tf.Tensor) -> tf.Operation | None:
    """Find the first operation that may assign a resource, functions that it is handed to looked into."""
    for operation in resource.consumers():
        if operation.type in auto_control_deps_utils.RESOURCE_READ_OPS or operation.type in READS_BESIDES:
            continue
        called = list(functions_called(operation))
        if not called:
            return operation
        places = [place for place, one in enumerate(operation.inputs) if one is resource]
        for graph, first in called:
            for place in places:
                if place >= first and (writer := _writer(graph.inputs[place - first])) is not None:
                    return writer
    return None


def variable_names(concrete: Any) -> dict[int, str]:
    """Return the names of the variables that a traced function captures, by their handles' ids, if they have one."""
    return {id(variable.handle): variable.name.partition(":")[0] for variable in concrete.graph.variables}


def read(handle: tf.Tensor) -> tf.Tensor:
    """Read the value of the variable behind a handle."""
    kind = variable_type(handle)
    assert kind is not None
    return tf.identity(gen_resource_variable_ops.read_variable_op(handle, kind.dtype))


def assign(handle: tf.Tensor, value: tf.Tensor) -> None:
    """Assign the variable behind a handle, captured where a function is traced."""
    gen_resource_variable_ops.assign_variable_op(handle, value)


def call_flat(concrete: Any, arguments: Sequence[tf.Tensor], captured: Sequence[tf.Tensor]) -> Any:
    """Call a traced function with flat arguments, over these tensors in place of those that it has captured."""
    return concrete._call_flat(list(arguments), list(captured))


def symbolic_build(model: Any, batch: tuple) -> None:
    """Create the variables of a model, its losses and metrics from the shapes of a batch, as `fit` does.

    Nothing is computed. What a first trace creates, TensorFlow traces a second time.
    """
    lazy = (*model._flatten_layers(), *filter(None, (model._compile_metrics, model._compile_loss)))
    if not all(one.built for one in lazy):
        model._symbolic_build(data_batch=batch)


def stateful_operations(graph: Any) -> Iterator[tf.Operation]:
    """Yield operations whose results depend on more than inputs and variables: draws, samplers, Python code."""
    for operation in operations(graph):
        takes_resource = any(tensor.dtype == tf.resource for tensor in operation.inputs)
        if operation.op_def.is_stateful and not takes_resource and operation.type not in STATELESS_ALL_THE_SAME:
            yield operation


def eager_generator() -> object:
    """Return what TensorFlow draws the seeds of eager operations from; `tf.random.set_seed` makes another."""
    return context.context().__dict__.get("_rng")


_originals: dict[str, Callable[..., Any]] = {}


def replace_random(name: str, made_of: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have `tf.random.*` call made_of(original) in place of the operation of that name, once and for good."""
    if name not in _originals:
        _originals[name] = gen_random_ops.__dict__[name]
        setattr(gen_random_ops, name, made_of(_originals[name]))


class _Watched(threading.local):
    see: Callable[[tf.Tensor], None] | None = None


_watched = _Watched()
WRITES = {gen_resource_variable_ops: ("assign_", "resource_scatter_"), gen_stateful_random_ops: ("rng_", "stateful_")}


@contextlib.contextmanager
def watching_assignments(see: Callable[[tf.Tensor], None]) -> Iterator[None]:
    """Call see(handle) before this thread, running eagerly inside, assigns the variable behind handle."""
    _watch_writes()
    before = _watched.see
    _watched.see = see
    try:
        yield
    finally:
        _watched.see = before


@functools.cache
def _watch_writes() -> None:
    for module, prefixes in WRITES.items():
        for name, function in list(module.__dict__.items()):
            if callable(function) and name.startswith(prefixes) and not name.endswith("_eager_fallback"):
                setattr(module, name, _seen(function))


def _seen(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(resource: Any, *arguments: Any, **settings: Any) -> Any:
        see = _watched.see
        if see is not None and tf.executing_eagerly():
            see(resource)
        return function(resource, *arguments, **settings)

    return call
