"""The page as a web server of this process."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Mapping
from types import TracebackType

import uvicorn

from ...core.errors import ConfigError
from ..monitoring import Page as MonitorPage
from ..store import Store
from .address import PageAddress
from .app import Cluster, create_app
from .federation import Status
from .sweeping import Importance

CLOSE_SECONDS = 3  # time for which open connections, as those of events, are waited for


def require_packages() -> None:
    """Raise ConfigError where a package that the page needs is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise ConfigError("the page needs Plotly: pip install 'umbel[ui]'")


class Page:
    """Web server of a store, on a thread of its own in a `with` block, or on this one by `serve`.

    The store stays the caller's to close. monitor, federation, cluster, importance: see `create_app`. Errors:
    ConfigError for an address that cannot be listened on, and where Plotly is not installed.
    """

    def __init__(
        self,
        store: Store,
        address: PageAddress,
        monitor: Mapping[str, MonitorPage] | None = None,
        federation: Status | None = None,
        cluster: Cluster | None = None,
        importance: Importance | None = None,
    ):
        require_packages()
        self._address = address
        self._socket = address.listen()
        self._port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            create_app(store, address, self._is_ending, monitor, federation, cluster, importance),
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=CLOSE_SECONDS,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.serve, name="umbel-ui", daemon=True)

    def url(self, path: str = "/") -> str:
        """Return the link that opens the page; whoever has it may read the store."""
        return self._address.url(self._port, path)

    def serve(self) -> None:
        """Serve until the process is asked to end."""
        self._server.run(sockets=[self._socket])

    def _is_ending(self) -> bool:
        return self._server.should_exit

    def wait(self) -> None:
        """Wait for the thread; an interrupt goes through."""
        self._thread.join()

    def __enter__(self) -> Page:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=2 * CLOSE_SECONDS)
        self._socket.close()
