"""The server's learning rate: a number, or a schedule over rounds that the strategy's state counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from ..core.bases import Schedule
from ..core.errors import ConfigError
from ..core.types import RoundRecord
from ..core.validation import lacking, require_real

Rate = float | Schedule
REFUSAL = "a server learning rate may follow the number of the round alone, not the records of past rounds"


class _NoRecords(Sequence[RoundRecord]):
    """Stand-in for the records of past rounds, which a strategy does not see: looking at them is refused."""

    def __getitem__(self, index: object) -> NoReturn:
        raise ConfigError(REFUSAL)

    def __len__(self) -> NoReturn:
        raise ConfigError(REFUSAL)


NO_RECORDS = _NoRecords()


def require_rate(name: str, rate: Rate) -> None:
    """Raise ConfigError unless rate is a number above 0, or a schedule of the round alone that begins with one."""
    if lacking(rate, ("at",)):
        require_real(name, rate, above=0)
    try:
        first = rate_at(rate, 1)
    except ConfigError as error:
        raise ConfigError(f"{name}={rate!r}: {error}") from None
    require_real(name, first, above=0)


def rate_at(rate: Rate, round: int) -> float:
    """Return the rate in `round`, 1 for the first."""
    return rate.at(round, NO_RECORDS) if isinstance(rate, Schedule) else rate
