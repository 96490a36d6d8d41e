"""Federations whose losses are exact quadratics: one linear layer, squared loss, full batches, plain SGD.

Client k's loss is F_k(w) = ‖X_k·w − y_k‖²/n_k, its gradient A_k·w − b_k with A_k = 2·X_kᵀX_k/n_k, b_k = 2·X_kᵀy_k/n_k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from umbel import AllClients, Experiment, FedAvg, Local, data, derive

DIMENSION, ROWS, RATE, EPOCHS = 3, 8, 0.05, 4


def linear(momentum: float = 0.0) -> Any:
    """Make the model ŷ = x·w with squared loss."""
    import keras

    model = keras.Sequential([keras.Input((DIMENSION,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(RATE, momentum=momentum), "mse")
    return model


heavy = functools.partial(linear, momentum=0.5)


class Quadratics:
    """Clients with different optima and curvatures; the arithmetic of their training in float64."""

    def __init__(self, clients: int = 4, copies: Sequence[int] | None = None, seed: int = 0):
        """Draw the clients' examples.

        copies: how often each client's rows are repeated, so that an epoch is as many steps, all alike.
        """
        generator = np.random.default_rng(seed)
        self.copies = list(copies or [1] * clients)
        self.examples, self.curvature, self.slope = [], [], []
        for count in self.copies:
            x = generator.normal(size=(ROWS, DIMENSION)) * generator.uniform(0.5, 1.5, DIMENSION)
            y = x @ generator.normal(size=(DIMENSION, 1)) * 2
            x, y = x.astype(np.float32), y.astype(np.float32)
            self.examples.append((np.tile(x, (count, 1)), np.tile(y, (count, 1))))
            self.curvature.append(2 * x.T.astype(np.float64) @ x / ROWS)
            self.slope.append(2 * x.T.astype(np.float64) @ y[:, 0] / ROWS)

    def __len__(self) -> int:
        return len(self.copies)

    @property
    def weights(self) -> np.ndarray:
        """Share p_k of each client in all examples."""
        return np.array(self.copies) / sum(self.copies)

    def experiment(self, **changes: Any) -> Experiment:
        """Make an experiment with every client in every round, full batches in the order given."""
        settings = {
            "name": "quadratics",
            "model": linear,
            "population": data.PerClient(self.examples),
            "strategy": FedAvg(),
            "sampler": AllClients(),
            "local": Local(epochs=EPOCHS, batch_size=ROWS, learning_rate=RATE, shuffle=False),
            "rounds": 2,
        }
        return Experiment(**(settings | changes))

    def steps(self, client: int, epochs: int = EPOCHS) -> int:
        """Return the number of a client's optimizer steps in a round."""
        return epochs * self.copies[client]

    def gradient(self, client: int, w: np.ndarray) -> np.ndarray:
        """Return ∇F_k(w)."""
        return self.curvature[client] @ w - self.slope[client]

    def delta(
        self, client: int, w: np.ndarray, offset: np.ndarray | float = 0.0, mu: float = 0.0, momentum: float = 0.0
    ) -> np.ndarray:
        """Return local − global after the client's steps from w, each along ∇F_k + μ·(local − w) + offset."""
        moved, velocity = np.zeros_like(w), np.zeros_like(w)
        for _ in range(self.steps(client)):
            velocity = momentum * velocity - RATE * (self.gradient(client, w + moved) + mu * moved + offset)
            moved = moved + velocity
        return moved

    def root(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Find where an affine function of w is 0."""
        constant = function(np.zeros(DIMENSION))
        columns = [function(unit) - constant for unit in np.eye(DIMENSION)]
        return np.linalg.solve(np.stack(columns, axis=1), -constant)

    def optimum(self, weights: np.ndarray) -> np.ndarray:
        """Find where Σ p_k·F_k is least."""
        return self.root(lambda w: sum(p * self.gradient(k, w) for k, p in enumerate(weights)))


def cohorts(experiment: Experiment, clients: int) -> list[list[int]]:
    """List who takes part in each round of experiment."""
    sizes = experiment.population.sizes
    keys = (derive(experiment.seed, "round", number + 1).derive("cohort") for number in range(experiment.rounds))
    return [experiment.sampler.sample(range(clients), sizes, key) for key in keys]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Check that found is expected, to what float32 rounds."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
