"""A kit is the folder that holds all that one party needs, and nothing of another's.

    DIR/server         server.toml  server.crt  server.key  identity.jwk  runtime.secret  clients/  nginx.conf
    DIR/clients/NAME   client.toml  policy.toml  node.key  identity.jwk  storage.jwk  runtime.secret
    DIR/operator       operator.toml  ca.key  operator.jwk  control.token    (ca.new.key: see `authority`)
    each of them       ca.crt  roster.bin  server.bin  operator.pub

Each also has a folder `experiments` for files that runs may name, and `state` for what its processes write. Secrets
have mode 0600. Paths in a kit's configuration are relative to it: a kit can be moved. The server knows only the SHA-256
of the operator's token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..core.errors import ConfigError
from ..core.validation import require, require_count, suggest
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
    pem,
    private_pem,
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
        fields = _read(
            folder, "server", {"host": str, "public_port": int, "port": int, "store": str, "token_sha256": str}
        )
        require_private(folder, KitFile.CERTIFICATE_KEY, KitFile.IDENTITY, KitFile.RUNTIME_SECRET)
        check_dates(folder / KitFile.CERTIFICATE, RENEW)
        check_pair(folder / KitFile.CERTIFICATE, folder / KitFile.CERTIFICATE_KEY, f"copy both, or {RENEW}")
        require(Identity.load(folder).number is None, f"{folder}: identity.jwk is a client's; restore the server's")
        check_dates(folder / KitFile.AUTHORITY, NEW_AUTHORITY)
        require(bool(re.fullmatch("[0-9a-f]{64}", fields["token_sha256"])), f"{folder}: token_sha256 is not a SHA-256")
        return ServerKit(folder, **{**fields, "store": _absolute_store(fields["store"], folder)})

    @property
    def address(self) -> str:
        """Address that clients reach the server by, as host:port."""
        return joined(self.host, self.public_port)

    @property
    def node_keys(self) -> dict[str, bytes]:
        """Keys of the nodes that may connect: {client: public key, PEM}.

        Errors: ConfigError for a file that holds none.
        """
        return {path.stem: _public_node_key(path) for path in sorted((self.folder / "clients").glob("*.pub"))}


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
        fields = _read(folder, "client", {"name": str, "number": int, "clients": int, "server": str})
        require_private(folder, KitFile.NODE_KEY, KitFile.IDENTITY, KitFile.STORAGE, KitFile.RUNTIME_SECRET)
        host_and_port(fields["server"])
        check_dates(folder / KitFile.AUTHORITY, f"copy a new one into the kit; {NEW_AUTHORITY}")
        kit = ClientKit(folder, **fields)
        KeyFile.load(folder / KitFile.STORAGE).check("storage")
        require(
            Identity.load(folder).number == kit.number,
            f"client {kit.name!r} is not in the roster of {folder} under its key; ask the operator for a new kit",
        )
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

    @staticmethod
    def load(folder: Path) -> OperatorKit:
        """Load the kit in a folder.

        Errors: ConfigError for one that is incomplete or open to others, and for an address off loopback: the control
        API is reached from the server's host alone.
        """
        kinds = {"address": str, "store": str, "clients": list, "timeout_seconds": int}
        fields = _read(folder, "operator", kinds, timeout_seconds=ROUND_SECONDS)
        require_count("timeout_seconds", fields["timeout_seconds"])
        require_private(folder, KitFile.TOKEN)
        host, _ = host_and_port(fields["address"])
        require(
            is_loopback(host),
            f"expected address={fields['address']!r} on loopback: the control API is not published. Run this on the "
            "server's host, or through a tunnel: ssh -N -L 8443:127.0.0.1:8443 HOST",
        )
        store = _absolute_store(fields["store"], folder)
        return OperatorKit(folder, **{**fields, "store": store, "clients": tuple(map(str, fields["clients"]))})

    @staticmethod
    def find(folder: Path) -> OperatorKit:
        """Find the operator's kit that a folder is, or has inside, or beside it. Errors: those of `load`."""
        inside = [folder, folder / "operator", folder.resolve().parent / "operator"]
        return OperatorKit.load(next((one for one in inside if (one / KitFile.OPERATOR_SETTINGS).is_file()), folder))

    @property
    def token(self) -> str:
        """Secret that the control API asks for."""
        return _read_text(self.folder / KitFile.TOKEN)

    @property
    def authority(self) -> Path:
        """File of the federation's certificate authority."""
        return self.folder / KitFile.AUTHORITY


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
    _check_names(clients)
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


