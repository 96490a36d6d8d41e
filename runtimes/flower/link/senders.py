"""The sender of a request, as its headers prove it: before it is read, and as Flower proves it afterwards."""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Callable, Mapping
from typing import Any

from ..compat import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLEET_PATH,
    RUNTIME_PATH,
    SYSTEM_TIME_TOLERANCE,
    TASK_TOKEN_HEADER,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    bytes_to_public_key,
    now,
    verify_signature,
)

Headers = Mapping[str, str]


def anybody(path: str, headers: Headers) -> str:
    """Return the kind of a request in place of its sender, where everybody on this machine is let in unproved."""
    return next((kind for kind in (FLEET_PATH, RUNTIME_PATH) if path.startswith(kind)), "")


def senders(state: Callable[[], Any], lets_in: Callable[[bytes], bool]) -> Callable[[str, Headers], str | None]:
    """Make a function that says who a request's headers prove, as Flower proves it.

    state: gives the SuperLink's state, when it is there. lets_in: whether a bearer token is the operator's.
    """

    def who(path: str, headers: Headers) -> str | None:
        if path.startswith(FLEET_PATH):
            key = proven_key(headers)
            return None if key is None or state().get_node_id_by_public_key(key) is None else key.hex()
        if path.startswith(RUNTIME_PATH):
            token = headers.get(TASK_TOKEN_HEADER)
            return token if token and state().get_task_by_token(token) is not None else None
        token = headers.get("authorization", "").removeprefix("Bearer ")
        return "the operator" if lets_in(token.encode()) else None

    return who


def proven_key(headers: Headers) -> bytes | None:
    """Return the public key whose holder signed a request's time, if that is about now; None for no such proof."""
    try:
        key = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        moment = headers[TIMESTAMP_HEADER]
        age = (now() - datetime.datetime.fromisoformat(moment)).total_seconds()
        is_recent = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        is_signed = verify_signature(bytes_to_public_key(key), moment.encode("ascii"), signature)
    except (KeyError, ValueError, TypeError, UnicodeError, binascii.Error):
        return None
    return key if is_recent and is_signed else None
