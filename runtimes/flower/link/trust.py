"""The authorities that a federation's nodes trust, as each says with every call, for the operator.

Nothing else depends on it: a node that lies about it can lock out itself alone. See `certificates`.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from ..certificates import TRUSTS_HEADER
from ..compat import CONTROL_PATH, FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_PATH
from .asgi import App, Receive, Scope, Send, answered

TRUSTS_PATH = CONTROL_PATH + "umbel-trusts"
TRUSTS = re.compile(rb"[0-9a-f]{64}(,[0-9a-f]{64}){0,7}")


class Trusting:
    """A SuperLink's ASGI application, which takes note of what its nodes trust, and tells the operator.

    What a node says counts where Flower took its call, and so its signature. lets_in: whether a bearer token is the
    operator's. Its memory is as much as there are nodes whose keys were let in.
    """

    def __init__(self, app: App, lets_in: Callable[[bytes], bool]):
        self._app, self._lets_in = app, lets_in
        self._trusts: dict[str, list[str]] = {}  # {public key, PEM: SHA-256 of each authority, hex}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        if scope["path"] == TRUSTS_PATH:
            return await self._tell(headers.get(b"authorization", b""), send)
        said, key = headers.get(TRUSTS_HEADER.encode(), b""), headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.encode())
        if not scope["path"].startswith(FLEET_PATH) or key is None or not TRUSTS.fullmatch(said):
            return await self._app(scope, receive, send)

        async def note(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300:
                self._trusts[b64decode(key).decode()] = said.decode().split(",")
            await send(message)

        return await self._app(scope, receive, note)

    async def _tell(self, authorization: bytes, send: Send) -> None:
        if not self._lets_in(authorization.removeprefix(b"Bearer ")):
            return await answered(401, b"{}").give(send)
        await answered(200, json.dumps(self._trusts).encode()).give(send)
