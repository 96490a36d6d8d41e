"""The backend that Keras has, found without importing Keras: the wrong one may fail in a page of its own words."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from ..errors import ConfigError

VARIABLE = "KERAS_BACKEND"
DEFAULT = "tensorflow"
BACKENDS = (DEFAULT, "jax")


def require_backend() -> str:
    """Return the backend that Keras has, or would have. Errors: ConfigError for one that Umbel does not train with."""
    backend, place = keras_backend()
    if backend == "jax" and importlib.util.find_spec("jax") is None:
        raise ConfigError(f"{place} says 'jax', and JAX is not installed: pip install 'umbel[jax]'")
    if backend in BACKENDS:
        return backend
    remedy = f"set {VARIABLE}={DEFAULT}{_again()}"
    raise ConfigError(f"Umbel trains with Keras on TensorFlow or JAX, and {place} says {backend!r}: {remedy}")


def require_tensorflow(what: str) -> None:
    """Raise ConfigError where Keras has another backend. what: what needs TensorFlow, as the subject of a sentence."""
    backend, place = keras_backend()
    if backend != DEFAULT:
        raise ConfigError(
            f"{what} on TensorFlow alone, and {place} says {backend!r}: set {VARIABLE}={DEFAULT}{_again()}"
        )


def use_backend(backend: str) -> None:
    """Let Keras have a backend in this process. Errors: ConfigError for one that is not known, or comes too late."""
    if backend not in BACKENDS:
        raise ConfigError(f"expected backend={backend!r} to be one of {', '.join(BACKENDS)}")
    if "keras" in sys.modules and keras_backend()[0] != backend:
        raise ConfigError(f"Keras is imported with {keras_backend()[0]!r} already: set {VARIABLE}={backend} before")
    os.environ[VARIABLE] = backend


def _again() -> str:
    return " and start Python anew; in a notebook, restart the kernel" if "keras" in sys.modules else ""


def keras_backend() -> tuple[str, str]:
    """Return the backend that Keras has, or would have, in this process, and what says so."""
    keras = sys.modules.get("keras")
    if keras is not None:
        return str(keras.config.backend()), "the Keras that is imported"
    variable = os.environ.get(VARIABLE)
    if variable:
        return variable, VARIABLE
    path = settings_path()
    try:
        return str(json.loads(path.read_text("utf-8")).get("backend", DEFAULT)), str(path)
    except (OSError, ValueError, AttributeError):  # Keras passes over such a file, too
        return DEFAULT, "Keras"


def settings_path() -> Path:
    """Return the path where Keras looks for its settings."""
    home = os.path.expanduser("~")
    folder = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    return Path(os.environ.get("KERAS_HOME", folder), "keras.json")
