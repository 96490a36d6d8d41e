"""Virtual time: who of a simulated fleet is reached, who fails, and how long a synchronous round lasts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.devices import REASONS, Deadline, Fates, Fleet, fleet_of
from ..core.errors import RunStopped
from ..core.experiment import Experiment
from ..core.phases import passes
from ..core.protocols import Runtime
from ..core.random import Key
from ..core.types import Broadcast, Failure, RoundRecord, RoundResult

METRIC = "virtual_seconds"  # of a record: since the run began, to the end of its round
PATIENCE_SECONDS = 60.0  # between two looks at who can be reached, while too few can
LONGEST_WAIT_SECONDS = 14 * 86_400.0


class VirtualClock:
    """The time of one round. It is a function of seed, fleet and the rounds before: nothing real takes part."""

    def __init__(self, experiment: Experiment, fleet: Fleet, now: float):
        self.experiment, self.fleet, self.now = experiment, fleet, now
        self._upload: int | None = None  # bytes of an update: the same for all of a round

    @staticmethod
    def of(experiment: Experiment, runtime: Runtime, records: Sequence[RoundRecord]) -> VirtualClock | None:
        """The clock after `records`; None for an experiment without devices, or on real ones."""
        if experiment.devices is None or runtime.is_live:
            return None
        now = records[-1].metrics.get(METRIC, 0.0) if records else 0.0
        return VirtualClock(experiment, fleet_of(experiment.devices, len(experiment.population), experiment.seed), now)

    def reachable(self, clients: Sequence[int]) -> Sequence[int]:
        """Whom the server may select: those in reach, once there are enough for its sampler. Under a plan all of them,
        since its accounting is of samples from all.

        Errors: RunStopped when two weeks pass without enough of them.
        """
        if self.experiment.plan is not None:
            return clients
        enough, began = getattr(self.experiment.sampler, "size", 1), self.now
        while len(found := self.fleet.reachable(clients, self.now)) < min(enough, len(clients)):
            self.wait(began)
        return found

    def wait(self, began: float) -> None:
        """Let a minute pass. Errors: RunStopped when too many did since `began`."""
        self.now += PATIENCE_SECONDS
        if self.now - began > LONGEST_WAIT_SECONDS:
            raise RunStopped(
                f"too few clients can be reached from {began:g} s to {self.now:g} s of the virtual clock; "
                "lower sampler.size, or give devices.availability more"
            )

    def fates(self, clients: np.ndarray, broadcast: Broadcast, key: Key) -> Fates:
        """What becomes of clients that receive broadcast now."""
        return self.fleet.fates(clients, self._seconds(clients, broadcast), self.now, key)

    def expected(self, broadcast: Broadcast) -> np.ndarray:
        """How long a round should take every client: float64, shape (clients,)."""
        return self._seconds(np.arange(self.fleet.clients), broadcast)

    def _seconds(self, clients: np.ndarray, broadcast: Broadcast) -> np.ndarray:
        if self._upload is None:
            self._upload = self.experiment.upload_bytes(broadcast)
        epochs = passes(
            self.experiment, self.experiment.local.epochs_of(clients, broadcast.round, self.experiment.seed)
        )
        return self.fleet.seconds(clients, self._sizes[clients] * epochs, payload(broadcast), self._upload)

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return self.experiment.population.sizes()

    def collect(self, runtime: Any, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """A round of the cohort, which ends when the last update that counts has arrived, or at the deadline.

        Clients that are not counted are not trained: nothing of them remains, neither here nor at home.
        """
        began, clients = self.now, np.asarray(cohort, np.int64)
        fates = self.fates(clients, broadcast, key.derive("devices"))
        last = closes(fates, began, self.experiment.deadline)
        counted = (fates.reasons == 0) & (fates.ends <= last)
        self.now = float(fates.ends[counted].max(initial=began)) if last == np.inf else last
        result = runtime.collect(broadcast, clients[counted].tolist(), key)
        lasted = self.now - began
        failures = [
            failure(int(clients[place]), began, lasted, last, fates, place) for place in np.flatnonzero(~counted)
        ]
        unheard = int((fates.ends[~counted] > began).sum())  # they received the broadcast all the same
        down = None if result.bytes_down is None else result.bytes_down + unheard * payload(broadcast)
        return result._replace(failures=[*result.failures, *failures], bytes_down=down)


def closes(fates: Fates, began: float, deadline: Deadline | None) -> float:
    """When the round ends, on the virtual clock; infinity where it waits for every update."""
    if deadline is None:
        return np.inf
    latest = np.inf if deadline.seconds is None else began + deadline.seconds
    arrivals = np.sort(fates.ends[fates.reasons == 0])
    goal = max(1, round(len(fates.ends) / deadline.over_selection))
    return min(latest, float(arrivals[goal - 1])) if len(arrivals) >= goal else latest


def failure(client: int, began: float, lasted: float, last: float, fates: Fates, place: Any) -> Failure:
    """Why a client is not counted in a round that lasted so long, and would have waited until `last`."""
    ends, reason = float(fates.ends[place]), REASONS[fates.reasons[place]]
    if reason and ends <= last:
        return lost(client, reason, ends - began)
    return Failure(client, "deadline", f"it was still at work when the round ended, after {lasted:.4g} s")


def lost(client: int, reason: str, seconds: float) -> Failure:
    """A client that was lost after so many seconds of work."""
    if reason == "unavailable" and not seconds:
        return Failure(client, reason, "it was out of reach when the round began")
    what = "gave up" if reason == "dropped_out" else "went out of reach"
    return Failure(client, reason, f"it {what} after {seconds:.4g} s")


def payload(broadcast: Broadcast) -> int:
    """Bytes of a broadcast."""
    return broadcast.params.nbytes + broadcast.extra.nbytes
