"""Certificates that are replaced while the processes which use them run.

A TLS context is made once, of what its files held then, and Flower's processes keep theirs for life: a new certificate
or authority would count from their next start. Here every handshake looks whether the files were replaced, and is made
with what they hold now; connections that are open stay open. So a federation's authority can be exchanged under a run.

A node says with each call which authorities it trusts, by their SHA-256, so that the operator can tell when all trust
the next one. Nothing else depends on it: a node that lies about it can lock out itself alone.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

TRUSTS_HEADER = "umbel-trusts"


class FollowingContext(ssl.SSLContext):
    """A TLS context that is made anew for the next handshake when one of its files was replaced.

    make: from the files as they are. Files that cannot be used, since one of two is still to come, are waited for;
    until then the context before counts. Errors: those of make, for the first context alone.
    """

    def __new__(cls, files: Sequence[Path], make: Callable[[], ssl.SSLContext]) -> FollowingContext:
        # Other libraries want an SSLContext; no handshake is made with this one itself.
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, files: Sequence[Path], make: Callable[[], ssl.SSLContext]):
        self._files, self._make = tuple(files), make
        self._protocols: list[str] = []
        self._seen = self._look()
        self._context = make()

    def current(self) -> ssl.SSLContext:
        """Return the context of what the files hold now, as far as that can be used."""
        if (found := self._look()) != self._seen:
            try:
                context = self._make()
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                log.debug("certificates are left as they were: %s", error)
                return self._context
            if self._protocols:
                context.set_alpn_protocols(self._protocols)
            self._seen, self._context = found, context
        return self._context

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Same as the context's own, for every context to come."""
        self._protocols = list(alpn_protocols)
        self._context.set_alpn_protocols(self._protocols)

    def wrap_socket(self, *words: Any, **options: Any) -> ssl.SSLSocket:
        """Same as the context's own."""
        return self.current().wrap_socket(*words, **options)

    def wrap_bio(self, *words: Any, **options: Any) -> ssl.SSLObject:
        """Same as the context's own."""
        return self.current().wrap_bio(*words, **options)

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_stamp, self._files))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def trusting(bundle: Path) -> FollowingContext:
    """Make a client's context: servers of the authorities in a PEM file, whichever these are at the time."""

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=str(bundle))
        return context

    return FollowingContext([bundle], make)
