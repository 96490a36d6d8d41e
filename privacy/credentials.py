"""What a party proves itself by, in the folder of its kit: the signed roster, and a client's own key in it.

roster.bin     who takes part, as the operator signed it
operator.pub   the operator's public key, hex, pinned when the kit was made
identity.jwk   a client's own Ed25519 key
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..core.errors import ConfigError
from .identities import open_roster, operator_key
from .keys import Key
from .secagg.roster import Member, Roster

ROSTER, OPERATOR, IDENTITY = "roster.bin", "operator.pub", "identity.jwk"
DAYS = 3650  # that what is provisioned here is valid


def roster_in(kit: Path) -> Roster:
    """Who takes part. Errors: ConfigError for a kit without a roster, or one that its pinned operator did not sign."""
    for name in (ROSTER, OPERATOR):
        if not (kit / name).is_file():
            raise ConfigError(
                f"{kit} has no {name}: secure sums are formed among members of a signed roster; make kits: "
                "umbel deploy init"
            )
    return open_roster(kit / ROSTER, operator_key(kit))


def identity_in(kit: Path) -> Key:
    """A client's own key. Errors: ConfigError where there is none, others can read it, or it has expired."""
    return Key.load(kit / IDENTITY).check("node")


def provision(server: Path, clients: Mapping[int, Path]) -> None:
    """Write identities and a roster into kits that have none; the operator's key is not kept.

    For a federation whose every party is set up from here. Errors: ConfigError for a folder that cannot be written, and
    for kits of which only some have them.
    """
    kits = [server, *clients.values()]
    found = [kit for kit in kits if (kit / ROSTER).is_file()]
    if len(found) == len(kits):
        return
    if found:
        raise ConfigError(f"{found[0]} has a roster and others of its federation have none; make new kits")
    operator = Key.generate("operator", DAYS)
    keys = {client: Key.generate("node", DAYS, owner=f"client {client}") for client in sorted(clients)}
    members = tuple(Member(client, key.public.raw, key.owner, key.expires) for client, key in keys.items())
    roster, pinned = Roster(members).signed(operator.signing), operator.public.raw.hex() + "\n"
    for kit in kits:
        write_atomically(kit / OPERATOR, pinned.encode())
    for client, kit in clients.items():
        keys[client].save(kit / IDENTITY)
    for kit in kits:  # last: with it a kit is complete
        write_atomically(kit / ROSTER, roster)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, there whole or not at all, on disk when this returns.

    Errors: ConfigError when the disk refuses.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