def require_private(folder: Path, *names: str) -> None:
    """Check that secret files are there, and their owner's alone.

    Errors: ConfigError for one that is missing, or that others than its owner may read or change.
    """
    for name in names:
        path = folder / name
        try:
            mode = path.stat().st_mode & 0o777
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; restore the kit") from error
        if mode & 0o077:
            raise ConfigError(f"{path} is open to others than its owner (mode {mode:04o}); close it: chmod 600 {path}")


def write(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a new file with this mode from the start."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content.encode() if isinstance(content, str) else content)


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
            self._client(number, identity, node_key, shared)
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

    def _client(
        self, number: int, identity: KeyFile, node_key: ec.EllipticCurvePrivateKey, shared: Mapping[str, bytes | str]
    ) -> None:
        name = self.clients[number]
        kit = self._kit(f"clients/{name}", shared)
        write(kit / KitFile.NODE_KEY, ssh_private(node_key), 0o600)
        identity.save(kit / KitFile.IDENTITY)
        KeyFile.generate("storage", 3650, owner=name).save(kit / KitFile.STORAGE)
        write(kit / KitFile.RUNTIME_SECRET, secrets.token_hex(32), 0o600)
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


def toml(values: Mapping[str, Any]) -> str:
    """Write a flat TOML table. JSON's strings, numbers and arrays of strings are TOML's."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def _check_names(clients: Sequence[str]) -> None:
    require(0 < len(clients) <= MOST_CLIENTS, f"expected 1 to {MOST_CLIENTS} clients, got {len(clients)}")
    seen: dict[str, str] = {}
    for name in clients:
        if not NAME.fullmatch(name):
            raise ConfigError(f"expected client {name!r} of at most 32 letters, digits, - and _, as in site-1")
        if name.lower() in seen:  # two folders that some disks would take for one
            raise ConfigError(f"clients {seen[name.lower()]!r} and {name!r} have the same name; each needs its own")
        seen[name.lower()] = name


def _read(folder: Path, party: str, fields: Mapping[str, type], **defaults: Any) -> dict[str, Any]:
    """Read the kit's configuration: these fields, of these types, and no others."""
    path = folder / KitFile(f"{party}.toml")
    if not path.is_file():
        others = [one for one in ("server", "client", "operator") if (folder / f"{one}.toml").is_file()]
        found = f"that is the kit of {others[0]}" if others else "make kits: umbel deploy init"
        raise ConfigError(f"{folder} is no kit of a{'n' if party == 'operator' else ''} {party}: {found}")
    try:
        found_fields = {**defaults, **tomllib.loads(path.read_text("utf-8"))}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for name in found_fields:
        require(name in fields, f"{path}: no setting {name!r}; {suggest(name, fields)}")
    for name, kind in fields.items():
        value = found_fields.get(name)
        require(type(value) is kind, f"{path}: expected {name}={value!r} of type {kind.__name__}")
    return found_fields


def _absolute_store(url: str, folder: Path) -> str:
    """Return a store's URL; a SQLite file's path, which is relative to the kit, is made absolute."""
    prefix, file = "sqlite:///", url.removeprefix("sqlite:///")
    if not url.startswith(prefix) or file.startswith("/"):
        return url
    return f"{prefix}{os.path.normpath(folder.resolve() / file)}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def ssh_private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a node's key as OpenSSH does, not encrypted."""
    kind, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, kind, plain)


def ssh_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write the public half of a node's key as OpenSSH does."""
    kind = serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, kind) + b"\n"


def _public_node_key(path: Path) -> bytes:
    """Read a public node key from a file in OpenSSH's format, and return it as the SuperLink keeps it."""
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} does not hold a public key in OpenSSH's format: {error}") from error
    require(isinstance(key, ec.EllipticCurvePublicKey), f"{path} does not hold an elliptic-curve key")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
