"""The error for whatever came over the network and is not what was agreed on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ...core.errors import UmbelError

log = logging.getLogger(__name__)


class Malformed(Exception):
    """A record that is not what was agreed on. reason: "schema", "dtype", "shape" or "metrics"."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise Malformed for whatever goes wrong inside: what somebody else sent must not end this process's run.

    Errors: Malformed; UmbelError, which says in words what is wrong on this side. Anything else that is raised is
    logged with its traceback, since it may be a fault of ours.
    """
    try:
        yield
    except (Malformed, UmbelError):
        raise
    except Exception as error:
        log.warning("%s cannot be read", what, exc_info=True)
        raise Malformed("schema", f"{what} cannot be read: {type(error).__name__}") from error
