"""The only loop that adds updates up: for every runtime, and every kind of round."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import cast

from ..core.aggregators import opened
from ..core.errors import ConfigError, RunStopped, UmbelError
from ..core.protocols import Memory
from ..core.runtime import WAIT, Arrival, Assignment, Runtime, Subtotal
from ..core.summation import Summation
from ..core.sums import ServerSum
from ..core.system.faults import crash_point
from ..core.tree import Tree
from ..core.types import ClientUpdate, Failure, RoundResult, loss_of
from ..core.validation import require

log = logging.getLogger(__name__)

Train = Callable[[Iterable[Assignment | None], Summation], Iterator[Arrival]]  # see Runtime.train
# (client, what it sent) → what that counts as; told of each arrival once, in order, failures too
CountsAs = Callable[[int, ClientUpdate | Failure], ClientUpdate | Failure]


class Out:
    """Work of a round as a runtime pulls it, and the one place that knows which clients are out.

    Guarantees: nobody is out twice: what a client keeps from the first time is there in the second. WAIT is passed on
    only while somebody is out.
    Errors: ConfigError for work that waits for nobody, and for a runtime that pulls on after WAIT though nobody has
    arrived: one that holds arrivals back does not go with such work.
    """

    def __init__(self, work: Iterable[Assignment | None]):
        self._work = work
        self._out: dict[int, Assignment] = {}
        self._arrived = 0

    def __iter__(self) -> Iterator[Assignment | None]:
        waited_for_nobody = False
        for assignment in self._work:
            if assignment is WAIT:
                require(bool(self._out) or not waited_for_nobody, "the work waits, and nobody is out to be waited for")
                waited_for_nobody = not self._out
                if self._out:
                    yield from self._wait()
                continue
            waited_for_nobody = False
            while assignment.client in self._out:
                yield from self._wait()
            self._out[assignment.client] = assignment
            yield assignment

    def took(self, clients: Sequence[int], in_order: bool) -> list[Assignment]:
        """Take back assignments, and return them. Errors: ConfigError for clients that are not out, or not next."""
        assignments = []
        for client in clients:
            is_next = client in self._out and (not in_order or client == next(iter(self._out)))
            require(is_next, f"client {client} arrived, which is not {'next' if client in self._out else 'out'}")
            assignments.append(self._out.pop(client))
        self._arrived += len(assignments)
        return assignments

    def leave(self) -> list[int]:
        """Wait for nobody any more; return who was still out, ascending."""
        left = sorted(self._out)
        self._out.clear()
        return left

    def _wait(self) -> Iterator[None]:
        arrived = self._arrived
        yield WAIT
        require(
            self._arrived > arrived,
            "the runtime asks for more work, which waits for somebody to arrive: rounds in which clients wait for one "
            "another cannot be played on a runtime that holds arrivals back",
        )


class Sum:
    """Sum of a round, while its updates arrive."""

    def __init__(self, out: Out, summation: Summation, memory: Memory, counts_as: CountsAs | None = None):
        """Begin an empty sum.

        out: the work that the arrivals are of. memory: what clients keep at home, where their updates count.
        """
        self.counted = 0
        self._out, self._summation, self._memory, self._counts_as = out, summation, memory, counts_as
        self._tree = Tree(summation.aggregator, summation.shape.delta)
        self._failures: list[Failure] = []
        self._losses: dict[int, float] = {}
        self._bytes_up = 0
        self._bytes_down = 0

    def take(self, arrival: Arrival) -> None:
        """Add an arrival to the sum; commit what its clients keep at home, where their updates count."""
        assignments = self._out.took(arrival.clients, self._summation.in_order)
        self._bytes_up += arrival.bytes_up
        self._bytes_down += arrival.bytes_down
        if isinstance(arrival.content, Subtotal):
            self._take_subtotal(arrival.content, len(assignments))
        elif not self._take_update(arrival):
            return
        for client, arrays in arrival.memory.items():
            self._memory.write(client, arrays)
        crash_point("mid-training", assignments[0].broadcast.round)

    def result(self) -> RoundResult:
        """Return what was collected."""
        return RoundResult(self._tree.total(), self._failures, self._bytes_up, self._bytes_down, self._losses)

    def _take_subtotal(self, subtotal: Subtotal, width: int) -> None:
        is_allowed = self._summation.subtotals and self._counts_as is None
        require(is_allowed, "a runtime added updates up that somebody here has to see one by one")
        self._tree.add_run(subtotal.sum, width)
        self._losses |= subtotal.losses
        self._failures += subtotal.failures
        self.counted += width - len(subtotal.failures)

    def _take_update(self, arrival: Arrival) -> bool:
        """Add one client's update, or note its failure; return whether it counts."""
        (client,) = arrival.clients
        sent = opened(arrival.content, self._summation.codec, self._summation.shape.delta)
        failure = self._add(client, sent)
        if failure is not None:
            self._tree.add(None)
            self._failures.append(failure)
            return False
        if self._summation.losses and isinstance(sent, ClientUpdate) and (loss := loss_of(sent.metrics)) is not None:
            self._losses[client] = loss
        self.counted += 1
        return True

    def _add(self, client: int, sent: ClientUpdate | Failure) -> Failure | None:
        """Add what a client sent; return why it does not count, if it does not."""
        try:
            update = sent if self._counts_as is None else self._counts_as(client, sent)
            if isinstance(update, Failure):
                return update
            self._tree.add(update)
        except UmbelError as error:
            # One client's update must not end the run of all others; in this process it is the experiment's fault.
            if not self._summation.strangers:
                raise
            return Failure(client, "unfit", str(error))
        return None


