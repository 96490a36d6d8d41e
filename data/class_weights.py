"""Examples that count by their class, as `fit(class_weight=…)` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core.bases import Population
from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.reading.adapted import adapted
from ..core.validation import require, require_real
from .values import fields_only, once


@dataclass(frozen=True)
class ClassWeighted(Population):
    """The clients of `population`, whose examples count by their class in the loss and in `weighted_metrics`.

    Same as `model.fit(class_weight=…)` for each client. Only training is weighted: give `validation` and `test` as they
    are. How much a client counts in the mean of all does not change: see `Experiment.weighting`.

    Parameters
    ----------
    weights
        Weight of each class, by its number, or by its name where the population has names; 1 for a class that is not in
        it. Kept as pairs, ascending.

    Raises
    ------
    ConfigError
        For a weight that is negative or no number; when first used, for a class that the population does not have,
        several targets, or examples that have weights of their own, as in Keras.
    """

    population: Population
    weights: Mapping[int | str, float] | tuple[tuple[int | str, float], ...]

    __getstate__ = fields_only

    def __post_init__(self) -> None:
        require(
            isinstance(self.weights, (Mapping, tuple)) and len(self.weights) > 0,
            f"expected weights={self.weights!r} to be a weight for each class, such as {{0: 1.0, 1: 5.0}}",
        )
        pairs = dict(self.weights)
        for name, weight in pairs.items():
            require(isinstance(name, (int, str)), f"expected the class {name!r} to be a number or a name")
            require_real(f"weights[{name!r}]", weight, at_least=0)
        object.__setattr__(self, "weights", tuple(sorted(pairs.items(), key=str)))

    def __len__(self) -> int:
        return len(self.population)

    @property
    def made_from(self) -> Population:
        """The population that this one is a view of."""
        population: Population = adapted(self.population, Population)
        return population

    def sample(self) -> Examples:
        """Return the population's sample, weighted."""
        return self._weighted(self.made_from.sample())

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return self.population.sizes()

    def examples(self, client: int) -> Examples:
        """Return this client's own examples, weighted."""
        return self._weighted(self.population.examples(client))

    @once
    def resident(self) -> Examples | None:
        """Return the one data set that all clients index into, with its weights; None where it is streamed."""
        whole = self.population.resident()
        return None if whole is None else self._weighted(whole)

    def indices(self, client: int) -> np.ndarray:
        """Return this client's rows of `resident()`."""
        return self.population.indices(client)

    def _weighted(self, examples: Examples) -> Examples:
        if examples.sample_weight is not None:
            raise ConfigError(
                "examples have weights of their own: ClassWeighted goes with none, multiply them yourself"
            )
        classes = classes_of(examples.y)
        weights = np.ones(len(classes), np.float32)
        for number, weight in self._by_number.items():
            weights[classes == number] = weight
        return examples._replace(sample_weight=weights)

    @property
    def _by_number(self) -> dict[int, float]:
        """Weights by the number that stands for their class."""
        encoding = self.encoding()
        names = () if encoding is None else encoding.classes
        pairs = dict(self.weights)
        unknown = [name for name in pairs if isinstance(name, str) and name not in names]
        if unknown:
            known = f"its classes are {', '.join(map(repr, names))}" if names else "its classes are numbers"
            raise ConfigError(f"weights has the class {unknown[0]!r}, which the population does not have: {known}")
        return {names.index(name) if isinstance(name, str) else name: weight for name, weight in pairs.items()}


def classes_of(targets: object) -> np.ndarray:
    """Return the class of each example: int64, shape (n,).

    targets: numbers of classes, shape (n,) or (n, 1), or one-hot, shape (n, classes). Errors: ConfigError for others.
    """
    is_one = isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf" and targets.ndim in (1, 2)
    require(is_one, "expected one target with a class for each example, to weigh examples by it")
    labels = np.asarray(targets)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return np.asarray(labels.argmax(1))
    return labels.reshape(-1).astype(np.int64)
