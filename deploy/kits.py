"""A kit is the folder that holds all that one party needs, and nothing of another's.

    DIR/server         server.toml  server.crt  server.key  identity.jwk  runtime.secret  clients/  nginx.conf
    DIR/clients/NAME   client.toml  policy.toml  node.key  identity.jwk  storage.jwk
    DIR/operator       operator.toml  ca.key  operator.jwk  control.token    (ca.new.key: see `authority`)
    each of them       ca.crt  roster.bin  server.bin  operator.pub

Each also has a folder `experiments` for files that runs may name, and `state` for what its processes write. Secrets
have mode 0600. Paths in a kit's configuration are relative to it: a kit can be moved. The server knows only the SHA-256
of the operator's token.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ..clients.policy import Policy
from ..core.errors import ConfigError
from ..core.validation import require, require_count
from ..privacy.keys import KeyFile
from ..privacy.keys.identities import RECIPIENT, SERVER, Identity
from ..privacy.keys.kit import KitFile
from ..privacy.keys.roster import Member, Roster
from . import texts
from .certificates import (
    Authority,
    check_dates,
    check_pair,
    host_and_port,
    is_loopback,
    joined,
    load_all,
    pem,
    private_pem,
)
from .kit_files import (
    absolute_store,
    check_node_key,
    check_secret,
    check_token,
    public_node_key,
    read_settings,
    read_text,
    require_private,
    ssh_private,
    ssh_public,
    toml,
    write,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
MOST_CLIENTS = 10_000
ROUND_SECONDS = 600  # time for which a round waits for its clients
PUBLIC_PORT, LOCAL_PORT = 443, 8443
RENEW = "on the operator's host: umbel deploy renew"
NEW_AUTHORITY = "on the operator's host: umbel deploy authority trust"
STORE = "sqlite:///state/umbel.db"


@dataclass(frozen=True)
class ServerKit:
    """Kit that the server is started from."""

    folder: Path
    host: str  # name or address that clients reach it by
    public_port: int  # port of the reverse proxy; of the SuperLink itself where host is this machine
    port: int  # port of the SuperLink, on loopback
    store: str  # URL of the store
    token_sha256: str  # hash of the operator's token, hex

    @staticmethod
    def load(folder: Path) -> ServerKit:
        """Load the kit in a folder. Errors: ConfigError for one that is incomplete, open to others, or expired."""
        fields = read_settings(
            folder, "server", {"host": str, "public_port": int, "port": int, "store": str, "token_sha256": str}
        )
        require_private(folder, KitFile.CERTIFICATE_KEY, KitFile.IDENTITY, KitFile.RUNTIME_SECRET)
        check_dates(folder / KitFile.CERTIFICATE, RENEW)
        check_pair(folder / KitFile.CERTIFICATE, folder / KitFile.CERTIFICATE_KEY, f"copy both, or {RENEW}")
        require(Identity.load(folder).number is None, f"{folder}: identity.jwk is a client's; restore the server's")
        check_dates(folder / KitFile.AUTHORITY, NEW_AUTHORITY)
        require(bool(re.fullmatch("[0-9a-f]{64}", fields["token_sha256"])), f"{folder}: token_sha256 is not a SHA-256")
        check_secret(folder / KitFile.RUNTIME_SECRET)
        kit = ServerKit(folder, **{**fields, "store": absolute_store(fields["store"], folder)})
        for name in kit.node_keys:
            if Identity.load(folder).client_of(name) is None:
                raise ConfigError(f"{folder}/clients/{name}.pub is of nobody in the roster; take it out of the folder")
        return kit

    @property
    def address(self) -> str:
        """Address that clients reach the server by, as host:port."""
        return joined(self.host, self.public_port)

    @property
    def node_keys(self) -> dict[str, bytes]:
        """Keys of the nodes that may connect: {client: public key, PEM}.

        Errors: ConfigError for a file that holds none.
        """
        return {path.stem: public_node_key(path) for path in sorted((self.folder / "clients").glob("*.pub"))}


@dataclass(frozen=True)
class ClientKit:
    """Kit that a client is started from."""

    folder: Path
    name: str
    number: int  # number of this client, from 0: its place in the population and in the roster
    clients: int  # number of clients in the federation
    server: str  # address of the server, host:port

    @staticmethod
    def load(folder: Path) -> ClientKit:
        """Load the kit in a folder.

        Errors: ConfigError for one that is incomplete, open to others, or whose roster is not the operator's.
        """
        fields = read_settings(folder, "client", {"name": str, "number": int, "clients": int, "server": str})
        require_private(folder, KitFile.NODE_KEY, KitFile.IDENTITY, KitFile.STORAGE)
        host_and_port(fields["server"])
        check_dates(folder / KitFile.AUTHORITY, f"copy a new one into the kit; {NEW_AUTHORITY}")
        kit = ClientKit(folder, **fields)
        KeyFile.load(folder / KitFile.STORAGE).check("storage")
        identity = Identity.load(folder)
        require(
            identity.number == kit.number and identity.members[kit.number] == kit.name,
            f"client {kit.name!r} is not in the roster of {folder} under its key; ask the operator for a new kit",
        )
        require(
            kit.number < kit.clients,
            f"{folder / KitFile.CLIENT_SETTINGS}: expected number={kit.number} < clients={kit.clients}",
        )
        check_node_key(folder / KitFile.NODE_KEY)
        check_policy(folder / KitFile.POLICY)
        return kit

    @property
    def memory(self) -> Path:
        """Folder of what the client keeps between rounds, its account of what it released included."""
        return self.folder / "state" / "memory"

    def roster(self) -> Roster:
        """Return who takes part, as the pinned operator signed it. Errors: ConfigError when another did."""
        return Identity.load(self.folder).clients


@dataclass(frozen=True)
class OperatorKit:
    """Kit that runs are submitted with."""

    folder: Path
    address: str  # host:port of the SuperLink, on loopback: on its host, or at the end of a tunnel
    store: str  # URL of the server's store, as it is reached from here
    clients: tuple[str, ...]  # names of the clients, by number
    timeout_seconds: int = ROUND_SECONDS  # deadline of a round
    quorum: int = 1  # fewest clients that have to be connected for a round to begin
    removed: tuple[str, ...] = ()  # those of `clients` that left for good: their numbers stay theirs

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the clients that are still there, by number."""
        return tuple(name for name in self.clients if name not in self.removed)

    @staticmethod
    def load(folder: Path) -> OperatorKit:
        """Load the kit in a folder.

        Errors: ConfigError for one that is incomplete or open to others, and for an address off loopback: the control
        API is reached from the server's host alone.
        """
        kinds = {"address": str, "store": str, "clients": list, "timeout_seconds": int, "quorum": int, "removed": list}
        fields = read_settings(folder, "operator", kinds, timeout_seconds=ROUND_SECONDS, quorum=1, removed=[])
        fields["clients"], fields["removed"] = (tuple(map(str, fields[name])) for name in ("clients", "removed"))
        for name in ("timeout_seconds", "quorum"):
            require_count(name, fields[name])
        members = len(fields["clients"]) - len(fields["removed"])
        require(
            fields["quorum"] <= members,
            f"{folder / KitFile.OPERATOR_SETTINGS}: expected quorum={fields['quorum']} ≤ {members} clients",
        )
        require_private(folder, KitFile.TOKEN)
        check_token(folder / KitFile.TOKEN)
        load_all(folder / KitFile.AUTHORITY)
        host, _ = host_and_port(fields["address"])
        require(
            is_loopback(host),
            f"expected address={fields['address']!r} on loopback: the control API is not published. Run this on the "
            "server's host, or through a tunnel: ssh -N -L 8443:127.0.0.1:8443 HOST",
        )
        store = absolute_store(fields["store"], folder)
        return OperatorKit(folder, **{**fields, "store": store})

    @staticmethod
    def find(folder: Path) -> OperatorKit:
        """Find the operator's kit that a folder is, or has inside, or beside it. Errors: those of `load`."""
        inside = [folder, folder / "operator", folder.resolve().parent / "operator"]
        return OperatorKit.load(next((one for one in inside if (one / KitFile.OPERATOR_SETTINGS).is_file()), folder))

    @property
    def token(self) -> str:
        """Secret that the control API asks for."""
        return read_text(self.folder / KitFile.TOKEN)

    @property
    def authority(self) -> Path:
        """File of the federation's certificate authority."""
        return self.folder / KitFile.AUTHORITY


