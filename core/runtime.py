"""The seam: a runtime carries work out, and what clients send back; the server adds up.

    for assignment in work: …                    the server's iterator: whom to ask next, or WAIT
    for arrival in runtime.train(work, summation)   the runtime's: each assignment comes back once, as an Arrival

Both iterators run on the caller's thread, one pull at a time. So work may depend on what has arrived, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from .aggregators import opened
from .examples import Examples
from .frozen import NO_BASE, Base
from .parts.private import SecureAggregation
from .protocols import Memory
from .random import Key
from .reading.directions import Measures
from .spec import ModelSpec
from .summation import Summation
from .sums import ClientSum, Joins, Meeting, ServerSum
from .tree import Tree
from .types import (
    NOTHING,
    Broadcast,
    ClientMetrics,
    ClientUpdate,
    CodedUpdate,
    Failure,
    Landing,
    Metrics,
    Value,
    Vector,
    loss_of,
)

FIGURES: Mapping[str, str] = {  # what a runtime of several machines counts, in the words that it is shown by
    "nodes": "machines that clients train on now",
    "processes": "processes that train clients now",
    "lost": "processes that were lost",
    "again": "calls that were made again, for what was lost",
    "twice": "calls that were made a second time, for a process that was slow",
    "bytes": "bytes that reached the process that plays the rounds",
}
MEMORY = "memory"  # choice of a run whose clients' memory is not in the store: the name that it has where it is
WAIT = None  # an item of work that says: pull no further before you have yielded another arrival


class Opening(NamedTuple):
    """All that a client needs to take part in a hidden sum."""

    meeting: Meeting
    message: bytes  # the server's first message
    reply_bytes: int  # the most bytes that the reply to `message` takes
    half: Callable[[int], ClientSum] | None  # makes a client's half, where the runtime has both in one process


class Assignment(NamedTuple):
    """Work for one client."""

    broadcast: Broadcast  # what the client starts from
    client: int
    key: Key  # the cohort's key; the client's own is key.derive("client", client)
    opening: Opening | None = None  # what opens the hidden sum that the client takes part in; None for no such sum
    number: int = 0  # place among all work of the run, from 1, where a client may have several pieces of it in a round
    before: Sequence[np.ndarray] | None = None  # what the client kept at the last commit, if it has landed since


class Subtotal(NamedTuple):
    """The sum of an aligned run of clients, in which one that failed keeps its place. See `core.tree`."""

    sum: Any  # the aggregator's accumulator; None where all clients failed
    losses: Mapping[int, float]  # each client's mean training loss, where the summation asks for it
    failures: Sequence[Failure]


class Arrival(NamedTuple):
    """Whatever came back of one assignment, or of a run of them."""

    clients: tuple[int, ...]  # numbers of the clients, in the order of the work; more than one for a Subtotal
    content: ClientUpdate | CodedUpdate | bytes | Subtotal | Failure  # bytes: an answer in a hidden sum
    memory: Mapping[int, list[np.ndarray]]  # what clients keep at home, if their updates count
    bytes_up: int  # bytes from clients to server, since the arrival before
    bytes_down: int  # bytes from server to clients, since the arrival before


class Forgetful:
    """Memory of clients where no second round is played: it keeps nothing."""

    def read(self, client: int) -> None:
        """Return None: nothing is remembered."""

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Keep nothing."""


FORGETFUL = Forgetful()


class Opened(NamedTuple):
    """A runtime's answer when it is bound to an experiment."""

    spec: ModelSpec  # the model's variables
    summation: Summation  # how updates will become a sum in the rounds
    on_client: np.ndarray | None = None  # which numbers of a model that is cut lie with clients: bool, shape (d,)
    over_selection: float = 1.0  # number of clients asked for each that is needed
    digest: str = ""  # the experiment's digest, where clients elsewhere check theirs against it
    base: Base = NO_BASE  # values of the model's frozen variables
    joins: Joins | None = None  # how the states of what the model measures in training join; None: nothing is measured
    landings: Mapping[int, Sequence[Landing]] | None = (
        None  # who lands in each asynchronous round, in order; None: open
    )


