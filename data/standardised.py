"""Inputs standardised by a mean and a deviation that all clients share: as values, and as populations and sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..core.bases import Population
from ..core.examples import Examples, brief
from ..core.protocols import Source
from ..core.reading.adapted import adapted
from ..core.validation import fields_of, require, require_real
from .encoding import ColumnSource, declared_classes
from .values import fields_only, hash_fields, once, same_fields

BLOCK = 4096  # number of examples at a time: float64 takes twice as much memory as they do
NEGLIGIBLE = 64 * np.finfo(np.float64).eps  # largest deviation over mean that adding up equal numbers may leave


@dataclass(frozen=True, eq=False, repr=False)
class FeatureStatistics:
    """Mean and standard deviation of each input feature, over all examples: float64, of the shape of one input.

    From `federated_statistics`; or built from numbers that are public, such as those of another data set.

    Parameters
    ----------
    examples
        Number of examples they are of, as far as the sum said; 0 where unknown.
    epsilon, delta
        What releasing them cost, by a plan of the kind `plan` names; 0 for public numbers, infinity for what clients
        released without noise. A run under a plan adds them to its own.
    noise
        Where the plan's noise comes from: "seeded", which whoever knows the seed takes off again, and real devices
        refuse; "operating system"; empty where there is none.

    Raises
    ------
    ConfigError
        For numbers that are not finite, a negative deviation, or two shapes.
    """

    mean: np.ndarray
    deviation: np.ndarray
    examples: float = 0.0
    epsilon: float = 0.0
    delta: float = 0.0
    plan: str = ""
    noise: Literal["", "seeded", "operating system"] = ""

    __eq__ = same_fields
    __hash__ = hash_fields

    def __post_init__(self) -> None:
        for name, values in fields_of(self, "mean", "deviation").items():
            array = np.array(values, np.float64)
            require(bool(np.isfinite(array).all()), f"expected the features' {name} to be finite numbers")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        shapes = self.mean.shape, self.deviation.shape
        require(shapes[0] == shapes[1], f"expected mean and deviation of one shape, got {shapes[0]} and {shapes[1]}")
        require(bool((self.deviation >= 0).all()), "expected deviations of at least 0")
        require_real("examples", self.examples, at_least=0)
        require(self.epsilon >= 0, f"expected epsilon={self.epsilon!r} ≥ 0")
        require_real("delta", self.delta, at_least=0)

    def __repr__(self) -> str:
        return f"FeatureStatistics({self.mean.size} features of {self.examples:.0f} examples)"

    def standardise(self, examples: Examples | tuple | Source) -> Any:
        """Standardise test examples, (x − mean)/deviation: Examples or (x, y) to Examples, a Source to another."""
        if isinstance(examples, Source):
            return StandardisedSource(examples, self)
        examples = Examples.of(examples)
        return examples._replace(x=self.of(examples.x))

    def of(self, x: Any) -> np.ndarray:
        """Standardise inputs, (x − mean)/deviation: float32, of x's shape.

        A feature of deviation 0 is not divided: it becomes x − mean. Errors: ConfigError for inputs of another shape,
        or that are no numbers.
        """
        require_features(x, self.mean.shape)
        # As scikit-learn does it: a constant must not become the noise of its own rounding.
        is_constant = self.deviation <= NEGLIGIBLE * np.abs(self.mean)
        divisor = np.where(is_constant, 1.0, self.deviation)
        standardised = np.empty(x.shape, np.float32)
        for start in range(0, len(x), BLOCK):
            rows = slice(start, start + BLOCK)
            standardised[rows] = (x[rows] - self.mean) / divisor
        return standardised


@dataclass(frozen=True)
class Standardised(Population):
    """The clients of `population`, with inputs (x − mean)/deviation, float32. Lazy as it is, resident where it is.

    Validation clients take the statistics of the training clients, test examples `statistics.standardise(test)`.
    Errors, when first used: ConfigError for inputs of another shape than the statistics, or of several arrays.
    """

    population: Population
    statistics: FeatureStatistics

    __getstate__ = fields_only

    def __post_init__(self) -> None:
        require(
            isinstance(self.statistics, FeatureStatistics),
            f"expected statistics={self.statistics!r} to be FeatureStatistics",
        )

    def __len__(self) -> int:
        return len(self.population)

    @property
    def made_from(self) -> Population:
        """The population that this one is a view of."""
        population: Population = adapted(self.population, Population)
        return population

    @property
    def released(self) -> tuple[FeatureStatistics, ...]:
        """The statistics, and those that the population was standardised by before."""
        return self.statistics, *self.made_from.released

    def sample(self) -> Examples:
        """Return the population's sample, standardised."""
        examples: Examples = self.statistics.standardise(self.made_from.sample())
        return examples

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return self.population.sizes()

    def examples(self, client: int) -> Examples:
        """Return this client's own examples, standardised."""
        examples: Examples = self.statistics.standardise(self.population.examples(client))
        return examples

    def resident(self) -> Examples | None:
        """Return the one data set that all clients index into, standardised once; None where it is streamed."""
        whole = self._whole()
        return None if whole is None else whole.standardised()

    def indices(self, client: int) -> np.ndarray:
        """Return this client's rows of `resident()`."""
        return self.population.indices(client)

    @once
    def _whole(self) -> _Whole | None:
        examples = self.population.resident()
        return None if examples is None else _Whole(examples, self.statistics)


@dataclass(frozen=True, eq=False, repr=False)
class _Whole:
    """A resident data set: populations that divide the same one share one standardised copy."""

    examples: Examples
    statistics: FeatureStatistics

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Whole) or self.statistics != other.statistics:
            return False
        return all(one is another for one, another in zip(self.examples, other.examples, strict=True))

    def __hash__(self) -> int:
        return hash((id(self.examples.x), self.statistics))

    @once
    def standardised(self) -> Examples:
        """Standardise the data set when first needed."""
        examples: Examples = self.statistics.standardise(self.examples)
        return examples


@dataclass(frozen=True)
class StandardisedSource:
    """A Source of the examples of `source`, standardised."""

    source: Source
    statistics: FeatureStatistics

    __getstate__ = fields_only

    def columns(self) -> tuple[str, ...]:
        """Return the source's columns; empty where its features have no names."""
        return self.source.columns() if isinstance(self.source, ColumnSource) else ()

    def ordered(self, columns: tuple[str, ...]) -> StandardisedSource:
        """Return the same source with its features in this order, which is that of the statistics."""
        source = self.source.ordered(columns) if isinstance(self.source, ColumnSource) else self.source
        return StandardisedSource(source, self.statistics)

    def class_names(self) -> tuple[str, ...]:
        """Return the source's classes; empty where it knows none."""
        return declared_classes(self.source)

    @once
    def load(self) -> Examples:
        """Load the source's examples, standardised as `FeatureStatistics.standardise` does."""
        examples: Examples = self.statistics.standardise(self.source.load())
        return examples


def require_features(x: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raise ConfigError unless x is one array of numbers, each input of `shape` where that is given."""
    is_one = isinstance(x, np.ndarray) and x.dtype.kind in "biuf" and x.ndim > 0
    require(is_one, f"expected inputs in one array of numbers to standardise, got {brief(x)}")
    require(
        shape is None or x.shape[1:] == shape, f"expected inputs of shape {shape}, as the statistics, got {x.shape[1:]}"
    )
