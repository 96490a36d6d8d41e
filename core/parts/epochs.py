"""Numbers of passes over its own examples that a client makes, where not all make as many: devices differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..random import derive
from ..validation import require, require_count

WORDS = 4  # number of 64-bit numbers that Philox makes at a time; a client uses the first of its own four


@dataclass(frozen=True)
class Epochs:
    """A number of epochs from low to high, each as likely, drawn anew for every client in every round.

    It models devices that are now fast, now slow, as in the experiments of FedProx (Li et al. 2020) and FedNova (Wang
    et al. 2020).
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        require_count("low", self.low)
        require_count("high", self.high, at_least=self.low)

    @property
    def most(self) -> int:
        """Largest number of epochs that any client makes."""
        return self.high

    @property
    def mean(self) -> float:
        """Expected number of epochs."""
        return (self.low + self.high) / 2

    def of(self, clients: np.ndarray, round: int, seed: int) -> np.ndarray:
        """Draw each client's number of epochs in `round`: int64, shape (len(clients),).

        It depends on (seed, round, client) alone.
        """
        first, last = int(clients.min(initial=np.iinfo(np.int64).max)), int(clients.max(initial=-1))
        if last < 0:
            return np.zeros(0, np.int64)
        key = int.from_bytes(derive(seed, "round", round, "epochs").digest, "little")
        # A counter-based generator: client k's numbers are found without those before it.
        stream = np.random.Philox(key=key, counter=first)
        drawn = stream.random_raw(WORDS * (last - first + 1))[::WORDS][clients - first]
        uniform = (drawn >> np.uint64(11)) * 2.0**-53
        return self.low + (uniform * (self.high - self.low + 1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ListedEpochs:
    """A number of epochs > 0 for each client, the same in every round: shape (clients,), int64 where all are whole."""

    values: np.ndarray

    def __post_init__(self) -> None:
        given = np.array(self.values)
        require(given.ndim == 1 and len(given) > 0, f"expected one number per client, got shape {given.shape}")
        values = given.astype(np.float64) if given.dtype.kind in "iuf" else np.zeros(len(given))
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        require(not len(wrong), f"client {wrong[:1]}: expected a number > 0, got epochs={given[wrong[:1]]}")
        if (values == np.floor(values)).all():
            values = values.astype(np.int64)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ListedEpochs) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.tobytes())

    @property
    def most(self) -> float:
        """Largest number of epochs that any client makes."""
        return self.values.max().item()

    @property
    def mean(self) -> float:
        """Mean number of epochs over all clients."""
        return float(self.values.mean())

    def of(self, clients: np.ndarray, round: int, seed: int) -> np.ndarray:
        """Return each client's number of epochs: shape (len(clients),).

        Errors: ConfigError for a client that is not listed.
        """
        last = int(clients.max(initial=-1))
        if last >= len(self.values):
            raise ConfigError(f"local.epochs lists {len(self.values)} clients, and there is a client {last}")
        return self.values[clients]
