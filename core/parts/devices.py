"""A simulated fleet: how fast clients compute and send, when they can be reached, and how often they give up.

Everything derives from (seed, client), and a million clients are a few arrays.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from ..errors import ConfigError
from ..random import Key, derive
from ..traits import Trait
from ..types import UNAVAILABLE
from ..validation import fields_of, require, require_methods, require_real

REASONS = ("", "dropped_out", UNAVAILABLE)  # why a client's work came to nothing; "" where it did not
NEVER = -math.inf
HOUR = 3600.0


@dataclass(frozen=True)
class Around:
    """Log-normal numbers about a median, drawn once per client.

    Parameters
    ----------
    sigma
        Standard deviation of the logarithm; with 1, one in six is 2.7 times faster than the median, and one in six 2.7
        times slower.
    """

    median: float
    sigma: float

    def __post_init__(self) -> None:
        require_real("median", self.median, above=0)
        require_real("sigma", self.sigma, at_least=0)


@dataclass(frozen=True, eq=False)
class Listed:
    """One number > 0 per client: float64, shape (clients,)."""

    values: np.ndarray

    def __post_init__(self) -> None:
        values = np.array(self.values, np.float64)
        wrong = np.flatnonzero(~((values > 0) & np.isfinite(values))) if values.ndim == 1 else np.zeros(1, int)
        require(values.ndim == 1 and len(values) > 0, f"expected one number per client, got shape {values.shape}")
        require(not len(wrong), f"client {wrong[:1]}: expected a finite number > 0, got {values[wrong[:1]]}")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.tobytes())


class Windows(Protocol):
    """The times at which the clients of one run can be reached."""

    def until(self, clients: np.ndarray, at: float) -> np.ndarray:
        """Return when each one's present window ends: float64 seconds, shape (len(clients),); −∞ if out of reach."""


class Availability(Protocol):
    """Times at which clients can be reached, as part of an experiment."""

    def windows(self, clients: int, key: Key) -> Windows: ...


@dataclass(frozen=True)
class Diurnal:
    """Each client can be reached for `hours` a day, as a phone that charges overnight, at its own time of day.

    Windows begin at start_hour, give or take a normal deviation of spread_hours. The virtual clock begins at midnight.
    """

    hours: float = 8.0
    start_hour: float = 22.0
    spread_hours: float = 2.0

    def __post_init__(self) -> None:
        require_real("hours", self.hours, above=0, at_most=24)
        require_real("start_hour", self.start_hour, at_least=0, at_most=24)
        require_real("spread_hours", self.spread_hours, at_least=0)

    def windows(self, clients: int, key: Key) -> DailyWindows:
        """Draw a window per client and day."""
        starts = self.start_hour + self.spread_hours * key.generator().standard_normal(clients)
        return DailyWindows(starts, self.hours)


class DailyWindows(NamedTuple):
    """The same window every day for each client. starts: hours after midnight, shape (clients,)."""

    starts: np.ndarray
    hours: float

    def until(self, clients: np.ndarray, at: float) -> np.ndarray:
        """Same as `Windows.until`."""
        if self.hours == 24:
            return np.full(len(clients), math.inf)
        passed = (at / HOUR - self.starts[clients]) % 24
        return np.where(passed < self.hours, at + (self.hours - passed) * HOUR, NEVER)


