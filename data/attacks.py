"""Clients that poison their own examples, to test aggregators with. Attacks on updates are in `strategies.attacks`.

Both are populations around a population: the others' examples stay as they are, and so do everybody's numbers of them.
Their clients are streamed, since an attacker's examples are its own copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.bases import Population
from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.protocols import Source
from ..core.reading.adapted import adapted
from ..core.validation import require, require_count, require_real
from .encoding import encoding_of
from .populations import require_client, streamed_only


@dataclass(frozen=True)
class LabelFlip(Population):
    """A population in which `attackers` call class c class classes − 1 − c.

    Tolpegin, Truex, Gursoy, Liu 2020: Data Poisoning Attacks Against Federated Learning Systems.
    https://arxiv.org/abs/2007.08432

    Labels are integers in [0, classes). Errors: ConfigError for others, when an attacker's examples are asked for.
    """

    population: Population
    attackers: Sequence[int]
    classes: int

    def __post_init__(self) -> None:
        require_count("classes", self.classes, at_least=2)
        object.__setattr__(self, "attackers", members_of(self.population, self.attackers))

    def __len__(self) -> int:
        return len(self.population)

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return self.population.sizes()

    def examples(self, client: int) -> Examples:
        """Return this client's own examples; an attacker's with flipped labels."""
        examples = self.population.examples(client)
        if client not in self.attackers:
            return examples
        labels = integer_labels(examples, self.classes)
        return examples._replace(y=(self.classes - 1 - labels).astype(labels.dtype))

    @property
    def made_from(self) -> Population:
        """The population that this one is a view of."""
        population: Population = adapted(self.population, Population)
        return population

    def resident(self) -> None:
        """Return None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Raise ConfigError: there is no resident data set."""
        raise streamed_only(self)


@dataclass(frozen=True)
class Backdoor(Population):
    """A population in which `attackers` put a trigger on a fraction of their inputs and call these class `target`.

    The trigger sets `pixels` to `value`: indices into one flattened input, so that it fits images and tables alike.
    Gu, Dolan-Gavitt, Garg 2017: BadNets. https://arxiv.org/abs/1708.06733

    Parameters
    ----------
    fraction
        The share of an attacker's examples, the first ⌈fraction·n⌉ of them. Labels are integers.

    Raises
    ------
    ConfigError
        For pixels that an input does not have, when an attacker's examples are asked for.
    """

    population: Population
    attackers: Sequence[int]
    target: int
    pixels: tuple[int, ...]
    value: float = 1.0
    fraction: float = 0.5

    def __post_init__(self) -> None:
        require_count("target", self.target, at_least=0)
        require_real("value", self.value)
        require_real("fraction", self.fraction, above=0, at_most=1)
        require(bool(self.pixels), "expected pixels, got none")
        object.__setattr__(self, "pixels", tuple(self.pixels))
        object.__setattr__(self, "attackers", members_of(self.population, self.attackers))

    def __len__(self) -> int:
        return len(self.population)

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return self.population.sizes()

    def examples(self, client: int) -> Examples:
        """Return this client's own examples; an attacker's with triggers."""
        examples = self.population.examples(client)
        if client not in self.attackers:
            return examples
        labels = integer_labels(examples).copy()
        poisoned = int(np.ceil(self.fraction * examples.count))
        x = np.array(examples.x)
        x[:poisoned] = self._triggered(x[:poisoned])
        labels[:poisoned] = self.target
        return examples._replace(x=x, y=labels)

    @property
    def made_from(self) -> Population:
        """The population that this one is a view of."""
        population: Population = adapted(self.population, Population)
        return population

    def resident(self) -> None:
        """Return None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Raise ConfigError: there is no resident data set."""
        raise streamed_only(self)

    def success_test(self, examples: Examples | tuple | Source) -> Any:
        """Return test examples on which accuracy is the attack's success: other classes' examples, triggered.

        Each is called `target`. Examples give Examples; a Source gives another one, loaded when first needed.
        """
        if isinstance(examples, Source):
            return SuccessTest(self, examples)
        examples = encoding_of(self).encode(Examples.of(examples))
        others = examples.take(np.flatnonzero(integer_labels(examples) != self.target))
        return others._replace(x=self._triggered(others.x), y=np.full_like(others.y, self.target))

    def _triggered(self, x: np.ndarray) -> np.ndarray:
        flat = np.array(x).reshape(len(x), -1)
        require(
            min(self.pixels) >= 0 and max(self.pixels) < flat.shape[1],
            f"expected pixels={self.pixels} in [0, {flat.shape[1]}), the numbers of one input",
        )
        flat[:, list(self.pixels)] = self.value
        return flat.reshape(x.shape)


@dataclass(frozen=True)
class SuccessTest:
    """A Source of the examples of `source` on which accuracy is the backdoor's success."""

    backdoor: Backdoor
    source: Source

    def load(self) -> Examples:
        """Load the examples as `Backdoor.success_test` makes them."""
        return self.backdoor.success_test(encoding_of(self.backdoor).read(self.source))


def members_of(population: Population, clients: Sequence[int]) -> tuple[int, ...]:
    """Return clients, ascending and distinct. Errors: ConfigError for one that is not in population."""
    for client in clients:
        require_client(client, len(population))
    return tuple(sorted(set(clients)))


def integer_labels(examples: Examples, classes: int | None = None) -> np.ndarray:
    """Return the labels.

    Errors: ConfigError unless they are one array of integers, below `classes` if that is given.
    """
    labels = examples.y
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise ConfigError(f"expected integer labels to poison, got {getattr(labels, 'dtype', type(labels).__name__)}")
    require(classes is None or not len(labels) or labels.max() < classes, f"expected labels below classes={classes}")
    return labels
