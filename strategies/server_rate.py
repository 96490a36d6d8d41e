"""The server's learning rate: a number, or a schedule over rounds that the strategy's state counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from ..core.errors import ConfigError
from ..core.protocols import Schedule
from ..core.types import RoundRecord
from ..core.validation import require_real

Rate = float | Schedule
REFUSAL = "a server learning rate may follow the number of the round alone, not the records of past rounds"


class _NoRecords(Sequence[RoundRecord]):
    """Stands for the records of past rounds, which a strategy does not see: looking at them is refused."""

    def __getitem__(self, index: object) -> NoReturn:
        raise ConfigError(REFUSAL)

    def __len__(self) -> NoReturn:
        raise ConfigError(REFUSAL)


NO_RECORDS = _NoRecords()


def require_rate(name: str, rate: Rate) -> None:
    """Raise ConfigError unless rate is a number above 0, or a schedule of the round alone that begins with one."""
    try:
        first = rate_at(rate, 1)
    except ConfigError as error:
        raise ConfigError(f"{name}={rate!r}: {error}") from None
    require_real(name, first, above=0)


def rate_at(rate: Rate, round: int) -> float:
    """The rate in `round`, 1 for the first."""
    return rate.at(round, NO_RECORDS) if hasattr(rate, "at") else rate
