"""A proof that a node holds its key: Flower's signature over the time, made anew for every call."""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import logging
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ....core.errors import ConfigError
from ....core.system.files import write_atomically
from ..compat import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER

log = logging.getLogger(__name__)

TOLERATED_SECONDS = 2.0  # difference of two clocks that is left alone: a server's says whole seconds


class Proof:
    """A node's key, and the headers that prove to hold it.

    A SuperLink takes a signature whose time is about its own. A host whose clock is wrong is told so, in its log, and
    signs the server's time: TLS is what keeps strangers out, and asks no more of clocks than certificates do.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey):
        self._key, self._ahead = key, 0.0
        kind = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public = key.public_key().public_bytes(serialization.Encoding.PEM, kind)
        self._same = {FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(self.public).decode()}

    def __repr__(self) -> str:
        return "Proof()"

    def headers(self) -> dict[str, str]:
        """Return the headers of a call that is made now."""
        now = datetime.datetime.fromtimestamp(time.time() - self._ahead, datetime.UTC).isoformat()
        signature = self._key.sign(now.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        signed = {FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode()}
        return {**self._same, TIMESTAMP_HEADER: now, **signed}

    def follow(self, date: str | None) -> bool:
        """Take over the server's time from the Date of an answer that refused this node's.

        Return whether it differs from what was signed, so that the call is worth another try.
        """
        server = None
        with contextlib.suppress(ValueError, TypeError):
            server = email.utils.parsedate_to_datetime(date or "").timestamp()
        if server is None:
            return False
        ahead, before = time.time() - server, self._ahead
        if abs(ahead - before) < TOLERATED_SECONDS:
            return False
        self._ahead = ahead
        log.warning(
            "this host's clock is %.0f seconds %s the server's; set it: signatures follow the server's until then",
            abs(ahead),
            "ahead of" if ahead > 0 else "behind",
        )
        return True


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a node's key from a file in OpenSSH's format. Errors: ConfigError for another kind, or none."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} does not hold a private key in OpenSSH's format: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} does not hold an elliptic-curve key")
    return key


def make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the key in a file; make one there where there is none."""
    if not path.exists():
        key, kind = ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.OpenSSH
        write_atomically(path, key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    return load_key(path)
