"""Authorities that a node trusts, by a file that may be replaced while it runs; and its saying so with every call."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from ..certificates import TRUSTS_HEADER, trusting


class Announced:
    """A TLS context for the authorities that a PEM file holds at the time, and the header that names them."""

    def __init__(self, bundle: Path):
        self.context = trusting(bundle)
        self._said: tuple[ssl.SSLContext | None, str] = None, ""

    def headers(self) -> dict[str, str]:
        """Return the header of a call that is made now: the SHA-256 of each authority."""
        current = self.context.current()
        if self._said[0] is not current:
            found = (hashlib.sha256(one).hexdigest() for one in current.get_ca_certs(binary_form=True))
            self._said = current, ",".join(sorted(found))
        return {TRUSTS_HEADER: self._said[1]}
