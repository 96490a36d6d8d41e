"""ModelSpec: which of a model's variables make up the federated vector, and where each lies in it.

trainable    what gradients move                           in the vector
statistics   other floats that training assigns            in the vector
frozen       what training never assigns                   in the base: see `core.frozen`
personal     what is to stay with its client, and integers that training assigns    in the client's memory
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from .errors import ConfigError, StoreError
from .frozen import Base
from .validation import lacking

FLOATS = ("float32", "float16", "bfloat16", "float64")
NATIVE = {"bool", "float16", "float32", "float64", *(f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64))}
MOMENTS = ("moving_mean", "moving_variance")  # Keras's names of the two statistics that BatchNorm keeps


class VariableSpec(NamedTuple):
    """One variable of the model."""

    path: str  # Keras's name of the variable: "dense/kernel"
    shape: tuple[int, ...]
    dtype: str
    trainable: bool  # whether Keras calls it so; False in the vector: statistics, such as BatchNorm's moving mean
    offset: int | None  # place of its first number in the vector; None: it is not in it
    is_frozen: bool = False  # training never assigns it: it lies in the base

    @property
    def size(self) -> int:
        """Length of the variable in numbers: the product of its shape."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_at_home(self) -> bool:
        """Return whether it stays with its client, in the client's memory."""
        return self.offset is None and not self.is_frozen

    @property
    def place(self) -> slice:
        """The slice of the vector in which it lies; only for what is shared."""
        assert self.offset is not None
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, repr=False)
class ModelSpec:
    """The variables of `model.weights`, in their order. Equal specs mean interchangeable vectors over equal bases."""

    variables: tuple[VariableSpec, ...]
    base: str = ""  # Base.digest of the frozen variables' values; empty where nothing is frozen

    @staticmethod
    def of(model: Any, personal: Sequence[str] = (), moved: Collection[int] | None = None) -> ModelSpec:
        """Return the spec of a built Keras model; the values of what is frozen are not looked at: see `on`.

        personal: regular expressions; a variable whose path matches one (re.search) stays with its client, frozen or
        not. So do variables that training assigns and that are not float (counters). moved: the places in
        `model.weights` of the variables that training assigns; None: of all.
        Errors: ConfigError for a pattern that matches nothing, or when nothing is left to share.
        """
        patterns = [re.compile(pattern) for pattern in personal]
        unused = set(personal)
        variables, offset = [], 0
        for place, weight in enumerate(model.weights):
            matched = {pattern.pattern for pattern in patterns if pattern.search(weight.path)}
            unused -= matched
            dtype, is_frozen = str(weight.dtype), moved is not None and place not in moved and not matched
            shared = not matched and not is_frozen and dtype in FLOATS
            at = offset if shared else None
            spec = VariableSpec(weight.path, tuple(weight.shape), dtype, bool(weight.trainable), at, is_frozen)
            variables.append(spec)
            offset += spec.size if shared else 0
        paths = ", ".join(variable.path for variable in variables)
        if unused:
            raise ConfigError(f"personal={sorted(unused)[0]!r} matches no variable; the model has: {paths}")
        if variables and moved is not None and not moved:
            raise ConfigError(
                f"training assigns no variable of the model: all are frozen ({paths}); set trainable=True on what is "
                "to be trained, before model.compile"
            )
        if not offset:
            raise ConfigError(f"no variable of the model is shared; the model has: {paths or 'no variables'}")
        return ModelSpec(tuple(variables))

    def on(self, base: Base) -> ModelSpec:
        """Return this spec with the digest of the values that its frozen variables have."""
        return replace(self, base=base.digest)

    def __repr__(self) -> str:
        return f"ModelSpec({len(self.variables)} variables, vector of {self.size})"

    @property
    def size(self) -> int:
        """Length d of the vector."""
        return sum(variable.size for variable in self.variables if variable.offset is not None)

    @property
    def shared(self) -> Iterator[VariableSpec]:
        """The variables inside the vector, in its order."""
        return (variable for variable in self.variables if variable.offset is not None)

    @property
    def frozen(self) -> Iterator[VariableSpec]:
        """The variables in the base, in its order."""
        return (variable for variable in self.variables if variable.is_frozen)

    @property
    def keeps(self) -> bool:
        """Return whether a variable stays with each client."""
        return any(variable.is_at_home for variable in self.variables)

    @property
    def trainable_bytes(self) -> int | None:
        """Number of bytes that the vector takes, where variables besides it are frozen; None where none is."""
        return 4 * self.size if any(self.frozen) else None

    @cached_property
    def statistics(self) -> tuple[slice, ...]:
        """Slices of the vector that no gradient moves: statistics. Neighbours are one slice."""
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
        """Slices of the moving mean and the moving variance of each BatchNorm layer, where both are shared."""
        found = {variable.path: variable.place for variable in self.shared if not variable.trainable}
        means = (path for path in found if path.rpartition("/")[2] == MOMENTS[0])
        pairs = ((found[path], found.get(path.removesuffix(MOMENTS[0]) + MOMENTS[1])) for path in means)
        return tuple((mean, variance) for mean, variance in pairs if variance is not None)

    def places(self, paths: Collection[str]) -> np.ndarray:
        """Mark the places of the variables of those paths, the client's half of a cut model say: bool, shape (d,).

        Paths of variables that stay at home are nowhere in it.
        """
        found = np.zeros(self.size, bool)
        for variable in self.shared:
            found[variable.place] = variable.path in paths
        return found

    def within(self, places: Collection[int]) -> ModelSpec:
        """Return the spec of some of the variables, a half of a cut model say: they make a vector of their own.

        places: theirs in `variables`. The base is that of the whole model.
        """
        variables, offset = [], 0
        for place, variable in enumerate(self.variables):
            if place not in places:
                continue
            is_shared = variable.offset is not None
            variables.append(variable._replace(offset=offset if is_shared else None))
            offset += variable.size if is_shared else 0
        return replace(self, variables=tuple(variables))

    def flatten(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vector of a full list of weights (in `model.weights` order): float32, shape (d,)."""
        parts = [
            np.asarray(weight, np.float32).ravel()
            for weight, variable in zip(weights, self.variables, strict=True)
            if variable.offset is not None
        ]
        return np.concatenate(parts)

    def unflatten(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return every shared variable's array by path; views of the vector where its dtype is float32.

        Of several variables of one path, as subclassed models may have, the second is "path (2)". Errors: ConfigError
        for a vector of another length.
        """
        if vector.shape != (self.size,):
            raise ConfigError(f"expected a vector of shape ({self.size},), got {vector.shape}")
        shared = list(self.shared)
        parts = (vector[variable.place].reshape(variable.shape) for variable in shared)
        return dict(zip(_names(shared), parts, strict=True))

    def base_of(self, model: Any) -> Base:
        """Return the values of the frozen variables in a Keras model of these variables."""
        pairs = zip(model.weights, self.variables, strict=True)
        return Base(tuple(np.asarray(weight.numpy()) for weight, variable in pairs if variable.is_frozen))

    def base_from(self, content: bytes | memoryview) -> Base:
        """Read the base from its bytes. Errors: StoreError for other bytes than those of the digest."""
        if hashlib.sha256(content).hexdigest() != self.base:
            raise StoreError(f"{len(content)} bytes are not the frozen variables' whose digest is {self.base[:12]}")
        arrays, start = [], 0
        for variable in self.frozen:
            dtype = dtype_of(variable.dtype)
            part = np.frombuffer(content, dtype, variable.size, start)
            arrays.append(part.astype(dtype.newbyteorder("=")).reshape(variable.shape))
            start += part.nbytes
        return Base(tuple(arrays))

    def arrays(self, vector: np.ndarray, base: Base) -> dict[str, np.ndarray]:
        """Return every variable's array by path, but for those that stay with clients: see `unflatten`."""
        shared, frozen = iter(self.unflatten(vector).values()), iter(base.arrays)
        variables = [variable for variable in self.variables if not variable.is_at_home]
        parts = (next(frozen if variable.is_frozen else shared) for variable in variables)
        return dict(zip(_names(variables), parts, strict=True))

    def load_into(self, model: Any, vector: np.ndarray, base: Base | None = None) -> Any:
        """Assign the vector, and the base, to a Keras model of the same variables; returns it.

        base: None: the model's frozen variables have to hold its values already. Variables that stay with clients are
        left as they are. Errors: ConfigError when the model has other variables, or frozen ones of other values.
        """
        self._check_fits(model)
        if base is not None:
            self.load_base(model.weights, base)
        elif (held := self.base_of(model).digest) != self.base:
            first = next(self.frozen).path
            raise ConfigError(
                f"{first!r} is frozen, and what is frozen has other values in this model ({held[:12]}) than where the "
                f"params were trained ({self.base[:12]}); hand them over too: spec.load_into(model, params, "
                "history.base), or use load_into of the History or of store.models"
            )
        arrays = iter(self.unflatten(vector).values())
        for weight, variable in zip(model.weights, self.variables, strict=True):
            if variable.offset is not None:
                weight.assign(next(arrays))
        settle(model)
        return model

    def load_base(self, weights: Sequence[Any], base: Base) -> None:
        """Assign the base to a model's variables, given in the order of `model.weights`."""
        arrays = iter(base.arrays)
        for weight, variable in zip(weights, self.variables, strict=True):
            if variable.is_frozen:
                weight.assign(next(arrays))

    def _check_fits(self, model: Any) -> None:
        """Raise ConfigError for a model of other variables."""
        if not model.weights:
            raise ConfigError("the model has no variables until it has seen an example: call it on one first")
        for its, ours in zip_longest(model.weights, self.variables):
            if _shape(its) != _shape(ours):
                raise ConfigError(
                    f"the model has {_named(its)} where the params have {_named(ours)}: they do not fit it"
                )
            if ours.is_frozen and str(its.dtype) != ours.dtype:
                raise ConfigError(
                    f"the model has {its.path} as {its.dtype} where it is frozen as {ours.dtype}; build it as it was "
                    "trained: quantize and enable_lora as there"
                )

    def to_json(self) -> str:
        """Write every variable as text; `from_json` reads it back.

        Where nothing is frozen it is the text that earlier versions wrote, and so is the digest.
        """
        if not self.base and not any(self.frozen):
            return json.dumps([list(variable[:-1]) for variable in self.variables])
        return json.dumps({"variables": [list(variable) for variable in self.variables], "base": self.base})

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        """Invert `to_json`."""
        held = json.loads(text)
        rows, base = (held["variables"], held["base"]) if isinstance(held, dict) else (held, "")
        return ModelSpec(tuple(VariableSpec(path, tuple(shape), *rest) for path, shape, *rest in rows), base)

    @property
    def digest(self) -> str:
        """SHA-256 of the spec, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def settle(model: Any) -> None:
    """Let layers work out anew what they keep beside their variables, after these were assigned.

    Keras does so when it loads weights.

    Normalization keeps its mean and variance as constants: without this it would go on with those from before.
    """
    layers = [] if lacking(model, ("_flatten_layers",)) else model._flatten_layers()
    settled = [layer for layer in layers if not lacking(layer, ("adapt_mean", "finalize_state"))]
    for layer in settled:
        layer.finalize_state()
    if settled:  # functions that Keras has compiled hold the constants
        model.train_function = model.test_function = model.predict_function = None


def dtype_of(name: str) -> np.dtype:
    """Return NumPy's type of that name, little-endian; bfloat16 and its kind are another package's."""
    if name not in NATIVE:
        import ml_dtypes  # noqa: F401  NumPy knows the names from then on

    return np.dtype(name).newbyteorder("<")


def _names(variables: Iterable[VariableSpec]) -> list[str]:
    """List each variable's path; the second of one path is "path (2)"."""
    seen: Counter[str] = Counter()
    names = []
    for variable in variables:
        seen[variable.path] += 1
        count = seen[variable.path]
        names.append(variable.path if count == 1 else f"{variable.path} ({count})")
    return names


def _shape(variable: Any) -> tuple[int, ...] | None:
    return None if variable is None else tuple(variable.shape)


def _named(variable: Any) -> str:
    return "no more" if variable is None else f"{variable.path} {tuple(variable.shape)}"
