"""Any value of an experiment as text: what is logged, hashed and compared."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np


def describe(path: str, value: Any, flat: dict[str, str]) -> None:
    """Add value, found at a dotted path, to a flat description."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        flat[path] = type(value).__qualname__
        for part in dataclasses.fields(value):
            if part.compare:
                describe(f"{path}.{part.name}", getattr(value, part.name), flat)
    elif isinstance(value, np.ndarray):
        content = hashlib.blake2b(np.ascontiguousarray(value).view(np.uint8).data, digest_size=8).hexdigest()
        flat[path] = f"{value.dtype}{list(value.shape)} {content}"
    elif isinstance(value, dict):
        for name, part in value.items():
            describe(f"{path}.{name}", part, flat)
    elif isinstance(value, (tuple, list)):
        flat[path] = f"{type(value).__name__} of {len(value)}"
        for position, part in enumerate(value):
            describe(f"{path}.{position}", part, flat)
    elif callable(value):
        flat[path] = getattr(value, "__qualname__", type(value).__qualname__)
    elif hasattr(value, "describe"):
        flat[path] = value.describe()
    else:
        flat[path] = repr(value)
