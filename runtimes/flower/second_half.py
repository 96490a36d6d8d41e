"""The server's side of split learning: a session for each client of a round, in which its steps are taken.

A session waits for its client on a thread of its own, and takes its steps in their order, each once: a step that comes
again, since its answer was lost, is answered as before. A client that begins anew, since its process died, is served
from the start, and nothing is left of what it did. What the steps moved counts with the client's reply, which names the
training that it is of.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Message, RecordDict

from ...clients.engine import Measured
from ...clients.tasks import step_sizes
from ...core.errors import ConfigError
from ...core.parts.algorithms import SplitStrategy
from ...core.recipe import Recipe
from ...core.runtime import Assignment
from ...core.types import Broadcast, ClientUpdate, Failure, Vector
from ..simulation import Simulation
from .check import Expected
from .greeting import Invitation, greeted, invitation_of
from .identity import PartyIdentity
from .link.pairing import OVER, REFUSED
from .malformed import Malformed
from .steps import (
    SLACK_BYTES,
    Broken,
    Channel,
    Crosses,
    Form,
    SentStep,
    StepsOver,
    new_session,
    pack_gradient,
    unpack_step,
)
from .wire import NO_JOINS, pack_invitation, unpack_attempt

if TYPE_CHECKING:  # TensorFlow is imported where there is a model
    from ...clients.tensorflow.second import SecondProgram, Standing

log = logging.getLogger(__name__)

UNBOUNDED_BYTES = 256 << 20  # most bytes of a step whose arrays have axes of any length
PAUSE_SECONDS = 0.2  # time between two tries to make a connection
MOST_ATTEMPTS = 2  # number of whole trainings of a client's that are kept until its reply is there


class ServerTrained(NamedTuple):
    """Result of a client's steps, as far as the server's half goes."""

    delta: Vector
    metrics: Measured


class StepSession:
    """One client's training in one round, on the server.

    params: the server's half of the broadcast's. sizes: numbers of examples in its steps, in order. examples: the
    client's own. identity: the server's, None in a federation that signs nothing.
    """

    def __init__(
        self,
        program: SecondProgram,
        assignment: Assignment,
        params: Vector,
        sizes: Sequence[int],
        examples: int,
        identity: PartyIdentity | None,
    ):
        self.name, self._key, self._identity = new_session(), X25519PrivateKey.generate(), identity
        self._program, self._assignment, self._params = program, assignment, params
        self._sizes, self._examples = sizes, examples
        self._forms = [Form(*form) for form in program.sent]
        self._most = most_bytes(self._forms, max(sizes, default=0))
        self._attempt, self._done, self._answer = "", 0, b""
        self._standing: Standing | None = None
        self._trained: dict[str, ServerTrained] = {}
        self._over = threading.Event()
        self._channel: Channel | None = None
        self.bytes_up = self.bytes_down = 0

    @property
    def invitation(self) -> Invitation:
        """The part of the client's message that is about its steps."""
        return invitation_of(self.name, self._key, self._identity)

    def start(self, grid: Crosses, node: Callable[[], int | None]) -> None:
        """Wait for the client, and serve it, on a thread of its own.

        node: tells which node the client is; None while it is away.
        """
        work = threading.Thread(target=self._serve, args=(grid, node), name=f"umbel-{self.name[:6]}", daemon=True)
        work.start()

    def close(self) -> None:
        """Serve the client no more."""
        self._over.set()
        channel = self._channel
        if channel is not None:
            channel.close(OVER, "the round has ended")

    def take(self, attempt: str) -> ServerTrained | None:
        """Return what a training came to; None for one that was not taken to its end here."""
        if not self._sizes:  # a client without a step has nothing to cross for
            return self._ended(self._begun())
        return self._trained.get(attempt)

    def _serve(self, grid: Crosses, node: Callable[[], int | None]) -> None:
        while not self._over.is_set():
            number = node()
            if number is not None:
                with contextlib.suppress(Broken, StepsOver):
                    self._serve_once(grid.crossing(number, self.name))
            self._over.wait(PAUSE_SECONDS)

    def _serve_once(self, channel: Channel) -> None:
        """Take steps over a channel until it is closed. Errors: Broken, StepsOver."""
        self._channel = channel
        try:
            if not self._over.is_set():
                self._talk(channel)
        except (Broken, StepsOver):
            raise
        except Exception as error:  # whatever the client sent is no reason to serve the others no more
            log.warning("client %d: %s", self._assignment.client, error)
            channel.close(REFUSED, f"{error}")
        finally:
            if self._over.is_set():
                channel.close(OVER, "the round has ended")

    def _talk(self, channel: Channel) -> None:
        """Take the steps that come over a channel. Errors: Broken, Malformed, ClientError."""
        attempt, channel = greeted(channel, self.name, self._key, self._assignment.client, self._identity)
        if attempt != self._attempt:
            self._attempt, self._done, self._standing = attempt, 0, None
        while True:
            message = channel.receive(self._most)
            step = unpack_step(message, self._forms)
            if step.number != self._done or not self._done:
                self._take_step(step)
                self.bytes_up += sum(array.nbytes for array in step.arrays)
            channel.send(self._answer)

    def _take_step(self, step: SentStep) -> None:
        sizes = self._sizes[self._done : self._done + 1]
        if step.number != self._done + 1 or list(sizes) != [step.examples]:
            expected = f"step {self._done + 1} with {sizes[0]} examples" if sizes else "no more steps"
            raise Malformed("schema", f"expected {expected}, got step {step.number} with {step.examples}")
        self._standing = self._standing or self._begun()
        gradient = self._standing.step(step.examples, step.arrays)
        self._answer, self._done = pack_gradient(step.number, gradient), step.number
        self.bytes_down += gradient.nbytes
        if self._done == len(self._sizes):
            self._trained[self._attempt] = self._ended(self._standing)
            self._standing = None  # as large as the half, and its optimizer's slots
            while len(self._trained) > MOST_ATTEMPTS:
                del self._trained[next(iter(self._trained))]

    def _begun(self) -> Standing:
        client, broadcast = self._assignment.client, self._assignment.broadcast
        key = self._assignment.key.derive("client", client).derive("layers")
        return self._program.begin(self._params, broadcast.learning_rate, key)

    def _ended(self, standing: Standing) -> ServerTrained:
        return ServerTrained(*standing.end(self._examples, sum(self._sizes)))


