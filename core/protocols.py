"""The seams between an experiment, the clients' memory, and those who watch or play a run: protocols.

Everything here acts on the values of `core/types.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .examples import Examples
from .types import (
    Failure,
    RoundRecord,
)


class Watcher(Protocol):
    """An observer that sees a run and changes nothing: a progress bar, a logger."""

    def on_start(self, experiment: Any, runtime: Any, run: str | None, records: Sequence[RoundRecord]) -> None:
        """Hear that the first round is about to begin. records: rounds of a resumed run."""

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Hear that a round was committed."""

    def on_end(self, history: Any) -> None:
        """Hear that the last round is over."""


@runtime_checkable
class Source(Protocol):
    """A data set: named, loaded when first needed."""

    def load(self) -> Examples: ...


class Memory(Protocol):
    """Arrays that clients keep at home between rounds, one list per client.

    They are the client's personal variables; the vector of its rule, if any; with a codec's error feedback what it left
    out.
    """

    def read(self, client: int) -> list[np.ndarray] | None: ...
    def write(self, client: int, arrays: list[np.ndarray]) -> None: ...


@runtime_checkable
class Elsewhere(Protocol):
    """A place where whole runs are played, by a server of its own, instead of by this process's rounds."""

    @property
    def watchers(self) -> Sequence[Watcher]:
        """Watchers of its runs, beside those that `server.run` is handed."""

    def play(self, experiment: Any, *, store: Any, resume: str | None) -> Any:
        """Play the whole run remotely. Same arguments and result as `server.play`: the run's events."""