@dataclass(frozen=True, eq=False)
class Traces:
    """Recorded windows: client k could be reached in [start, end), in seconds of the virtual clock.

    Parameters
    ----------
    client, start, end
        Arrays with one entry per window, in any order. A client without a window is never in reach.
    period_seconds
        The traces repeat after it; None: when they end, nobody is in reach.

    Raises
    ------
    ConfigError
        For a window that does not end after its start, or windows of a client that overlap.
    """

    client: np.ndarray
    start: np.ndarray
    end: np.ndarray
    period_seconds: float | None = None

    def __post_init__(self) -> None:
        client, start, end = np.array(self.client, np.int64), np.array(self.start, float), np.array(self.end, float)
        require(
            client.shape == start.shape == end.shape == (len(client),), "expected as many clients as starts and ends"
        )
        require(len(client) > 0, "expected windows, got none")
        bad = np.flatnonzero(~(np.isfinite(end) & (start >= 0) & (start < end) & (client >= 0)))
        require(not len(bad), f"{_window(client, start, end, bad[:1])}: expected client ≥ 0 and 0 ≤ start < end")
        order = np.lexsort((start, client))
        client, start, end = client[order], start[order], end[order]
        overlap = np.flatnonzero((client[1:] == client[:-1]) & (start[1:] < end[:-1]))
        require(not len(overlap), f"{_window(client, start, end, overlap[:1] + 1)} overlaps the one before it")
        if self.period_seconds is not None:
            require_real("period_seconds", self.period_seconds, at_least=float(end.max()))
        for name, values in (("client", client), ("start", start), ("end", end)):
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traces) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple:
        return self.client.tobytes(), self.start.tobytes(), self.end.tobytes(), self.period_seconds

    @staticmethod
    def read(path: str, period_seconds: float | None = None) -> Traces:
        """Read the traces in a CSV file whose first line is client,start,end (seconds).

        Errors: ConfigError naming the file's line, for a file that is missing or a row that is not three numbers.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = csv.reader(file)
                titles = [title.strip() for title in next(rows, [])]
                require(titles == ["client", "start", "end"], f"expected {path} to begin with client,start,end")
                numbers = [_row(path, rows.line_num, row) for row in rows if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"cannot read the traces {path}: {error}") from error
        require(bool(numbers), f"expected {path} to hold windows, found none")
        client, start, end = zip(*numbers, strict=True)
        return Traces(np.array(client), np.array(start), np.array(end), period_seconds)

    def windows(self, clients: int, key: Key) -> RecordedWindows:
        """Return the recorded windows. Errors: ConfigError for one of a client that the population does not have."""
        last = int(self.client[-1])
        require(last < clients, f"the traces name client {last}; the population has clients 0 to {clients - 1}")
        offsets = np.searchsorted(self.client, np.arange(clients + 1))
        return RecordedWindows(offsets, self.start, self.end, self.period_seconds)


class RecordedWindows(NamedTuple):
    """Recorded windows of all clients: client k's are entries offsets[k] to offsets[k + 1] − 1, ascending."""

    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    period: float | None

    def until(self, clients: np.ndarray, at: float) -> np.ndarray:
        """Same as `Windows.until`."""
        past = 0.0 if self.period is None else at // self.period * self.period
        low, high = self.offsets[clients], self.offsets[np.asarray(clients) + 1]
        first, now = low, at - past
        # All binary searches side by side, for the last window that had begun: it takes as long for a million clients
        # as their longest trace has doublings.
        while (open := low < high).any():
            middle = (low + high) // 2
            begun = open & (self.starts[np.minimum(middle, len(self.starts) - 1)] <= now)
            low, high = np.where(begun, middle + 1, low), np.where(open & ~begun, middle, high)
        ends = self.ends[np.maximum(low - 1, 0)]
        return np.where((low > first) & (now < ends), past + ends, NEVER)


Quantity = float | Around | Listed | None


@dataclass(frozen=True)
class Devices:
    """The clients' devices in a simulation; over Flower devices are what they are, and this is ignored.

    Parameters
    ----------
    examples_per_second
        How fast a client trains.
    down_bytes_per_second, up_bytes_per_second
        How fast it receives the broadcast and sends its update. Each a number for all, Around(median, sigma), or an
        array with one per client; None: it takes no time.
    dropout
        The probability that a client gives up in the middle of its round, at a uniformly drawn moment.
    availability
        When clients can be reached, such as Diurnal() or Traces.read("traces.csv"); None: always.
    """

    examples_per_second: Quantity = None
    down_bytes_per_second: Quantity = None
    up_bytes_per_second: Quantity = None
    dropout: float = 0.0
    availability: Availability | None = None

    needs: ClassVar[Trait] = Trait.ONE_EXCHANGE
    hides: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        speeds = fields_of(self, "examples_per_second", "down_bytes_per_second", "up_bytes_per_second")
        for name, value in speeds.items():
            if isinstance(value, (np.ndarray, list, tuple)):
                object.__setattr__(self, name, Listed(np.asarray(value)))
            elif value is not None and not isinstance(value, (Around, Listed)):
                require_real(name, value, above=0)
        require_real("dropout", self.dropout, at_least=0, at_most=1)
        if self.availability is not None:
            require_methods("availability", self.availability, ("windows",), "Diurnal()")