class Runtime(Protocol):
    """The place where clients are.

    It carries work out and what they send back; adds up nothing that the server could not.
    """

    is_live: bool  # whether clients are real devices: noise and masks come from the operating system's entropy

    def open(self, experiment: Any, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Bind to an experiment. memory: what clients keep at home, to be read where they train; the server writes it.

        choices: what `describe` returned when a run began, for one that is resumed.
        """

    @property
    def figures(self) -> Mapping[str, int]:
        """Counts of what carries the work, by name (`FIGURES`); none where that is this process, or real devices."""

    def describe(self) -> Mapping[str, str]:
        """Return what identifies the model ("model.…"), and the choices that a resumed run must make again."""

    def measures(self) -> Measures:
        """Return the metrics that the model measures, and which way they are to go."""

    def initial_params(self) -> Vector: ...
    def client_ids(self) -> Sequence[int]: ...

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Let clients train; each assignment arrives exactly once, a Failure included.

        work: pulled lazily, on the caller's thread; WAIT in it: yield another arrival first. Its errors pass through.
        Arrivals come in its order, unless the summation says otherwise. An iterator that is closed early lets go of who
        is still out: what they send later counts for nothing, and they keep nothing of it.
        """

    def hidden_sum(
        self, aggregation: SecureAggregation, meeting: Meeting, cohort: Sequence[int]
    ) -> tuple[ServerSum, Callable[[int], ClientSum] | None]:
        """Return the server's half of a hidden sum; and what makes a client's, if the runtime has both in a process."""

    def ask(self, messages: Mapping[int, bytes], reply_bytes: int) -> Iterator[Arrival]:
        """Play a later stage of the hidden sum that `train` has opened. Yields replies, bytes or Failure, in any order.

        reply_bytes: the most that one takes.
        """

    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """Evaluate params centrally, on the server's own examples."""

    def results(self, step: Literal["train", "test"], metrics: Metrics) -> Mapping[str, Value]:
        """Return the values of joined states, by the names that Keras logs them under.

        step: the step that measured them.
        """

    def evaluate_clients(self, params: Vector, clients: Sequence[int], extra: Vector = NOTHING) -> ClientMetrics:
        """Evaluate params on the clients' own validation examples.

        extra: Broadcast.extra, where that is other models to choose from.
        """

    def close(self) -> None: ...


class Parties:
    """The clients' halves of a round's hidden sum, all in one process. `hide` and `arrival` may run on any thread."""

    def __init__(self) -> None:
        self._halves: dict[int, ClientSum] = {}

    def hide(self, opening: Opening, client: int, update: ClientUpdate, key: Key) -> bytes | Failure:
        """Answer the opening for a client, its update in hand; return a Failure for an update that cannot be summed.

        key: source of the rounding's randomness.
        """
        assert opening.half is not None
        half = self._halves[client] = opening.half(client)
        refused = half.check(opening.message) or half.provide(update, key)
        return half.answer(opening.message) if refused is None else refused

    def arrival(
        self,
        assignment: Assignment,
        content: ClientUpdate | CodedUpdate | Failure,
        kept: list[np.ndarray],
        traffic: tuple[int, int] | None = None,
    ) -> Arrival:
        """Return what comes back of a client that trained in this process: hidden, where the assignment opens a sum.

        kept: what the client keeps at home. traffic: bytes up and down, where they are not those of broadcast and
        update.
        """
        client, opening = assignment.client, assignment.opening
        sent: ClientUpdate | CodedUpdate | bytes | Failure = content
        down = bytes_of(assignment.broadcast)
        if opening is not None:
            down += len(opening.message)
            if isinstance(content, ClientUpdate):
                key = assignment.key.derive("client", client).derive("aggregation")
                sent = self.hide(opening, client, content, key)
        is_lost = isinstance(sent, Failure)
        memory = {client: kept} if kept and not is_lost else {}
        if traffic is not None:
            return Arrival((client,), sent, memory, *((0, 0) if is_lost else traffic))
        return Arrival((client,), sent, memory, bytes_of(sent), down)

    def ask(self, messages: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Same as `Runtime.ask`."""
        for client, message in messages.items():
            reply = self._halves[client].answer(message)
            yield Arrival((client,), reply, {}, bytes_of(reply), len(message))


def added_up(arrivals: Iterable[Arrival], summation: Summation) -> Arrival:
    """Join an aligned run of arrivals in one, its updates added up: for whoever stands between clients and server.

    Only where summation.subtotals. One update is in memory at a time, where arrivals come one at a time.
    Errors: ClientError for a payload that the codec does not know.
    """
    tree = Tree(summation.aggregator, summation.shape.delta)
    clients: list[int] = []
    losses: dict[int, float] = {}
    failures: list[Failure] = []
    memory: dict[int, list[np.ndarray]] = {}
    up = down = 0
    for (client,), content, kept, bytes_up, bytes_down in arrivals:
        clients.append(client)
        up, down = up + bytes_up, down + bytes_down
        update = opened(content, summation.codec, summation.shape.delta)
        if isinstance(update, Failure):
            tree.add(None)
            failures.append(update)
            continue
        tree.add(update)
        memory |= kept
        if summation.losses and (loss := loss_of(update.metrics)) is not None:
            losses[client] = loss
    return Arrival(tuple(clients), Subtotal(tree.accumulator(), losses, failures), memory, up, down)


def bytes_of(content: Broadcast | ClientUpdate | CodedUpdate | bytes | Failure) -> int:
    """Count the bytes of what travels, as a simulation does: vectors, payloads and messages, without envelopes."""
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, CodedUpdate):
        return content.nbytes
    if isinstance(content, Broadcast):
        return content.params.nbytes + content.extra.nbytes
    return 0 if isinstance(content, Failure) else content.delta.nbytes + content.extra.nbytes
