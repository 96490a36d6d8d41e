"""Teams of engines, hired for the backend that Keras has in this process. Only that backend is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.system.backend import require_backend
from .choices import BACKEND, TeamSettings


def hire(experiment: Experiment, settings: TeamSettings) -> list[Any]:
    """Make a team's engines. Errors: ConfigError for a model, or settings, that the backend does not carry."""
    if require_backend() == "jax":
        from .jax.team import hire as hire_jax

        return list(hire_jax(experiment, settings))
    from .tensorflow.team import hire as hire_tensorflow

    return list(hire_tensorflow(experiment, settings))


def choose(team: Sequence[Any], settings: TeamSettings, choices: Mapping[str, str]) -> dict[str, str]:
    """Choose how a team computes, for its experiment; return the choices that a run records.

    choices: those of the run that is resumed. Errors: ConfigError where another backend began it.
    """
    backend, began = require_backend(), choices.get(BACKEND, "tensorflow")
    if choices and backend != began:
        raise ConfigError(f"the run began with Keras on {began}, and this is {backend}: set KERAS_BACKEND={began}")
    if backend == "jax":
        from .jax.team import choose as choose_jax

        return choose_jax(team, choices)
    from .tensorflow.team import choose as choose_tensorflow

    return choose_tensorflow(team, settings, choices)


def load() -> None:
    """Import the backend, and all that compiles for it, ahead of time."""
    if require_backend() == "jax":
        from .jax import engine as jax_engine  # noqa: F401
    else:
        from .tensorflow import engine as tensorflow_engine  # noqa: F401
