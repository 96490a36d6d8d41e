"""Address of the page: where it is, and what whoever asks for it has to know."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass, field

from ...core.errors import ConfigError
from ...core.validation import require

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8300
TRIES = 20  # ports that are tried, from the default one on, where none is named


@dataclass(frozen=True)
class PageAddress:
    """A host, a port, and the token without which nothing is answered.

    Parameters
    ----------
    port
        0 for any that is free; None for 8300 or one of the next that are.
    """

    host: str = LOOPBACK
    port: int | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def __post_init__(self) -> None:
        require(bool(self.host), "expected host='' to be a name or an address, such as 127.0.0.1")
        if self.port is not None:
            require(0 <= self.port <= 65535, f"expected 0 ≤ port={self.port} ≤ 65535")

    @property
    def names(self) -> frozenset[str]:
        """Names that a browser may call this machine by. Another name is of a page that had its name pointed here."""
        machine = socket.gethostname().lower()
        return frozenset({"localhost", "127.0.0.1", "::1", machine, self.host.lower()})

    def listen(self) -> socket.socket:
        """Open a socket that listens there. Errors: ConfigError where that cannot be."""
        ports = range(DEFAULT_PORT, DEFAULT_PORT + TRIES) if self.port is None else [self.port]
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        failure: OSError | None = None
        for port in ports:
            try:
                return socket.create_server((self.host, port), family=family)
            except OSError as error:
                failure = error
        shown = f"port={ports[0]}" if self.port is not None else f"ports {ports[0]} to {ports[-1]}"
        raise ConfigError(
            f"cannot listen on host={self.host!r}, {shown}: {_reason(failure)}; choose another --host or --port"
        )

    def url(self, port: int, path: str = "/") -> str:
        """Return the link that opens the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port}{path}{'&' if '?' in path else '?'}token={self.token}"


def _reason(error: OSError | None) -> str:
    """Say why nothing can listen. Python adds the address that it tried, which our message has already."""
    said = "no port is left" if error is None else error.strerror or str(error)
    return said.partition(" (while attempting")[0]
