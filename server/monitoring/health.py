"""Checks of whether a server is ready: each raises an UmbelError when it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from .certificates import check_certificate

if TYPE_CHECKING:  # SQLAlchemy is imported by the first check
    from ..store import Store

Check = Callable[[], None]


def database_check(url: str, key: str | None = None, create: bool = False) -> Check:
    """Make the check that the store at url takes writes. The first check that can opens it.

    create: make one that does not exist; else that is an error. key: file of an encrypted store's key. Errors of the
    check: StoreError.
    """
    opened: list[Store] = []

    def check() -> None:
        from ..store import Store

        if not opened:
            opened.append(Store.open(url, create=create, key=key))
        opened[0].check_writable()

    return check


def certificate_check(path: Path | str) -> Check:
    """Make the check that the certificate in a PEM file is valid, and for a day more.

    The file is read each time: it may be replaced. Errors of the check: ConfigError.
    """

    def check() -> None:
        check_certificate(read_certificate(path))

    return check


def read_certificate(path: Path | str) -> bytes:
    """Read the bytes of a PEM file. Errors: ConfigError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the certificate {path}: {error.strerror}") from error
