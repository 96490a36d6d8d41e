"""Every error Umbel raises on purpose.

UmbelError                  one clear line: the value, and the remedy
├── ConfigError             exit 2: a value outside its bounds, an unknown name, a file that is not there
│   └── IncompatibleError   exit 2: two parts that exclude one another
├── StoreError              exit 2: a store that cannot be opened, or holds something that does not verify
├── RunStopped              exit 3: a run that could not go on; what it had committed is kept
│   └── BudgetSpent         exit 3: and will not, however often it is resumed
└── ClientError             exit 1: a client's code failed; names client, round and batch
"""

from __future__ import annotations

from typing import ClassVar


class UmbelError(Exception):
    """Base of all errors raised on purpose. `exit_status` is what the command line exits with."""

    exit_status: ClassVar[int] = 1


class ConfigError(UmbelError):
    """A value is outside its bounds, a name is unknown, or a file is missing."""

    exit_status = 2


class IncompatibleError(ConfigError):
    """Two parts of an experiment exclude one another; the message says why."""


class StoreError(UmbelError):
    """The store cannot be opened, is of another schema, or holds something that does not verify."""

    exit_status = 2


class RunStopped(UmbelError):
    """The run could not go on (too few clients, budget exhausted). Committed rounds are kept."""

    exit_status = 3


class BudgetSpent(RunStopped):
    """The next round would cost more than a plan's privacy budget. Resumed, the run stops at once again."""


class ClientError(UmbelError):
    """A client's work failed.

    `client`, `round` and `batch` locate it; each is None where it is not known.
    """

    def __init__(self, message: str, *, client: int | None = None, round: int | None = None, batch: int | None = None):
        self.client, self.round, self.batch = client, round, batch
        known = [("round", round), ("client", client), ("batch", batch)]
        where = ", ".join(f"{name} {value}" for name, value in known if value is not None)
        super().__init__(f"{where}: {message}" if where else message)


def error_named(name: str) -> type[UmbelError] | None:
    """Return the class of that name above; None for another name."""
    return next((kind for kind in KINDS if kind.__name__ == name), None)


KINDS = (UmbelError, ConfigError, IncompatibleError, StoreError, RunStopped, BudgetSpent, ClientError)
