"""Choice of XLA or a graph: by the model's operations and the run's length, before round 1; never by a clock.

On a CPU XLA runs most small models about twice as fast as a graph, and convolutions and random numbers twenty times as
slowly. It takes about 1.5 ms per operation to compile once, and saves 0.2 to 1.6 µs per operation and step.
"""

from __future__ import annotations

import fnmatch
import math
from typing import Any, NamedTuple

import tensorflow as tf

from ...core.recipe import Recipe
from . import compat

WORTHWHILE_STEPS = 20_000  # steps of all clients in all rounds: XLA pays after 1,000 to 8,000, for any size of model
SLOW_ON_CPU = ("*Conv*", "*MaxPoolGrad*", "*Pool3D*", "StatelessRandom*", "Random*", "StatefulUniform*",
               "*TruncatedNormal*", "*Multinomial*")  # fmt: skip
# Operations without a kernel that XLA takes all the same: it follows what they call, or leaves them out.
FOLLOWED = {"Placeholder", "PlaceholderWithDefault", "Print", "PrintV2", "Assert"}
UNKNOWN_TO_XLA = (tf.string, tf.variant)


class Choice(NamedTuple):
    """Choice of how clients' training is compiled, and why; both are in a run's record."""

    xla: bool
    reason: str


def refusal(graph: Any, device: str) -> str | None:
    """Return why XLA cannot compile a traced graph for device, in words; None where nothing speaks against it."""
    kernels = compat.xla_kernels(device)
    for operation in compat.operations(graph):
        tensors = [*operation.inputs, *operation.outputs]
        if any(tensor.dtype in UNKNOWN_TO_XLA for tensor in tensors):
            return f"{operation.name} ({operation.type}) handles text or lists, which XLA has not"
        if operation.type in FOLLOWED:
            continue
        if not any(takes(kernel, operation) for kernel in kernels.get(operation.type, [])):
            return f"XLA has no {operation.type}, which {operation.name} is"
    return None


def takes(kernel: dict[str, set[int]], operation: tf.Operation) -> bool:
    """Return whether a kernel takes the types that an operation has."""
    for name, allowed in kernel.items():
        value = operation.get_attr(name)
        types = value if isinstance(value, list) else [value]
        if not all(tf.as_dtype(one).as_datatype_enum in allowed for one in types):
            return False
    return True


def slow_on_cpu(graph: Any) -> str | None:
    """Say which operation XLA runs many times more slowly than a graph does, on a CPU: the first; None for none."""
    for operation in compat.operations(graph):
        if any(fnmatch.fnmatchcase(operation.type, pattern) for pattern in SLOW_ON_CPU):
            return f"XLA is slow at {operation.type} ({operation.name}) on a CPU"
    return None


def too_short(experiment: Recipe) -> str | None:
    """Return why compiling does not pay for this experiment, from its settings alone; None where it may."""
    batch = experiment.local.batch_size
    mean = float(experiment.population.sizes().mean())
    if not batch or mean < batch:
        return "batches have no fixed size"
    cohort = experiment.sampler.expected_cohort(len(experiment.population))
    each = experiment.local.steps or experiment.local.mean_epochs * math.floor(mean / batch)
    steps = math.floor(experiment.rounds * cohort * each)
    if steps < WORTHWHILE_STEPS:
        return f"{steps} steps do not repay compiling (from {WORTHWHILE_STEPS} on)"
    return None


def has_open_lengths(experiment: Recipe, inputs: Any) -> bool:
    """Say whether clients that come one by one may hold examples of different lengths. inputs: the model's, or None."""
    if experiment.population.resident() is not None or inputs is None:
        return False
    return any(None in tuple(one.shape)[1:] for one in inputs)
