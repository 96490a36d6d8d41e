"""Clocks: how far this host's is from a server's, in words that say what to do."""

from __future__ import annotations

import http.client
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

from ..core.errors import ConfigError

AHEAD_SECONDS = 5.0  # how far a client's clock may be ahead of the server's: Flower's own bound for a node's signature
BEHIND_SECONDS = 300.0  # and how far behind
WORTH_SAYING_SECONDS = 3.0  # the server says its time in whole seconds
ASK_SECONDS = 5.0
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h


def clock_skew(host: str, port: int, authority: Path) -> float | None:
    """Return by how many seconds this host's clock is ahead of a server's; None where the server does not say.

    The server's time is in the Date of its answers; dates of its certificate are not looked at, since they may be what
    a wrong clock refuses. Errors: ConfigError for a file that holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{authority} does not hold the federation's certificate: {error}") from error
    context.verify_flags |= NO_CHECK_TIME
    connection = http.client.HTTPSConnection(host, port, timeout=ASK_SECONDS, context=context)
    try:
        before = time.time()
        connection.request("GET", "/health")
        date = connection.getresponse().headers["Date"]
        after = time.time()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if date is None:
        return None
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    earliest, latest = before - (theirs + 1), after - theirs  # the second that it named may have been nearly over
    return earliest if earliest > 0 else min(latest, 0.0)


def complaint(skew: float | None, host: str) -> str | None:
    """Say that this host's clock is too far from the server's for its node to be let in; None where it is not."""
    if skew is None or -BEHIND_SECONDS < skew < AHEAD_SECONDS:
        return None
    bounds = f"more than {AHEAD_SECONDS:g} seconds ahead, or {BEHIND_SECONDS:g} behind"
    return f"{described(skew, host)}; the server lets nobody in who is {bounds}: set the clock that is wrong, as by ntp"


def described(skew: float, host: str) -> str:
    """Say how far this host's clock is from the server's."""
    word = "ahead of" if skew > 0 else "behind"
    return f"this host's clock is {abs(skew):.0f} seconds {word} that of the server at {host}"
