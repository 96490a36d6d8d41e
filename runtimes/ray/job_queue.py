"""Job queue: calls whose answers are wanted one after another, whichever hosts give them, and however often."""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import RunStopped
from ...core.types import ClientMetrics, add_metrics
from .calls import Call, Head, Job
from .lines import said

if TYPE_CHECKING:
    from .crew import Crew

SLOW = 3.0  # times the usual duration after which a call is made a second time, where somebody is idle
LEAST_SECONDS = 5.0  # before which none is
UNKNOWN_SECONDS = 60.0  # where nobody knows yet how long such a call takes
PATIENCE_SECONDS = 120.0  # without any host, after which a run stops


class JobQueue:
    """A queue of jobs. Guarantees: `next` returns their answers in the order in which they were added.

    Parameters
    ----------
    window
        Number of jobs after the one that is next that may be begun, where what they return is large; None: all.
    """

    def __init__(self, crew: Crew, window: int | None = None):
        self._crew, self._window = crew, window
        self._jobs: dict[int, Job] = {}  # those whose answers have not been returned
        self._queue: deque[int] = deque()
        self._answers: dict[int, tuple[Head, Any]] = {}
        self._copies: dict[int, int] = {}  # how often each job is under way
        self._added = 0
        self._next = 0

    @property
    def has_more(self) -> bool:
        """Return whether some answer has not been returned."""
        return self._next < self._added

    def add(self, job: Job) -> None:
        """Add a job after the others."""
        self._jobs[self._added] = job
        self._queue.append(self._added)
        self._added += 1

    def next(self) -> tuple[Head, Any]:
        """Return the answer to the next job, and what it brings: arrays of this process's own.

        Errors: whatever the job raises; RunStopped where no host is left.
        """
        alone_since: float | None = None
        while True:
            self._fill()
            if self._next in self._answers and (found := self._fetched()) is not None:
                return found
            alone_since = None if self._crew.ready else alone_since or time.monotonic()
            if alone_since is not None and time.monotonic() - alone_since > PATIENCE_SECONDS:
                raise RunStopped(
                    f"no process of the Ray cluster is left, nor has one come back within {PATIENCE_SECONDS:.0f} s"
                )
            self._back_up()
            if self._next not in self._answers:
                self._crew.wait(1.0)

    def abandon(self) -> None:
        """Want no answer any more. Calls under way end when they end."""
        self._queue.clear()
        self._jobs.clear()
        self._answers.clear()

    def wants(self, call: Call) -> bool:
        """Return whether the answer to a call would be used."""
        return call.asker is self and call.number in self._jobs and call.number not in self._answers

    def take(self, call: Call, head: Head) -> None:
        """Take in an answer: the first one to a job counts."""
        self._copies[call.number] = self._copies.get(call.number, 1) - 1
        if self.wants(call):
            said(head.lines)
            self._answers[call.number] = head, call.body

    def again(self, call: Call) -> None:
        """Let a job be done again whose host was lost, before the others, unless another host is at it."""
        self._copies[call.number] = self._copies.get(call.number, 1) - 1
        if self.wants(call) and not self._copies[call.number] and call.number not in self._queue:
            self._queue.appendleft(call.number)

    def _fill(self) -> None:
        """Hand jobs to hosts that have room, those with the least to do first."""
        while self._queue:
            number = self._queue[0]
            if self._window is not None and number >= self._next + self._window:
                return
            member = self._crew.free_for(self)
            if member is None:
                return
            self._queue.popleft()
            self._begin(member, number)

    def _begin(self, member: Any, number: int) -> None:
        self._copies[number] = self._copies.get(number, 0) + 1
        self._crew.begin(member, self._jobs[number], number, self)

    def _fetched(self) -> tuple[Head, Any] | None:
        """Fetch the content of the next answer; None where it is lost, and has to be made again."""
        import ray
        from ray.exceptions import RayError

        head, body = self._answers.pop(self._next)
        try:
            content = copy.deepcopy(ray.get(body))  # what Ray returns is read-only, and pins its store
        except RayError:
            self._crew.figures.again += 1
            self._queue.appendleft(self._next)
            return None
        self._crew.figures.bytes += bytes_in(content)
        del self._jobs[self._next]
        self._next += 1
        return head, content

    def _back_up(self) -> None:
        """Make a call a second time that takes much longer than usual, where somebody has nothing to do."""
        if self._queue:
            return
        now = time.monotonic()
        for call in sorted(self._crew.calls_of(self), key=lambda call: call.began):
            usual = self._crew.usual.get(call.job.method)
            patience = max(SLOW * statistics.median(usual), LEAST_SECONDS) if usual else UNKNOWN_SECONDS
            if now - call.began < patience or not self.wants(call) or self._copies[call.number] > 1:
                continue
            member = self._crew.idle()
            if member is None:
                return
            self._crew.figures.twice += 1
            self._begin(member, call.number)


def bytes_in(content: Any) -> int:
    """Count the bytes of the arrays and payloads in nested containers."""
    if isinstance(content, np.ndarray):
        return content.nbytes
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, dict):
        return sum(map(bytes_in, content.values()))
    return sum(map(bytes_in, content)) if isinstance(content, (tuple, list)) else 0


def gathered(queue: JobQueue) -> ClientMetrics:
    """Join clients' evaluations: sums in the order of clients, as one process adds them up."""
    total: dict[str, Any] = {}
    numbers: list[int] = []
    blocks: list[tuple[int, Mapping[str, np.ndarray]]] = []
    while queue.has_more:
        _, (found, values) = queue.next()
        for client, metrics in found:
            numbers.append(client)
            total = add_metrics(total, metrics)
        blocks.append((len(found), values))
    columns = {
        name: np.concatenate([values.get(name, np.full(count, np.nan)) for count, values in blocks])
        for name in dict.fromkeys(name for _, values in blocks for name in values)
    }
    return ClientMetrics(total, columns, np.array(numbers, np.int64))
