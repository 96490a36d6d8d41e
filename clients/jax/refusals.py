"""Parts of an experiment that Keras on JAX does not carry yet: each is refused in a sentence that names it."""

from __future__ import annotations

from ...core.errors import IncompatibleError
from ...core.parts.algorithms import SplitStrategy
from ...core.recipe import Recipe

REMEDY = "set KERAS_BACKEND=tensorflow"


def check_supported(recipe: Recipe) -> None:
    """Raise IncompatibleError for a part that the JAX engine does not carry."""
    if isinstance(recipe.strategy, SplitStrategy):
        raise IncompatibleError(f"{recipe.strategy!r} cuts the model in two, which Umbel does not on JAX; {REMEDY}")


def check_simulation(replicas: int, compile: str, devices: object) -> None:
    """Raise IncompatibleError for settings of a simulation that the JAX engine does not have."""
    if replicas != 1:
        raise IncompatibleError(f"replicas={replicas} divide a client's batches on TensorFlow alone; {REMEDY}")
    if compile == "graph":
        raise IncompatibleError(f"compile='graph' is TensorFlow's, and XLA compiles all on JAX; drop it, or {REMEDY}")
    if devices is not None:
        raise IncompatibleError(f"devices={devices!r} are TensorFlow's names; on JAX all devices are taken: drop it")