class Sessions:
    """The sessions of a run's clients. A `with` block: at its end none is served any more.

    on_client: which numbers lie with clients: bool, shape (d,).
    """

    def __init__(
        self,
        grid: Crosses,
        program: SecondProgram,
        recipe: Recipe,
        on_client: np.ndarray,
        identity: PartyIdentity | None,
    ):
        self._identity = identity
        self._grid, self._program, self._recipe, self._on_client = grid, program, recipe, on_client
        self._of: dict[int, StepSession] = {}
        self._examples = recipe.population.sizes()

    def open(self, assignment: Assignment, node: Callable[[int], int | None]) -> RecordDict:
        """Open a session for an assignment; return the record that its message carries. node: that of a client."""
        client, broadcast = assignment.client, assignment.broadcast
        examples = int(self._examples[client])
        sizes = step_sizes(self._recipe, self._program.engine.fixed_batch, client, broadcast.round, examples)
        session = StepSession(
            self._program, assignment, broadcast.params[~self._on_client], sizes, examples, self._identity
        )
        self._of[client] = session
        session.start(self._grid, lambda: node(client))
        return pack_invitation(session.invitation)

    def shared(self, broadcast: Broadcast) -> Broadcast:
        """Return what clients are sent of a broadcast: their half of the model."""
        return broadcast._replace(params=broadcast.params[self._on_client])

    def expected(self, expected: Expected) -> Expected:
        """Return the form of a client's reply: an update of its half, without metrics."""
        return expected._replace(size=int(np.count_nonzero(self._on_client)), joins=NO_JOINS)

    def close(
        self, client: int, reply: Message | Failure, content: ClientUpdate | Failure | bytes
    ) -> tuple[ClientUpdate | Failure, int, int]:
        """Serve a client no more whose reply is there.

        Return its update, with the server's half of what it trained, and the bytes that crossed the cut, up and down.
        content: what the reply was checked to be.
        """
        session = self._of.pop(client)
        session.close()
        if not isinstance(content, ClientUpdate) or isinstance(reply, Failure):
            assert isinstance(content, Failure)
            return content, session.bytes_up, session.bytes_down
        try:
            joined = self._joined(client, content, session.take(unpack_attempt(reply.content)))
        except Malformed as malformed:
            joined = Failure(client, malformed.reason, malformed.detail)
        return joined, session.bytes_up, session.bytes_down

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *_: object) -> None:
        for client in list(self._of):
            self._of.pop(client).close()

    def _joined(self, client: int, update: ClientUpdate, trained: ServerTrained | None) -> ClientUpdate | Failure:
        if trained is None:
            return Failure(client, "schema", "its update is not of a training whose steps were all taken here")
        delta = np.empty(len(self._on_client), np.float32)
        delta[self._on_client], delta[~self._on_client] = update.delta, trained.delta
        if not np.isfinite(delta.sum()):
            return Failure(client, "non_finite", "its update is not finite")
        return update._replace(delta=delta, metrics=trained.metrics)


def most_bytes(forms: Sequence[Form], count: int) -> int:
    """Return the most bytes of a step of `count` examples."""
    sizes = [form.bytes_at(count) for form in forms]
    known = [size for size in sizes if size is not None]
    return SLACK_BYTES + (sum(known) if len(known) == len(sizes) else UNBOUNDED_BYTES)


def check_split(grid: object, recipe: Recipe, over_selection: float) -> None:
    """Raise ConfigError for what does not go with a model that is cut between machines."""
    if not isinstance(recipe.strategy, SplitStrategy):
        return
    name = repr(recipe.strategy)
    if not isinstance(grid, Crosses):
        raise ConfigError(
            f"{name} needs a connection that is kept open for the steps, which this SuperLink does not have; start the "
            "server by umbel server start, or use --runtime simulation"
        )
    if over_selection > 1:
        raise ConfigError(f"over_selection={over_selection:g} leaves out slow clients, whose steps {name} took; use 1")
    if recipe.validation is not None:
        raise ConfigError(
            f"validation evaluates whole models on clients, and of {name}'s the second half stays on the server; drop "
            "validation, and use test"
        )


def sessions_of(grid: object, server: Simulation, recipe: Recipe, identity: PartyIdentity | None) -> Sessions | None:
    """Return what serves the clients of a model that is cut; None for a whole one.

    server: the server's own model. Errors: ConfigError for one that XLA compiles.
    """
    if not isinstance(recipe.strategy, SplitStrategy):
        return None
    if server.describe()["compile"] == "xla":
        raise ConfigError(f"{recipe.strategy!r} over Flower is compiled as a graph: XLA would compile across the cut")
    assert isinstance(grid, Crosses)
    return Sessions(grid, server.second_half(), recipe, server.on_client, identity)
