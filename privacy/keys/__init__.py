"""Key files, rosters, and what a kit holds: all that says who somebody is, and what opens what."""

from .files import (
    AES256,
    ED25519,
    HYBRID,
    KINDS,
    X25519,
    KeyFile,
    PublicKey,
    day,
    is_private,
    load_public,
    read_private,
)

__all__ = [
    "AES256",
    "ED25519",
    "HYBRID",
    "KINDS",
    "X25519",
    "KeyFile",
    "PublicKey",
    "day",
    "is_private",
    "load_public",
    "read_private",
]