def check_policy(path: Path) -> None:
    """Check that a policy reads, and says something: an empty file would agree to everything. Errors: ConfigError."""
    Policy.read(path)
    if not tomllib.loads(path.read_text("utf-8")):
        raise ConfigError(f"{path} has no setting, which agrees to everything; restore the kit, or say so in it")


def make(
    folder: Path,
    host: str,
    public_port: int | None,
    clients: Sequence[str],
    port: int = LOCAL_PORT,
    seal: bool = False,
) -> None:
    """Write a kit for the server, for each client, and for the operator.

    host: what clients reach the server by. public_port: the reverse proxy's; None: 443, or port where host is this
    machine, which needs no proxy. seal: clients seal what they send to a key that only the server's rounds hold.
    Errors: ConfigError for a folder that is not empty, and for names or hosts that are odd or given twice. Nothing is
    left behind then.
    """
    check_names(clients)
    public_port = public_port or (port if is_loopback(host) else PUBLIC_PORT)
    require(0 < port < 65536, f"expected port={port} from 1 to 65535")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder, and kits are never overwritten; name another")
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        unfinished.mkdir(parents=True, mode=0o700)
        _Maker(unfinished, host, public_port, port, tuple(clients), seal).make()
        os.rename(unfinished, folder)
    except OSError as error:
        raise ConfigError(f"kits cannot be written to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make_client(
    folder: Path, clients: Sequence[str], number: int, identity: KeyFile, node_key: ec.EllipticCurvePrivateKey
) -> Path:
    """Write the kit of one more client into a folder of kits; return it.

    clients: names by number, its own among them. What an interrupted call left is replaced. Errors: ConfigError for a
    folder that is something else.
    """
    server, kit = ServerKit.load(folder / "server"), folder / "clients" / clients[number]
    if kit.exists() and (kit / "state" / "lock").exists():
        raise ConfigError(f"{kit} is the kit of a client that ran; move it away, or give the new one another name")
    unfinished = folder / f".{kit.name}.{secrets.token_hex(4)}"
    names = (KitFile.AUTHORITY, KitFile.ROSTER, KitFile.SERVER_ROSTER, KitFile.OPERATOR)
    shared: dict[str, bytes | str] = {file: (folder / "operator" / file).read_bytes() for file in names}
    try:
        maker = _Maker(unfinished, server.host, server.public_port, server.port, tuple(clients), False)
        maker.client(number, identity, node_key, shared)
        shutil.rmtree(kit, ignore_errors=True)
        os.rename(unfinished / "clients" / kit.name, kit)
    except OSError as error:
        raise ConfigError(f"{kit} cannot be written: {error.strerror}; mend that, and repeat the command") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return kit


