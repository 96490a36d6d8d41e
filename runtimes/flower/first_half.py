"""The client's side of a channel of steps: a batch's activations cross, and come back as their gradient.

A connection that breaks is made again, and the step under way is sent again under its number: the server counts it
once.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence

import numpy as np

from ...core.errors import ClientError
from .greeting import Invitation, greet
from .identity import PartyIdentity
from .malformed import Malformed
from .steps import (
    SLACK_BYTES,
    Broken,
    Channel,
    Nobody,
    StepsOver,
    Unwanted,
    pack_step,
    unpack_gradient,
)

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2  # time between two tries to make a connection
ALONE_SECONDS = 10.0  # time without the other side, while the SuperLink is there, after which its round has ended

Opener = Callable[[int, str], Channel]  # (run, session) → a channel. Errors: Broken


class Passage:
    """A client's steps of one training. A `with` block: the connection is closed at its end.

    open: opens the channel anew whenever it breaks. attempt: the name of this training, which the reply repeats.
    """

    def __init__(self, open: Callable[[], Channel], invitation: Invitation, identity: PartyIdentity | None):
        """Begin a training, without a connection yet. invitation: what the server's message says of its steps."""
        self.attempt = secrets.token_hex(16)
        self._open, self._invitation, self._identity = open, invitation, identity
        self._channel: Channel | None = None
        self._number = 0
        self._alone_since: float | None = None

    def __enter__(self) -> Passage:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def __call__(self, count: int, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Take a step of `count` examples; return the gradient at the activations, the first of the arrays.

        Errors: ClientError where the server takes no more steps, or not this one.
        """
        self._number += 1
        message = pack_step(self._number, count, arrays)
        while True:
            try:
                return self._crossed(message, arrays[0])
            except Nobody as error:
                self._note_alone(error)
            except Broken as error:
                log.info("step %d is sent again: %s", self._number, error)
            except StepsOver as error:
                raise ClientError(f"the server takes no more steps: {error}") from error
            except Unwanted as error:
                raise ClientError(f"the server does not take step {self._number}: {error}") from error
            except Malformed as error:
                raise ClientError(f"the server's answer to step {self._number} is none: {error}") from error
            self._let_go()
            time.sleep(PAUSE_SECONDS)

    def _crossed(self, message: bytes, activations: np.ndarray) -> np.ndarray:
        if self._channel is None:
            opened = self._open()
            try:
                self._channel = greet(opened, self._invitation, self.attempt, self._identity)
            except Exception:
                opened.close(1000)
                raise
        channel = self._channel
        channel.send(message)
        number, gradient = unpack_gradient(channel.receive(activations.nbytes + SLACK_BYTES), activations)
        if number != self._number:
            raise Malformed("schema", f"expected the answer to step {self._number}, got that to {number}")
        self._alone_since = None
        return gradient

    def _let_go(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close(1000)

    def _note_alone(self, error: Nobody) -> None:
        moment = time.monotonic()
        self._alone_since = self._alone_since or moment
        if moment - self._alone_since > ALONE_SECONDS:
            raise ClientError("the server's half of the model is not there; its round has ended") from error
