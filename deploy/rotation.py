"""New keys and a new token in the kits of a folder, for parties that are stopped: between two runs, without overlap.

Whoever signs, every other party knows by the roster that it read when it started: all parties take up a new roster
together. Interrupted, either command is repeated; what it wrote before is replaced once more.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ..core.errors import ConfigError
from ..core.validation import suggest
from ..privacy.keys import KeyFile
from ..privacy.keys.identities import open_roster, operator_key
from ..privacy.keys.kit import KitFile
from ..privacy.keys.roster import Roster
from .authority import put
from .kit_files import require_private, ssh_private, ssh_public
from .kits import ServerKit

KEY_DAYS = 3650


def rekey(folder: Path, name: str) -> list[Path]:
    """Give a client new keys, to sign with and to connect by, and every kit a new roster; return the changed files.

    Errors: ConfigError for a client that is not in the roster, and without the operator's key or the client's kit.
    """
    operator, client = folder / "operator", folder / "clients" / name
    require_private(operator, KitFile.OPERATOR_KEY)
    signing = KeyFile.load(operator / KitFile.OPERATOR_KEY).check("operator").signing
    roster = open_roster(operator / KitFile.ROSTER, operator_key(operator))
    names = [member.owner for member in roster.members]
    if name not in names:
        raise ConfigError(f"no client {name!r} in {operator / KitFile.ROSTER}; {suggest(name, names)}")
    require_private(client, KitFile.IDENTITY, KitFile.NODE_KEY)
    key, node_key = KeyFile.generate("node", KEY_DAYS, owner=name), ec.generate_private_key(ec.SECP384R1())
    members = tuple(
        one._replace(key=key.public.raw, expires=key.expires) if one.owner == name else one for one in roster.members
    )
    key.save(client / KitFile.IDENTITY, replace=True)
    put(client / KitFile.NODE_KEY, ssh_private(node_key), 0o600)
    put(folder / "server" / "clients" / f"{name}.pub", ssh_public(node_key))
    changed = [client / KitFile.IDENTITY, client / KitFile.NODE_KEY, folder / "server" / "clients" / f"{name}.pub"]
    signed = Roster(members).signed(signing)
    for path in sorted(folder.glob(f"*/{KitFile.ROSTER}")) + sorted(folder.glob(f"clients/*/{KitFile.ROSTER}")):
        put(path, signed)
        changed.append(path)
    return changed


def retoken(folder: Path) -> list[Path]:
    """Give the operator a new token, and the server its hash; return the changed files.

    Errors: ConfigError.
    """
    operator, path = folder / "operator", folder / "server" / KitFile.SERVER_SETTINGS
    require_private(operator, KitFile.TOKEN)
    ServerKit.load(folder / "server")
    token = secrets.token_urlsafe(32)
    line = f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"'
    text, found = re.subn(r'(?m)^token_sha256 *= *"[0-9a-f]{64}"', line, path.read_text("utf-8"))
    if found != 1:
        raise ConfigError(f'{path} has no line token_sha256 = "…" of its own; restore the kit')
    put(path, text.encode())
    put(operator / KitFile.TOKEN, token.encode() + b"\n", 0o600)
    return [path, operator / KitFile.TOKEN]