@dataclass(frozen=True)
class _Maker:
    """Maker of the kits of one federation."""

    folder: Path
    host: str
    public_port: int
    port: int
    clients: tuple[str, ...]
    seal: bool

    def make(self) -> None:
        """Write all kits: the operator's key signs the roster, the authority the server's certificate."""
        authority = Authority.new(f"Umbel federation {self.host}")
        operator, token = KeyFile.generate("operator", 3650, owner="operator"), secrets.token_urlsafe(32)
        identities = [KeyFile.generate("node", 3650, owner=name) for name in self.clients]
        members = tuple(Member(i, key.public.raw, key.owner, key.expires) for i, key in enumerate(identities))
        own = {KitFile.IDENTITY: KeyFile.generate("node", 3650, owner=SERVER)}
        own |= {KitFile.RECIPIENT: KeyFile.generate("recipient", 3650, owner=RECIPIENT)} if self.seal else {}
        server = tuple(Member(i, key.public.raw, key.owner, key.expires) for i, key in enumerate(own.values()))
        shared: dict[str, bytes | str] = {
            KitFile.AUTHORITY: pem(authority.certificate),
            KitFile.ROSTER: Roster(members).signed(operator.signing),
            KitFile.SERVER_ROSTER: Roster(server).signed(operator.signing),
            KitFile.OPERATOR: operator.public.raw.hex() + "\n",
        }
        node_keys = [ec.generate_private_key(ec.SECP384R1()) for _ in self.clients]
        self._server(authority, token, shared, node_keys)
        for file, key in own.items():
            key.save(self.folder / "server" / file)
        for number, (identity, node_key) in enumerate(zip(identities, node_keys, strict=True)):
            self.client(number, identity, node_key, shared)
        self._operator(authority, operator, token, shared)

    def _server(
        self,
        authority: Authority,
        token: str,
        shared: Mapping[str, bytes | str],
        node_keys: Sequence[ec.EllipticCurvePrivateKey],
    ) -> None:
        kit = self._kit("server", shared)
        issued = authority.issue([self.host, "localhost", "127.0.0.1", "::1"])
        write(kit / KitFile.CERTIFICATE, issued.certificate)
        write(kit / KitFile.CERTIFICATE_KEY, issued.key, 0o600)
        write(kit / KitFile.RUNTIME_SECRET, secrets.token_hex(32), 0o600)
        values = {
            "host": self.host,
            "public_port": self.public_port,
            "port": self.port,
            "store": STORE,
            "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
        }
        write(kit / KitFile.SERVER_SETTINGS, texts.SERVER_TOML + toml(values))
        (kit / "clients").mkdir()
        for name, key in zip(self.clients, node_keys, strict=True):
            write(kit / "clients" / f"{name}.pub", ssh_public(key))
        write(kit / KitFile.PROXY, texts.nginx(self.host, self.public_port, self.port))
        self._ways_to_start(kit, "server")

    def client(
        self, number: int, identity: KeyFile, node_key: ec.EllipticCurvePrivateKey, shared: Mapping[str, bytes | str]
    ) -> None:
        """Write a client's kit. shared: the files that all kits have."""
        name = self.clients[number]
        kit = self._kit(f"clients/{name}", shared)
        write(kit / KitFile.NODE_KEY, ssh_private(node_key), 0o600)
        identity.save(kit / KitFile.IDENTITY)
        KeyFile.generate("storage", 3650, owner=name).save(kit / KitFile.STORAGE)
        server = joined(self.host, self.public_port)
        values = {"name": name, "number": number, "clients": len(self.clients), "server": server}
        write(kit / KitFile.CLIENT_SETTINGS, texts.CLIENT_TOML + toml(values))
        write(kit / KitFile.POLICY, texts.POLICY_TOML)
        self._ways_to_start(kit, "client")

    def _operator(self, authority: Authority, operator: KeyFile, token: str, shared: Mapping[str, bytes | str]) -> None:
        kit = self._kit("operator", shared)
        write(kit / KitFile.AUTHORITY_KEY, private_pem(authority.key), 0o600)
        operator.save(kit / KitFile.OPERATOR_KEY)
        write(kit / KitFile.TOKEN, token + "\n", 0o600)
        values = {
            "address": f"127.0.0.1:{self.port}",
            "store": "sqlite:///../server/state/umbel.db",
            "clients": list(self.clients),
            "timeout_seconds": ROUND_SECONDS,
        }
        write(kit / KitFile.OPERATOR_SETTINGS, texts.OPERATOR_TOML + toml(values))

    def _kit(self, name: str, shared: Mapping[str, bytes | str]) -> Path:
        kit = self.folder / name
        for folder in (kit, kit / "state", kit / "experiments"):
            folder.mkdir(parents=True, mode=0o700)
        for file, content in shared.items():
            write(kit / file, content)
        return kit

    def _ways_to_start(self, kit: Path, party: str) -> None:
        write(kit / "start.sh", texts.start_script(party), 0o755)
        write(kit / f"umbel-{party}.service", texts.systemd_unit(party))
        write(kit / "compose.yaml", texts.compose(party, self.public_port))


def check_names(clients: Sequence[str]) -> None:
    """Raise ConfigError for names of clients that are odd, or given twice."""
    require(0 < len(clients) <= MOST_CLIENTS, f"expected 1 to {MOST_CLIENTS} clients, got {len(clients)}")
    seen: dict[str, str] = {}
    for name in clients:
        if not NAME.fullmatch(name):
            raise ConfigError(f"expected client {name!r} of at most 32 letters, digits, - and _, as in site-1")
        if name.lower() in seen:  # two folders that some disks would take for one
            raise ConfigError(f"clients {seen[name.lower()]!r} and {name!r} have the same name; each needs its own")
        seen[name.lower()] = name
