"""A node's work: one message after another, each fetched, handed to the app, and answered."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable

# httpx: what a call fails with whose TLS is refused.
import httpx
from flwr.app import Context, Error, Message

from ..compat import play_as
from .contexts import Contexts
from .fleet import Leaving, NotLetIn, RunOver
from .inbox import Letter, Mailbox
from .outbox import Outbox

log = logging.getLogger(__name__)

RAISED = 2  # Flower's code: the client's code raised
AFTER_FAILURE_SECONDS = 1.0  # time before the next message, after one came to nothing
App = Callable[[Message, Context], Message]


class Service:
    """Work of a node that is online. stop: set when this process is to end."""

    def __init__(self, node: int, inbox: Mailbox, outbox: Outbox, contexts: Contexts, app: App, stop: threading.Event):
        self._node, self._inbox, self._outbox, self._contexts = node, inbox, outbox, contexts
        self._app, self._stop = app, stop

    def serve(self) -> None:
        """Work on messages, one at a time, until stop is set. A message that comes to nothing does not end it.

        Errors: NotLetIn where the node is let in no longer; httpx.TransportError where TLS is refused.
        """
        while not self._stop.is_set():
            try:
                self._answer(self._inbox.next())
            except Leaving:
                return
            except (NotLetIn, httpx.TransportError):
                raise
            except RunOver as over:
                log.info("a message came to nothing: %s", over)
            except Exception as error:  # whatever is wrong with one message, or its reply: others may be well
                log.warning("a message came to nothing: %s: %s", type(error).__name__, error)
                self._stop.wait(AFTER_FAILURE_SECONDS)

    def _answer(self, letter: Letter) -> None:
        """Fetch a message, work on it, and reply."""
        began = time.perf_counter()
        context = self._contexts.of(letter.run)
        message = self._inbox.fetch(letter)
        pulled, kind = time.perf_counter(), message.metadata.message_type
        log.info("%s: begun", kind)
        play_as(uuid.uuid4().int >> 64, letter.run, self._node)  # messages that are made take it from there
        reply = self._reply(message, context)
        del message
        worked = time.perf_counter()
        self._outbox.send(reply, worked - pulled, letter.is_ours)
        pushed = time.perf_counter()
        log.info("%s: in %.3f, work %.3f, out %.3f s", kind, pulled - began, worked - pulled, pushed - worked)

    def _reply(self, message: Message, context: Context) -> Message:
        try:
            return self._app(message, context)
        except Exception as error:
            log.exception("the client's code failed")
            return Message(Error(RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


def warmed(app: App) -> App:
    """Return the same app, for which TensorFlow is imported from now on, and which waits for that.

    A message must not import it meanwhile: of two threads that import modules of one circle, one finds a module that is
    only half there.
    """

    def import_tensorflow() -> None:
        from ....clients.tensorflow import engine  # noqa: F401

    imports = threading.Thread(target=import_tensorflow, name="umbel-imports", daemon=True)
    imports.start()

    def waiting(message: Message, context: Context) -> Message:
        imports.join()
        return app(message, context)

    return waiting
