"""Refusals of what parties send, and what ends a secure aggregation.

Each abort carries a short reason code and, where it can be known, the culprit.

SecAggAbort            exit 3
├── MalformedMessage   bytes that are no message of this protocol
├── Misbehaviour       a well-formed message that an honest party would not have sent
└── BelowThreshold     too few clients are left; nothing was revealed
"""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import UmbelError

SERVER = "server"  # the culprit of what an honest server would not have sent or passed on


class SecAggAbort(UmbelError):
    """The session cannot go on. `reason` is a short code; `culprit` a node, SERVER, or None where it is not known."""

    exit_status = 3

    def __init__(self, reason: str, message: str, culprit: int | str | None = None):
        self.reason, self.culprit = reason, culprit
        who = "the server" if culprit == SERVER else f"client {culprit}"
        super().__init__(message if culprit is None else f"{message} (culprit: {who})")


class MalformedMessage(SecAggAbort):
    """The bytes are cut short, too long, of another version, or not in the one canonical form."""


class Misbehaviour(SecAggAbort):
    """A check of the protocol failed. `others`: more nodes than the culprit that spoil the session in the same way."""

    def __init__(self, reason: str, message: str, culprit: int | str | None = None, others: Sequence[int] = ()):
        super().__init__(reason, message, culprit)
        self.others = tuple(others)


class BelowThreshold(SecAggAbort):
    """Too few clients are left to unmask the sum. The session is abandoned."""

    def __init__(self, message: str):
        super().__init__("below_threshold", message)
