"""A SuperLink: Flower's application in its layers, and the server that it runs in."""

from __future__ import annotations

import contextlib
import logging
import ssl
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..certificates import FollowingContext
from ..compat import let_tasks_last, log_config, state_of, superlink_app
from .asgi import App
from .bounds import Bounded
from .delivery import Delivery
from .pairing import FRAME_BYTES, Pairing
from .parcels import Parcels
from .patience import PATIENCE_SECONDS, Patience
from .quota import Quota, prepare, reply_bytes
from .senders import anybody, senders
from .tokens import TokenAuthenticator
from .trust import Trusting
from .waiting import Waiting

KEPT_SECONDS = 75  # time for which a connection is kept on which nothing is asked: longer than clients keep theirs
STARTUP_FAILURE = 3  # uvicorn's own exit status


class LinkGuard(NamedTuple):
    """Files and secrets of a SuperLink that others can reach."""

    database: Path
    certificate: Path  # PEM; it may be replaced, with its key
    key: Path
    secret: bytes  # what who plays runs proves himself by
    authenticator: TokenAuthenticator  # of the operator


def layered(flower: Any, guard: LinkGuard | None, is_ending: Callable[[], bool] = lambda: False) -> App:
    """Put Flower's application in its layers; what is refused by an outer one, no inner one hears of.

    Without a guard, on loopback, nobody proves who sends: a request is bounded by what its kind needs, and few large
    ones of a kind are in memory at a time. What is kept is in memory, without a quota.
    """
    state = partial(state_of, flower)
    app: App = flower
    if guard is not None:
        app = Quota(app, state, reply_bytes())
    app = Delivery(Patience(app, state), lambda message: state().object_store.delete(message))
    app = Parcels(app, state)
    if guard is not None:
        app = Trusting(app, guard.authenticator.lets_in)
    app = Waiting(app, is_ending)
    return Pairing(Bounded(app, anybody if guard is None else senders(state, guard.authenticator.lets_in)), state)


def serve(host: str, port: int, guard: LinkGuard | None = None) -> None:
    """Run a SuperLink until the process is asked to end. Without a guard it takes everybody's calls, in the clear."""
    import uvicorn

    let_tasks_last(PATIENCE_SECONDS)
    options: dict[str, Any] = {
        "ws": "websockets-sansio",  # it reads a frame, and no more before that one was taken
        "ws_max_size": FRAME_BYTES,
        "ws_per_message_deflate": False,
    }
    if guard is None:
        flower = superlink_app(host, port)
    else:
        prepare(guard.database)
        flower = superlink_app(host, port, str(guard.database), guard.authenticator, guard.secret, True)
        options |= {"ssl_certfile": guard.certificate, "ssl_keyfile": guard.key, "ssl_context_factory": _following}
    app = layered(flower, guard, lambda: server.should_exit)
    options |= {"log_config": log_config(), "timeout_keep_alive": KEPT_SECONDS}
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, **options))
    logging.getLogger("uvicorn.error").addFilter(lambda record: not _is_routine(record))
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _is_routine(record: logging.LogRecord) -> bool:
    """Return whether a line says no more than that a WebSocket came or went: several for each client and round."""
    return "connection " in record.getMessage() or '"WebSocket ' in record.getMessage()


def _following(config: Any, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    return FollowingContext([Path(config.ssl_certfile), Path(config.ssl_keyfile)], make)
