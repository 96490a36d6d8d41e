"""A small HTTP server beside a run: /metrics, /healthz, /readyz. It takes no input but these three paths."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...core.errors import ConfigError, UmbelError
from ...core.system.printable import printable
from .health import Check
from .metrics import CONTENT_TYPE

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "127.0.0.1:9464"
CONNECTIONS = 16  # connections at once; more are closed unanswered
REQUEST_SECONDS = 5.0  # time for a request to arrive, and for its answer to be taken
CHECK_SECONDS = 5.0  # time for which a check's answer is good: whoever asks all the time does not write all the time


class Exporter:
    """Server of metrics and health over HTTP, in a `with` block, on a thread of its own.

    Parameters
    ----------
    address
        HOST:PORT, port 0 for any; only loopback is safe without a proxy or a network policy before it.
    metrics
        Gives the text.
    alive, ready
        Checks by name, behind /healthz and /readyz, which answer 200 when all hold and 503 when one does not, with
        which; why goes to the log alone, since it may name hosts and paths.

    Raises
    ------
    ConfigError
        For an address that cannot be listened on.
    """

    def __init__(
        self,
        address: str,
        metrics: Callable[[], str],
        alive: Mapping[str, Check] | None = None,
        ready: Mapping[str, Check] | None = None,
    ):
        self._server = _listen(address, pages_of(metrics, alive, ready))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="umbel-monitor")
        self._thread.daemon = True

    @property
    def address(self) -> str:
        """Address that is listened on, as HOST:PORT."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def __enter__(self) -> Exporter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


Page = Callable[[], tuple[int, str, str]]  # status, content type, text


def pages_of(
    metrics: Callable[[], str], alive: Mapping[str, Check] | None = None, ready: Mapping[str, Check] | None = None
) -> dict[str, Page]:
    """Return what is served, by path: /metrics, /healthz and /readyz. Arguments: see `Exporter`."""
    return {
        "/metrics": lambda: (200, CONTENT_TYPE, metrics()),
        "/healthz": Checks(alive or {}).page,
        "/readyz": Checks(ready or {}).page,
    }


class Checks:
    """Checks by name, and what they came to a moment ago."""

    def __init__(self, checks: Mapping[str, Check]):
        self._checks, self._lock = dict(checks), threading.Lock()
        self._until, self._failed = 0.0, dict[str, str]()

    def page(self) -> tuple[int, str, str]:
        """Return status, content type and JSON: {"status": "ok" or "failed", "checks": {name: the same}}."""
        failed = self.failed()
        said = {name: "failed" if name in failed else "ok" for name in self._checks}
        content = {"status": "failed" if failed else "ok", "checks": said}
        return 503 if failed else 200, "application/json", json.dumps(content) + "\n"

    def failed(self) -> dict[str, str]:
        """Return the checks that fail, by name, and why."""
        with self._lock:
            if time.monotonic() >= self._until:
                before, self._failed = self._failed, self._look()
                self._until = time.monotonic() + CHECK_SECONDS
                self._report(before)
            return self._failed

    def _look(self) -> dict[str, str]:
        found = {}
        for name, check in self._checks.items():
            try:
                check()
            except UmbelError as error:
                found[name] = str(error)
            except Exception as error:  # a probe must say that something is wrong, whatever it is
                found[name] = f"{type(error).__name__}: {error}"
        return found

    def _report(self, before: Mapping[str, str]) -> None:
        """Log what changed, once."""
        for name in self._checks:
            why = self._failed.get(name)
            if why is not None and name not in before:
                log.error("not healthy: %s: %s", name, why)
            if why is None and name in before:
                log.info("healthy again: %s", name)


class _Server(ThreadingHTTPServer):
    """HTTP server with a thread per connection, of which there are few."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], pages: Mapping[str, Page]):
        self.address_family, self.pages = family, pages
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's would look the host's name up, which may take as long as a name server does not answer.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # A timeout per read would let a byte a second keep the connection for ever.
        cut = threading.Timer(2 * REQUEST_SECONDS, _cut, [request])
        cut.daemon = True
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a broken connection for debugging alone: it is nobody's concern."""
        log.debug("a connection to the monitor broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    server: _Server

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        self._answer(*(page() if page else (404, "text/plain", "there are /metrics, /healthz and /readyz\n")))

    do_HEAD = do_GET

    def version_string(self) -> str:
        return "umbel"

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug("%s", printable(format % arguments))

    def _answer(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT or [IPv6]:PORT into host and port. Errors: ConfigError for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError(f"expected monitor={address!r} to be HOST:PORT, such as {DEFAULT_ADDRESS}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(address: str, pages: Mapping[str, Page]) -> _Server:
    host, port = split_address(address)
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _Server(family, (str(place[0]), port), pages)
    except OSError as error:
        raise ConfigError(f"cannot listen on monitor={address!r}: {error.strerror or error}") from error
