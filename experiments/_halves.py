"""The digits in two halves, and a body that was trained on the smaller ones: what digits_lora goes on from."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from ..core.examples import Examples
from ..data import Digits


@dataclasses.dataclass(frozen=True)
class Half:
    """The digits 5 to 9, or 0 to 4; their classes are counted from 0."""

    split: str
    is_larger: bool = True

    @functools.cache  # noqa: B019  one for each of three values
    def load(self) -> Examples:
        """Load the examples of the split, in their original order."""
        whole = Digits(self.split).load()  # type: ignore[arg-type]
        half = whole.take(np.flatnonzero((whole.y >= 5) == self.is_larger))
        return half._replace(y=half.y % 5)


@functools.cache
def pretrained() -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels and biases of two layers of 64 that tell the smaller digits apart."""
    from sklearn.neural_network import MLPClassifier

    x, y, _ = Half("train", is_larger=False).load()
    network = MLPClassifier((64, 64), tol=1e-3, random_state=0).fit(x, y)
    return list(zip(network.coefs_[:2], network.intercepts_[:2], strict=True))
