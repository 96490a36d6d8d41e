"""A SuperLink that asks for the operator's token.

Flower's open SuperLink takes every call of its Control API for its owner's: whoever reaches the port starts runs, which
are code, and registers nodes. Here a call carries a bearer token; the SuperLink knows the SHA-256 of those it takes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from typing import Any

from ....core.errors import ConfigError
from ..compat import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, AccountInfo, ControlAuthnPlugin

TOKENS_VARIABLE = "UMBEL_CONTROL_TOKENS"  # SHA-256 of each token that is taken, hex, separated by commas


class TokenAuthenticator(ControlAuthnPlugin):
    """An authenticator of calls that carry one of the tokens whose SHA-256 it was given, compared in constant time.

    Errors: ConfigError without any: a SuperLink that takes nobody's calls is of no use, and one that takes everybody's
    is not to be had.
    """

    def __init__(self, hashes: Sequence[str] | None = None):
        found = os.environ.get(TOKENS_VARIABLE, "").split(",") if hashes is None else hashes
        if not found or not all(re.fullmatch("[0-9a-f]{64}", one) for one in found):
            raise ConfigError(f"expected {TOKENS_VARIABLE} to hold the SHA-256 of each token, hex, separated by commas")
        self._hashes = tuple(found)

    def __repr__(self) -> str:
        return f"TokenAuthenticator({len(self._hashes)} tokens)"

    def validate_tokens_in_metadata(self, metadata: Any) -> tuple[bool, AccountInfo | None]:
        """Return whether a call's token is known, and the account: Flower's only one; its federations know no other."""
        token = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        if not self.lets_in(token if isinstance(token, bytes) else token.encode()):
            return False, None
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)

    def lets_in(self, token: bytes) -> bool:
        """Return whether this is one of the tokens."""
        digest = hashlib.sha256(token).hexdigest()
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        return any(matches)

    def get_login_details(self) -> None:
        """Return None: there is no logging in, since tokens are handed out with kits."""

    def get_auth_tokens(self, device_code: str) -> None:
        """Return None: see `get_login_details`."""

    def refresh_tokens(self, metadata: Any) -> tuple[None, None]:
        """Return no tokens: they do not expire, and a new kit brings a new one."""
        return None, None
