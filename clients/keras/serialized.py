"""Keras's serialised forms without a second backend: Keras would import TensorFlow to look at its types."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import keras
from keras.src.utils import module_utils


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Keep Keras from importing TensorFlow inside, where the process does without it."""
    lazy = module_utils.tensorflow
    if keras.backend.backend() == "tensorflow" or "tensorflow" in sys.modules:
        yield
        return
    before = lazy._available
    lazy._available = False
    try:
        yield
    finally:
        lazy._available = before
