"""Validity of certificates: from when and until when, and a warning before they expire."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ...core.errors import ConfigError

log = logging.getLogger(__name__)

WARNING = timedelta(days=14)  # time left to renew a certificate, from the first warning on
TODAY = timedelta(days=1)


class Validity(NamedTuple):
    """Time in which a certificate, with those of its issuers beside it, is valid: UTC."""

    begins: datetime
    ends: datetime

    def left(self, now: datetime | None = None) -> timedelta:
        """Return the time until it expires; negative after."""
        return self.ends - (now or datetime.now(UTC))


def validity(pem: bytes) -> Validity:
    """Return when all certificates in pem are valid. Errors: ConfigError for bytes without a certificate."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError("expected a certificate in PEM form, -----BEGIN CERTIFICATE-----") from error
    begins = max(one.not_valid_before_utc for one in found)
    return Validity(begins, min(one.not_valid_after_utc for one in found))


def check_certificate(pem: bytes, now: datetime | None = None) -> None:
    """Raise ConfigError for a certificate that is not valid yet, has expired, or expires within a day."""
    now = now or datetime.now(UTC)
    valid = validity(pem)
    if now < valid.begins:
        raise ConfigError(f"the certificate is valid from {valid.begins:%Y-%m-%d %H:%M} UTC only; check the clock")
    if valid.left(now) < TODAY:
        word = "expired" if valid.ends <= now else "expires"
        raise ConfigError(f"the certificate {word} {valid.ends:%Y-%m-%d %H:%M} UTC; put a new one in its place")


def warn_of_expiry(pem: bytes, name: str, now: datetime | None = None) -> str | None:
    """Warn of a certificate with 14 days or fewer: log a sentence and return it; None while it has more.

    name: what the message calls the certificate.
    """
    left = validity(pem).left(now)
    if left > WARNING:
        return None
    said = (
        f"the certificate {name} expires in {left / TODAY:.1f} days; put a new one in its place"
        if left > timedelta(0)
        else f"the certificate {name} has expired; put a new one in its place"
    )
    log.warning(said)
    return said
