"""Guard of the page: who may ask, and what a browser may do with the answer.

A token opens the page, and becomes a cookie that scripts cannot read and other sites do not send; a program, as
Prometheus, sends it as `Authorization: Bearer`. The Host header must
be a name of this machine, so that no other page can have its own name pointed here and read what is answered (DNS
rebinding). Scripts and styles come from here alone, and the page is in nobody's frame.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping

from starlette.datastructures import URL, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .address import PageAddress

PORT = re.compile(r":\d+$")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "style-src-attr 'unsafe-inline'",  # Plotly sets some of its elements' styles as attributes
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TOKEN = "token"  # name of the query's parameter
REFUSED = "This page needs the link with its token, which the command that serves it has printed.\n"


class Guard:
    """Middleware that answers whoever has the token, asks by a name of this machine, and only reads; refuses others."""

    def __init__(self, app: ASGIApp, address: PageAddress):
        self._app, self._address = app, address
        self._names = address.names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Same as in ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._check(Request(scope))
        await (refusal or self._app)(scope, receive, send_guarded)

    def _check(self, request: Request) -> Response | None:
        """Return the answer to whom the app should not answer; None for whom it should."""
        host = PORT.sub("", request.headers.get("host", "")).strip("[]").lower()
        if host not in self._names:
            return PlainTextResponse("This machine is not called that.\n", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("This page only reads.\n", 405, {"Allow": "GET, HEAD"})
        offered = request.query_params.get(TOKEN)
        if offered is not None and self._is_token(offered):
            return self._admit(request)
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(bearer.strip()):
            return None
        if not self._is_token(request.cookies.get(self._cookie(request), "")):
            return PlainTextResponse(REFUSED, 403)
        return None

    def _admit(self, request: Request) -> Response:
        """Put the token in a cookie, and out of the address bar and the history."""
        url = URL(scope={**request.scope, "query_string": b""})
        query = request.url.remove_query_params(TOKEN).query
        path = url.path if not url.path.startswith("//") else "/"
        reply = RedirectResponse(path + (f"?{query}" if query else ""), 303)
        reply.set_cookie(self._cookie(request), self._address.token, httponly=True, samesite="strict")
        return reply

    def _cookie(self, request: Request) -> str:
        """Return the cookie's name. Browsers send a host's cookies to all its ports: each page has one of its own."""
        return f"umbel-{request.url.port or 80}"

    def _is_token(self, offered: str) -> bool:
        return hmac.compare_digest(offered.encode(), self._address.token.encode())
