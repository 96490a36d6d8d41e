"""Virtual time: who of a simulated fleet is reached, who fails, and how long a synchronous round lasts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import RunStopped
from ..core.parts.devices import REASONS, Deadline, Fates, Fleet, fleet_of
from ..core.random import Key
from ..core.recipe import Recipe, visited
from ..core.runtime import Runtime, bytes_of
from ..core.types import UNAVAILABLE, Broadcast, Failure, RoundRecord

METRIC = "virtual_seconds"  # metric of a record: virtual seconds from the run's beginning to the round's end
PATIENCE_SECONDS = 60.0  # time between two looks at who can be reached, while too few can
LONGEST_WAIT_SECONDS = 14 * 86_400.0


class Admitted(NamedTuple):
    """Clients of a cohort that are counted by the virtual clock, and failures of the others."""

    counted: Sequence[int]  # clients that are counted, in the cohort's order
    failures: Sequence[Failure]  # why each of the others is not counted
    bytes_down: int  # size of the broadcasts that the others received


class VirtualClock:
    """Time of one round. It is a function of seed, fleet and the rounds before: nothing real takes part."""

    def __init__(self, experiment: Recipe, fleet: Fleet, now: float):
        self.experiment, self.fleet, self.now = experiment, fleet, now
        self._upload: int | None = None  # bytes of an update: the same for all of a round

    @staticmethod
    def of(experiment: Recipe, runtime: Runtime, records: Sequence[RoundRecord]) -> VirtualClock | None:
        """Return the clock after `records`; None for an experiment without devices, or on real ones."""
        if experiment.devices is None or runtime.is_live:
            return None
        now = records[-1].numbers.get(METRIC, 0.0) if records else 0.0
        return VirtualClock(experiment, fleet_of(experiment.devices, len(experiment.population), experiment.seed), now)

    def reachable(self, clients: Sequence[int]) -> Sequence[int]:
        """Return the clients that the server may select.

        They are those in reach, once there are enough for its sampler; nobody where two weeks pass without anybody.
        Under a plan they are all clients, since its accounting is of samples from all.

        Errors: RunStopped when in two weeks some can be reached, but never enough of them.
        """
        if self.experiment.plan is not None:
            return clients
        enough, began, most = self.experiment.sampler.cohort_size or 1, self.now, 0
        while len(found := self.fleet.reachable(clients, self.now)) < min(enough, len(clients)):
            most = max(most, len(found))
            if self.wait(began):
                continue
            if not most:
                return found
            raise RunStopped(
                f"too few clients can be reached from {began:g} s to {self.now:g} s of the virtual clock: {most} of "
                f"{enough} at most; lower sampler.size, or give devices.availability more"
            )
        return found

    def wait(self, began: float) -> bool:
        """Let a minute pass; return whether another one makes sense, which two weeks after `began` it does no more."""
        self.now += PATIENCE_SECONDS
        return self.now - began <= LONGEST_WAIT_SECONDS

    def fates(self, clients: np.ndarray, broadcast: Broadcast, key: Key) -> Fates:
        """Return what becomes of clients that receive broadcast now."""
        return self.fleet.fates(clients, self._seconds(clients, broadcast), self.now, key)

    def expected(self, broadcast: Broadcast) -> np.ndarray:
        """Compute how long a round should take every client, in seconds: float64, shape (clients,)."""
        return self._seconds(np.arange(self.fleet.clients), broadcast)

    def _seconds(self, clients: np.ndarray, broadcast: Broadcast) -> np.ndarray:
        if self._upload is None:
            self._upload = self.experiment.upload_bytes(broadcast)
        epochs = self.experiment.local.epochs_of(clients, broadcast.round, self.experiment.seed)
        examples = visited(self.experiment, self._sizes[clients], epochs)
        return self.fleet.seconds(clients, examples, bytes_of(broadcast), self._upload)

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return self.experiment.population.sizes()

    def admitted(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> Admitted:
        """Decide who of the cohort is counted, and set the clock to the round's end.

        A round ends when the last update that counts has arrived, or at the deadline; where none arrives, when the last
        client is lost.

        Clients that are not counted need not be trained: nothing of them remains, neither here nor at home.
        """
        began, clients = self.now, np.asarray(cohort, np.int64)
        fates = self.fates(clients, broadcast, key.derive("devices"))
        last = closes(fates, began, self.experiment.deadline)
        counted = (fates.reasons == 0) & (fates.ends <= last)
        if last < np.inf:
            self.now = last
        elif counted.any():
            self.now = float(fates.ends[counted].max())
        else:  # a minute at least: who is out of reach now might be so at the same moment in all rounds
            self.now = max(float(fates.ends.max(initial=began)), began + PATIENCE_SECONDS)
        lasted = self.now - began
        failures = [
            failure(int(clients[place]), began, lasted, last, fates, place) for place in np.flatnonzero(~counted)
        ]
        unheard = int((fates.ends[~counted] > began).sum())  # they received the broadcast all the same
        return Admitted(clients[counted].tolist(), failures, unheard * bytes_of(broadcast))


def closes(fates: Fates, began: float, deadline: Deadline | None) -> float:
    """Return when the round ends, on the virtual clock; infinity where it waits for every update."""
    if deadline is None:
        return np.inf
    latest = np.inf if deadline.seconds is None else began + deadline.seconds
    arrivals = np.sort(fates.ends[fates.reasons == 0])
    goal = max(1, round(len(fates.ends) / deadline.over_selection))
    return min(latest, float(arrivals[goal - 1])) if len(arrivals) >= goal else latest


def failure(client: int, began: float, lasted: float, last: float, fates: Fates, place: Any) -> Failure:
    """Say why a client is not counted in a round that lasted so long, and would have waited until `last`."""
    ends, reason = float(fates.ends[place]), REASONS[fates.reasons[place]]
    if reason and ends <= last:
        return lost(client, reason, ends - began)
    return Failure(client, "deadline", f"it was still at work when the round ended, after {lasted:.4g} s")


def lost(client: int, reason: str, seconds: float) -> Failure:
    """Return the failure of a client that was lost after so many seconds of work."""
    if reason == UNAVAILABLE and not seconds:
        return Failure(client, reason, "it was out of reach when the round began")
    what = "gave up" if reason == "dropped_out" else "went out of reach"
    return Failure(client, reason, f"it {what} after {seconds:.4g} s")
