"""Credentials of a party, in the folder of its kit: the signed roster, and a client's own key in it.

roster.bin     who takes part, as the operator signed it
operator.pub   the operator's public key, hex, pinned when the kit was made
identity.jwk   a client's own Ed25519 key
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...core.errors import ConfigError
from ...core.system import files
from .files import KeyFile
from .identities import open_roster, operator_key
from .kit import KitFile
from .roster import Member, Roster

DAYS = 3650  # number of days for which keys made here are valid


def roster_in(kit: Path) -> Roster:
    """Read who takes part. Errors: ConfigError for a kit without a roster, or one that its operator did not sign."""
    for name in (KitFile.ROSTER, KitFile.OPERATOR):
        if not (kit / name).is_file():
            raise ConfigError(
                f"{kit} has no {name}: secure sums are formed among members of a signed roster; make kits: "
                "umbel deploy init"
            )
    return open_roster(kit / KitFile.ROSTER, operator_key(kit))


def identity_in(kit: Path) -> KeyFile:
    """Read a client's own key.

    Errors: ConfigError where there is none, others can read it, or it has expired.
    """
    return KeyFile.load(kit / KitFile.IDENTITY).check("node")


def provision(server: Path, clients: Mapping[int, Path]) -> None:
    """Write identities and a roster into kits that have none; the operator's key is not kept.

    For a federation whose every party is set up from here. Errors: ConfigError for a folder that cannot be written, and
    for kits of which only some have them.
    """
    kits = [server, *clients.values()]
    found = [kit for kit in kits if (kit / KitFile.ROSTER).is_file()]
    if len(found) == len(kits):
        return
    if found:
        raise ConfigError(f"{found[0]} has a roster and others of its federation have none; make new kits")
    operator = KeyFile.generate("operator", DAYS)
    keys = {client: KeyFile.generate("node", DAYS, owner=f"client {client}") for client in sorted(clients)}
    members = tuple(Member(client, key.public.raw, key.owner, key.expires) for client, key in keys.items())
    roster, pinned = Roster(members).signed(operator.signing), operator.public.raw.hex() + "\n"
    for kit in kits:
        write_atomically(kit / KitFile.OPERATOR, pinned.encode())
    for client, kit in clients.items():
        keys[client].save(kit / KitFile.IDENTITY)
    for kit in kits:  # last: with it a kit is complete
        write_atomically(kit / KitFile.ROSTER, roster)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, and its folder where there is none. Errors: ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write_atomically(path, content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
