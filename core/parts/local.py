"""Local training: what a client does in its round, and how far it goes through its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..bases import Schedule
from ..errors import ConfigError, IncompatibleError
from ..reading.slips import check_local
from ..types import RoundRecord
from ..validation import fields_of, lacking, plain_numbers, require_count, require_real
from .epochs import Epochs, ListedEpochs
from .private import PerExamplePrivacy

DIGITS = 9  # decimals kept of a number of steps before it is rounded up: 0.7 of 10 steps are 7, not 8


class Passes(NamedTuple):
    """Passes of a client through its examples in one round."""

    begun: int  # number of passes that it begins
    last: int  # number of examples in the last pass: all, or fewer


@dataclass(frozen=True)
class Local:
    """Local training of a client in its round.

    Parameters
    ----------
    epochs
        Passes over its own examples: a number for all, Epochs(low, high) drawn per round and client, or an array with
        one per client. Of a pass that is not whole, 0.5 or the last of 2.5, as many of its batches are taken, rounded
        up.
    batch_size
        Examples per step; None: all at once. The last batch of an epoch may be smaller; none is dropped.
    learning_rate
        The learning rate of the model's own optimizer; a schedule over rounds; None leaves the optimizer as compiled.
    shuffle
        A fresh order per epoch, derived from (seed, round, client, epoch).
    per_example
        What hides single examples (DP-SGD): a step then takes each example with probability batch_size over the
        client's number of examples, in place of shuffled epochs.
    steps
        Optimizer steps of every client in every round, in place of epochs: passes over its examples one after another,
        shuffled afresh, until so many batches were taken. A client without examples takes none.
    """

    epochs: int | float | Epochs | ListedEpochs = 1
    batch_size: int | None = 32
    learning_rate: float | Schedule | None = None
    shuffle: bool = True
    per_example: PerExamplePrivacy | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_local(fields_of(self))
        if isinstance(self.epochs, (np.ndarray, list, tuple)):
            object.__setattr__(self, "epochs", ListedEpochs(np.asarray(self.epochs)))
        if isinstance(self.epochs, float) and self.epochs.is_integer():
            object.__setattr__(self, "epochs", int(self.epochs))
        if self.batch_size is not None:
            require_count("batch_size", self.batch_size)
        if self.learning_rate is not None and lacking(self.learning_rate, ("at",)):
            require_real("learning_rate", self.learning_rate, above=0)
        self._check_epochs()
        self._check_steps()

    def _check_epochs(self) -> None:
        """Raise ConfigError for epochs that are no number, IncompatibleError for clients whose steps are not priced."""
        if isinstance(self.epochs, (Epochs, ListedEpochs)):
            if self.per_example is not None:
                raise IncompatibleError(
                    f"{self.per_example!r} accounts for as many steps of every client; epochs={self.epochs!r} are not. "
                    "Give one number of epochs"
                )
        elif isinstance(self.epochs, float):
            require_real("epochs", self.epochs, above=0)
        else:
            require_count("epochs", self.epochs)
        if self.batch_size is None and self.is_partial and self.steps is None:
            raise ConfigError(
                f"epochs={self.epochs!r} take a part of an epoch's batches, and batch_size=None makes it one batch; "
                "give batch_size"
            )

    def _check_steps(self) -> None:
        """Raise ConfigError for two numbers of steps that differ."""
        if self.steps is None:
            return
        require_count("steps", self.steps)
        if self.epochs != 1:
            raise ConfigError(f"steps={self.steps} stand in place of epochs={self.epochs!r}; give one of them")
        if self.per_example is not None and self.per_example.steps not in (None, self.steps):
            raise ConfigError(
                f"expected steps={self.steps} to be those that {self.per_example!r} accounts for; leave steps out"
            )

    @property
    def is_partial(self) -> bool:
        """Return whether a client's last pass over its examples may end before they do."""
        if isinstance(self.epochs, ListedEpochs):
            return self.epochs.values.dtype.kind == "f"
        return self.steps is not None or isinstance(self.epochs, float)

    def learning_rate_at(self, round: int, records: Sequence[RoundRecord]) -> float | None:
        """Return the clients' learning rate in `round`, after the rounds in `records`; None: the optimizer's own."""
        if self.learning_rate is None or isinstance(self.learning_rate, (int, float)):
            return self.learning_rate
        return self.learning_rate.at(round, records)

    def epochs_of(self, clients: np.ndarray, round: int, seed: int) -> np.ndarray:
        """Return the epochs of each client in `round` of a run with that seed: shape (len(clients),).

        They are int64, or float64 where some are not whole. Where Local has steps they say nothing.
        """
        if isinstance(self.epochs, (int, float)):
            return np.full(len(clients), self.epochs)
        return self.epochs.of(clients, round, seed)

    @property
    def most_epochs(self) -> float:
        """The largest number of epochs that any client makes in any round; meaningless where Local has steps."""
        return self.epochs if isinstance(self.epochs, (int, float)) else self.epochs.most

    @property
    def mean_epochs(self) -> float:
        """The number of epochs that is expected of a client; meaningless where Local has steps."""
        return float(self.epochs) if isinstance(self.epochs, (int, float)) else self.epochs.mean

    def steps_of(self, examples: int, epochs: float | None = None) -> int:
        """Return the optimizer steps of a client with `examples` examples.

        epochs: number of epochs that it makes; None: the most that any client may make.
        """
        usual = self.most_epochs if epochs is None else epochs
        return self._steps(np.array([examples], np.int64), np.array([usual])).item()

    def passes(self, examples: int, epochs: float) -> Passes:
        """Return the passes over `examples` examples of a client that makes so many epochs, or Local's steps.

        Under per_example, whose batches are drawn, there is one pass, which names the examples to draw from.
        """
        begun, last = self.passes_of(np.array([examples], np.int64), np.array([epochs]))
        return Passes(begun.item(), last.item())

    def passes_of(self, examples: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Same as `passes`, for many clients: the passes that each begins, and the examples of its last one."""
        if self.per_example is not None:
            return np.ones(len(examples), np.int64), examples
        count, last = self._passes(examples, epochs)
        # Who holds nothing makes its passes all the same, over nothing.
        nothing = examples == 0
        return np.where(nothing, np.ceil(epochs).astype(np.int64), count), np.where(nothing, 0, last)

    def visited(self, examples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Return the number of examples that clients compute gradients of: int64, shape (clients,).

        examples, epochs: of each client. Under per_example, the expected number.
        """
        sizes = np.asarray(examples, np.int64)
        if self.per_example is not None:
            return self._steps(sizes, epochs) * np.minimum(self._batch(sizes), sizes)
        if not self.is_partial:
            return sizes * epochs
        count, last = self._passes(sizes, epochs)
        return np.where(sizes > 0, (count - 1) * sizes + last, 0)

    def _passes(self, sizes: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the passes of each client, and the examples of its last one."""
        batch = self._batch(sizes)
        steps, batches = self._steps(sizes, epochs), np.maximum(-(-sizes // batch), 1)
        count = -(-steps // batches)
        return count, np.minimum(sizes, (steps - (count - 1) * batches) * batch)

    def _steps(self, sizes: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Return the optimizer steps of each client: int64."""
        fixed = self.steps if self.per_example is None else self.per_example.steps or self.steps
        if fixed is not None:
            return np.where(sizes > 0, fixed, 0)
        batches = -(-sizes // self._batch(sizes))
        return np.ceil(np.round(epochs * batches, DIGITS)).astype(np.int64)

    def _batch(self, sizes: np.ndarray) -> np.ndarray:
        """Return the examples of a full batch of each client."""
        return np.maximum(sizes, 1) if self.batch_size is None else np.full(len(sizes), self.batch_size)
