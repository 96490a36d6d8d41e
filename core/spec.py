"""ModelSpec: which of a model's variables make up the federated vector, and where each lies in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import ConfigError

FLOATS = ("float32", "float16", "bfloat16", "float64")


class VariableSpec(NamedTuple):
    """One variable of the model."""

    path: str  # as Keras names it: "dense/kernel"
    shape: tuple[int, ...]
    dtype: str
    trainable: bool  # False: statistics, such as BatchNorm's moving mean
    offset: int | None  # of its first number in the vector; None: it stays at home, in the client's memory

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class ModelSpec:
    """The variables of `model.weights`, in their order. Equal specs mean interchangeable vectors."""

    variables: tuple[VariableSpec, ...]

    @staticmethod
    def of(model: Any, personal: Sequence[str] = ()) -> ModelSpec:
        """The spec of a built Keras model.

        personal: regular expressions; a variable whose path matches one (re.search) stays with its client. Variables
        that are not float (counters) always do. Errors: ConfigError for a pattern that matches nothing, or when
        nothing is left to share.
        """
        patterns = [re.compile(pattern) for pattern in personal]
        unused = set(personal)
        variables, offset = [], 0
        for weight in model.weights:
            matched = {pattern.pattern for pattern in patterns if pattern.search(weight.path)}
            unused -= matched
            dtype = str(weight.dtype)
            shared = not matched and dtype in FLOATS
            spec = VariableSpec(
                weight.path, tuple(weight.shape), dtype, bool(weight.trainable), offset if shared else None
            )
            variables.append(spec)
            offset += spec.size if shared else 0
        paths = ", ".join(variable.path for variable in variables)
        if unused:
            raise ConfigError(f"personal={sorted(unused)[0]!r} matches no variable; the model has: {paths}")
        if not offset:
            raise ConfigError(f"no variable of the model is shared; the model has: {paths or 'no variables'}")
        return ModelSpec(tuple(variables))

    @property
    def size(self) -> int:
        """d, the length of the vector."""
        return sum(variable.size for variable in self.variables if variable.offset is not None)

    @property
    def shared(self) -> Iterator[VariableSpec]:
        """The variables inside the vector, in its order."""
        return (variable for variable in self.variables if variable.offset is not None)

    def flatten(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """The vector of a full list of weights (in `model.weights` order): float32, shape (d,)."""
        parts = [
            np.asarray(weight, np.float32).ravel()
            for weight, variable in zip(weights, self.variables, strict=True)
            if variable.offset is not None
        ]
        return np.concatenate(parts)

    def unflatten(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Path to array for every shared variable; views of the vector where its dtype is float32.

        Errors: ConfigError for a vector of another length.
        """
        if vector.shape != (self.size,):
            raise ConfigError(f"expected a vector of shape ({self.size},), got {vector.shape}")
        parts, start = {}, 0
        for variable in self.shared:
            parts[variable.path] = vector[start : start + variable.size].reshape(variable.shape)
            start += variable.size
        return parts

    def to_json(self) -> str:
        """Every variable, as text; `from_json` reads it back."""
        return json.dumps([list(variable) for variable in self.variables])

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        """The inverse of `to_json`."""
        rows = json.loads(text)
        return ModelSpec(tuple(VariableSpec(path, tuple(shape), *rest) for path, shape, *rest in rows))

    @property
    def digest(self) -> str:
        """SHA-256 of the spec, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
