"""ModelSpec: which of a model's variables make up the federated vector, and where each lies in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from .errors import ConfigError

FLOATS = ("float32", "float16", "bfloat16", "float64")
MOMENTS = ("moving_mean", "moving_variance")  # what Keras calls the two that BatchNorm keeps


class VariableSpec(NamedTuple):
    """One variable of the model."""

    path: str  # as Keras names it: "dense/kernel"
    shape: tuple[int, ...]
    dtype: str
    trainable: bool  # False: statistics, such as BatchNorm's moving mean, and what is frozen
    offset: int | None  # of its first number in the vector; None: it stays at home, in the client's memory

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def place(self) -> slice:
        """Where it lies in the vector; only for what is shared."""
        assert self.offset is not None
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"ModelSpec({len(self.variables)} variables, vector of {self.size})"

    @property
    def size(self) -> int:
        """d, the length of the vector."""
        return sum(variable.size for variable in self.variables if variable.offset is not None)

    @property
    def shared(self) -> Iterator[VariableSpec]:
        """The variables inside the vector, in its order."""
        return (variable for variable in self.variables if variable.offset is not None)

    @cached_property
    def statistics(self) -> tuple[slice, ...]:
        """Where the vector holds what no gradient moves: statistics, and what is frozen. Neighbours are one slice."""
        places: list[slice] = []
        for variable in self.shared:
            if variable.trainable:
                continue
            place = variable.place
            if places and places[-1].stop == place.start:
                place = slice(places.pop().start, place.stop)
            places.append(place)
        return tuple(places)

    @cached_property
    def moments(self) -> tuple[tuple[slice, slice], ...]:
        """Where the moving mean and the moving variance of each BatchNorm layer lie, both of them shared."""
        found = {variable.path: variable.place for variable in self.shared if not variable.trainable}
        means = (path for path in found if path.rpartition("/")[2] == MOMENTS[0])
        pairs = ((found[path], found.get(path.removesuffix(MOMENTS[0]) + MOMENTS[1])) for path in means)
        return tuple((mean, variance) for mean, variance in pairs if variance is not None)

    def places(self, paths: Collection[str]) -> np.ndarray:
        """Where in the vector the variables of those paths lie, the client's half of a cut model say: bool, shape (d,).

        Paths of variables that stay at home are nowhere in it.
        """
        found = np.zeros(self.size, bool)
        for variable in self.shared:
            found[variable.place] = variable.path in paths
        return found

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

        Of several variables of one path, as subclassed models may have, the second is "path (2)". Errors: ConfigError
        for a vector of another length.
        """
        if vector.shape != (self.size,):
            raise ConfigError(f"expected a vector of shape ({self.size},), got {vector.shape}")
        parts: dict[str, np.ndarray] = {}
        seen: Counter[str] = Counter()
        for variable in self.shared:
            seen[variable.path] += 1
            name = variable.path if seen[variable.path] == 1 else f"{variable.path} ({seen[variable.path]})"
            parts[name] = vector[variable.place].reshape(variable.shape)
        return parts

    def load_into(self, model: Any, vector: np.ndarray) -> Any:
        """Assign the vector to a Keras model of the same variables; returns it.

        Variables that stay at home are left as they are. Errors: ConfigError when the model has other variables.
        """
        shapes = [tuple(weight.shape) for weight in model.weights]
        if not shapes:
            raise ConfigError("the model has no variables until it has seen an example: call it on one first")
        if shapes != [variable.shape for variable in self.variables]:
            pairs = zip_longest(model.weights, self.variables)
            its, ours = next(pair for pair in pairs if _shape(pair[0]) != _shape(pair[1]))
            raise ConfigError(f"the model has {_named(its)} where the params have {_named(ours)}: they do not fit it")
        arrays = iter(self.unflatten(vector).values())
        for weight, variable in zip(model.weights, self.variables, strict=True):
            if variable.offset is not None:
                weight.assign(next(arrays))
        return model

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


def _shape(variable: Any) -> tuple[int, ...] | None:
    return None if variable is None else tuple(variable.shape)


def _named(variable: Any) -> str:
    return "no more" if variable is None else f"{variable.path} {tuple(variable.shape)}"