@dataclass(frozen=True)
class Deadline:
    """End of a synchronous round on the virtual clock though clients are still at work: they keep nothing of the round.

    Clients that are still at work then stop. Bonawitz et al. 2019, https://arxiv.org/abs/1902.01046

    Parameters
    ----------
    seconds
        After which the round ends with what has arrived; None: no limit.
    over_selection
        Clients sampled for each that is needed: with FixedCohort(130) and 1.3 the round ends with the first 100
        updates, and what arrives at the same moment.
    """

    seconds: float | None = None
    over_selection: float = 1.0

    needs: ClassVar[Trait] = Trait.COHORTS

    @property
    def hides(self) -> Trait:
        """Independent clients, where the fastest are counted: then one client decides whether another is counted."""
        return Trait.INDEPENDENT_CLIENTS if self.over_selection > 1 else Trait.NONE

    def __post_init__(self) -> None:
        if self.seconds is not None:
            require_real("seconds", self.seconds, above=0)
        require_real("over_selection", self.over_selection, at_least=1)


class Fates(NamedTuple):
    """Outcome for clients that are asked to train."""

    ends: np.ndarray  # when the update arrives, or the client is lost: float64 seconds on the virtual clock
    reasons: np.ndarray  # why each client's work came to nothing: int8, index into REASONS


class Fleet:
    """The devices of one run: arrays of shape (clients,)."""

    def __init__(self, devices: Devices, clients: int, key: Key):
        """Draw the fleet. Errors: ConfigError for arrays or traces of other clients."""
        self.clients, self.dropout = clients, devices.dropout
        self._seconds_per_example = _inverse(devices, "examples_per_second", clients, key)
        self._seconds_per_byte_down = _inverse(devices, "down_bytes_per_second", clients, key)
        self._seconds_per_byte_up = _inverse(devices, "up_bytes_per_second", clients, key)
        availability = devices.availability
        self._windows = None if availability is None else availability.windows(clients, key.derive("availability"))

    def seconds(self, clients: np.ndarray, examples: np.ndarray, bytes_down: int, bytes_up: int) -> np.ndarray:
        """Return the time that download, training and upload take each client: float64 seconds, shape (len(clients),).

        examples: number of examples in all epochs together.
        """
        down, up = self._seconds_per_byte_down[clients], self._seconds_per_byte_up[clients]
        return bytes_down * down + examples * self._seconds_per_example[clients] + bytes_up * up

    def until(self, clients: np.ndarray, at: float) -> np.ndarray:
        """Return when each client goes out of reach: float64; −∞ for one that is out of reach now."""
        return np.full(len(clients), math.inf) if self._windows is None else self._windows.until(clients, at)

    def reachable(self, clients: Sequence[int], at: float) -> Sequence[int]:
        """Return the members of clients that can be reached."""
        if self._windows is None:
            return clients
        numbers = np.asarray(clients)
        return numbers[self.until(numbers, at) > at].tolist()

    def fates(self, clients: np.ndarray, seconds: np.ndarray, at: float, key: Key) -> Fates:
        """Draw what becomes of clients that begin now work of `seconds`."""
        chances = key.generator().random((2, len(clients)))
        gives_up, until = chances[0] < self.dropout, self.until(clients, at)
        ends = at + np.where(gives_up, chances[1] * seconds, seconds)
        reasons = np.where(until < ends, 2, np.where(gives_up, 1, 0)).astype(np.int8)
        return Fates(np.maximum(np.minimum(ends, until), at), reasons)


@functools.lru_cache(maxsize=4)
def fleet_of(devices: Devices, clients: int, seed: int) -> Fleet:
    """Return the fleet that devices stands for in a run; built once."""
    return Fleet(devices, clients, derive(seed, "devices"))


def _inverse(devices: Devices, name: str, clients: int, key: Key) -> np.ndarray:
    """Return the seconds per unit for each client; a number for all takes no memory."""
    value = fields_of(devices, name)[name]
    if isinstance(value, Listed):
        require(len(value.values) == clients, f"expected {clients} numbers in {name}, got {len(value.values)}")
        return 1 / value.values
    if isinstance(value, Around):
        return np.exp(value.sigma * key.derive(name).generator().standard_normal(clients)) / value.median
    return np.broadcast_to(0.0 if value is None else 1 / value, clients)


def _row(path: str, line: int, row: list[str]) -> tuple[int, float, float]:
    try:
        client, start, end = row
        return int(client), float(start), float(end)
    except ValueError:
        raise ConfigError(
            f"{path}, line {line}: expected a client's number, start and end, got {','.join(row)!r}"
        ) from None


def _window(client: np.ndarray, start: np.ndarray, end: np.ndarray, position: np.ndarray) -> str:
    """Name a window for an error; nothing at no position."""
    return "".join(f"client {client[i]}'s window from {start[i]:g} s to {end[i]:g} s" for i in position)
