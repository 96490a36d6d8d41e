"""Clients that join a federation, and clients that leave it for good, without a change in the others' kits.

A client's number is its own for ever: it is what runs on record, and what clients keep on their disks, go by. What only
the server and the operator have to know is renewed: the roster, who may connect, the list of names. An interrupted
command is repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ..core.errors import ConfigError, StoreError
from ..core.validation import require, suggest
from ..privacy.keys import KeyFile
from ..privacy.keys.identities import open_roster, operator_key
from ..privacy.keys.kit import KitFile
from ..privacy.keys.roster import Member, Roster
from ..runtimes.flower.secured import Operator
from .authority import put
from .federation import nodes
from .kit_files import public_node_key, require_private, ssh_public
from .kits import OperatorKit, ServerKit, check_names, make_client
from .record import Record

KEY_DAYS = 3650


def remove(folder: Path, name: str) -> list[Path]:
    """Take a client that left for good out of the federation; return the files that changed.

    Errors: ConfigError for a client that is not there, for the last one, and without the operator's key.
    """
    kit, roster = _opened(folder)
    if name not in kit.clients:
        raise ConfigError(f"no client {name!r} in {kit.folder}; {suggest(name, kit.members)}")
    left = [member for member in kit.members if member != name]
    require(
        len(left) >= kit.quorum,
        f"without {name} {len(left)} clients are left, and {kit.folder / KitFile.OPERATOR_SETTINGS} asks for quorum = "
        f"{kit.quorum}; lower it, or add a client first",
    )
    key = folder / "server" / "clients" / f"{name}.pub"
    key.unlink(missing_ok=True)
    changed = [key, *_sign(folder, [one for one in roster.members if one.owner != name])]
    return [*changed, _write_names(kit, kit.clients, [one for one in kit.clients if one not in left])]


def add(folder: Path, name: str) -> list[Path]:
    """Make a kit for a new client, and let it in; return the new kit, and the files that changed.

    Errors: ConfigError for a name that is odd, or was given before, and without the operator's key.
    """
    kit, roster = _opened(folder)
    if name in kit.removed:
        raise ConfigError(f"{name} was client {kit.clients.index(name)}, and left; give it another name, as {name}-2")
    check_names([*kit.clients, name])
    identity, node_key = KeyFile.generate("node", KEY_DAYS, owner=name), ec.generate_private_key(ec.SECP384R1())
    own = Member(len(kit.clients), identity.public.raw, name, identity.expires)
    changed = _sign(folder, [*(one for one in roster.members if one.owner != name), own])
    path = make_client(folder, [*kit.clients, name], own.node, identity, node_key)
    key = folder / "server" / "clients" / f"{name}.pub"
    put(key, ssh_public(node_key))
    return [path, key, *changed, _write_names(kit, [*kit.clients, name], kit.removed)]


def let_go(folder: Path, name: str) -> list[str]:
    """Let a client that was removed connect no longer, and erase what the server's store keeps of it; say so, in lines.

    Where the server, or its store, is elsewhere: say what has to be done there.
    """
    operator = OperatorKit.load(folder / "operator")
    said = [_tell(operator, lambda control: _unregister(control, name), f"{name} may connect no longer")]
    try:
        return said + (Record(ServerKit.load(folder / "server")).erase() or [f"the store here keeps nothing of {name}"])
    except StoreError as error:
        return [*said, f"what the store keeps of {name} is erased when the server starts next ({error})"]


def let_in(folder: Path, name: str) -> str:
    """Let a client that was added connect, where the server answers; say so."""
    operator, key = OperatorKit.load(folder / "operator"), folder / "server" / "clients" / f"{name}.pub"
    return _tell(operator, lambda control: control.register(name, public_node_key(key)), f"{name} may connect")


def _tell(kit: OperatorKit, what: Callable[[Operator], None], done: str) -> str:
    """Do something at a server that answers; return what was done, or has to be."""
    if nodes(kit) is None:
        return f"the server at {kit.address} does not answer: {done} once it is started with these files"
    with Operator(kit.address, kit.authority, kit.token) as control:
        what(control)
    return f"{done}; runs that are being played go on as they began"


def _unregister(control: Operator, name: str) -> None:
    for node in control.nodes():
        if node.name == name:
            control.unregister(node.node)


def _opened(folder: Path) -> tuple[OperatorKit, Roster]:
    """Load the operator's kit and the roster of a folder of kits."""
    kit = OperatorKit.load(folder / "operator")
    require_private(kit.folder, KitFile.OPERATOR_KEY)
    ServerKit.load(folder / "server")
    return kit, open_roster(kit.folder / KitFile.ROSTER, operator_key(kit.folder))


def _sign(folder: Path, members: Sequence[Member]) -> list[Path]:
    """Sign a roster of these members, and put it into the kits of a folder; return the operator's and the server's."""
    key = KeyFile.load(folder / "operator" / KitFile.OPERATOR_KEY).check("operator")
    signed = Roster(tuple(members)).signed(key.signing)
    needed = [folder / party / KitFile.ROSTER for party in ("operator", "server")]
    for path in [*needed, *sorted(folder.glob(f"clients/*/{KitFile.ROSTER}"))]:
        put(path, signed)
    return needed


def _write_names(kit: OperatorKit, clients: Sequence[str], removed: Sequence[str]) -> Path:
    """Write the names of clients into the operator's settings, and leave the rest of them as it is."""
    path = kit.folder / KitFile.OPERATOR_SETTINGS
    text = path.read_text("utf-8")
    for name, values in (("clients", clients), ("removed", removed)):
        line = f"{name} = {json.dumps(list(values))}\n"
        place = re.search(rf"(?m)^{name} *= *\[[^\]]*\] *\n?", text)
        text = text[: place.start()] + line + text[place.end() :] if place else f"{text.rstrip()}\n{line}"
    put(path, text.encode())
    OperatorKit.load(kit.folder)
    return path