def take(arrivals: Iterator[Arrival], adding: Sum, enough: float = math.inf) -> None:
    """Add arrivals up until there are no more, or so many updates count.

    arrivals: those of a runtime that pulls the work of `adding`; it may outlive the round.
    """
    for arrival in arrivals:
        adding.take(arrival)
        del arrival  # one update in memory at a time
        if adding.counted >= enough:
            break


def collect(
    train: Train,
    work: Iterable[Assignment | None],
    summation: Summation,
    memory: Memory,
    *,
    counts_as: CountsAs | None = None,
    enough: float = math.inf,
) -> RoundResult:
    """Collect the updates of a round whose work ends with it.

    enough: number of updates with which the round is over, though clients are still out. counts_as: see CountsAs.
    Errors: those of work, train and the aggregator.
    """
    if counts_as is not None:
        summation = dataclasses.replace(summation, subtotals=False)
    out = Out(work)
    adding = Sum(out, summation, memory, counts_as)
    with _closing(train(out, summation)) as arrivals:
        take(arrivals, adding, enough)
    late = out.leave()
    require(not late or adding.counted >= enough, f"the runtime never said what became of clients {late[:5]}")
    result = adding.result()
    closed = [Failure(client, "round_closed", f"{adding.counted} others were faster") for client in late]
    return result._replace(failures=[*result.failures, *closed])


def collect_hidden(
    runtime: Runtime, work: Iterable[Assignment], summation: Summation, memory: Memory, server: ServerSum
) -> RoundResult:
    """Collect a round of a hidden sum: its stages one after another. work: with the first stage's openings.

    Errors: RunStopped when too few are left at a stage, or the sum may not be revealed; it says who failed.
    """
    stages, out = Stages(server), Out(work)
    try:
        with _closing(runtime.train(out, summation)) as arrivals:
            for arrival in arrivals:
                (assignment,) = out.took(arrival.clients, summation.in_order)
                stages.take(arrival)
                crash_point("mid-training", assignment.broadcast.round)
        while messages := server.advance():
            for arrival in runtime.ask(messages, server.reply_bytes):
                stages.take(arrival)
        total = server.total()
    except RunStopped as stopped:
        raise RunStopped(f"{stopped}{_told(stages.failures)}") from stopped
    for client in server.counted:
        for owner, arrays in stages.memory.get(client, {}).items():
            memory.write(owner, arrays)
    for failure in server.left_out.values():
        log.warning("client %d failed, %s: %s", *failure)
    failures = [*stages.failures, *server.left_out.values()]
    is_spoiled = not total.clients
    return RoundResult(total, failures, server.stands_for(stages.bytes_up), stages.bytes_down, is_spoiled=is_spoiled)


class Stages:
    """All that the stages of a hidden sum bring in.

    What clients keep at home waits until it is known who is in the sum.
    """

    def __init__(self, server: ServerSum):
        self.failures: list[Failure] = []
        self.memory: dict[int, Mapping[int, list]] = {}
        self.bytes_up = 0
        self.bytes_down = 0
        self._server = server

    def take(self, arrival: Arrival) -> None:
        """Hand a reply to the server's half."""
        (client,) = arrival.clients
        self.bytes_up += arrival.bytes_up
        self.bytes_down += arrival.bytes_down
        content = arrival.content
        if not isinstance(content, (bytes, Failure)):
            raise ConfigError(f"expected a message of a hidden sum from client {client}, got an update in the open")
        failure = self._server.receive(client, content) if isinstance(content, bytes) else content
        if failure is not None:
            if isinstance(content, bytes):  # of the others the runtime has told
                log.warning("client %d failed, %s: %s", *failure)
            self.failures.append(failure)
        elif arrival.memory:
            self.memory[client] = arrival.memory


def _closing(arrivals: Iterator[Arrival]) -> contextlib.closing[Generator[Arrival]]:
    """Return a context that closes a runtime's iterator: who is still out is let go of at once."""
    return contextlib.closing(cast("Generator[Arrival]", arrivals))


def _told(failures: Sequence[Failure]) -> str:
    """Say who failed, and why, for the error that ends a run."""
    if not failures:
        return ""
    reasons = ", ".join(sorted({failure.reason for failure in failures}))
    return f" ({len(failures)} failed: {reasons}; client {failures[0].client}: {failures[0].detail})"
