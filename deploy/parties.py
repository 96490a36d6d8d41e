"""Processes of the server and of a client, Flower's and ours, run from a kit in the foreground."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..clients.policy import POLICY_VARIABLE, Policy
from ..core.errors import ConfigError, UmbelError
from ..privacy.keys.kit import KitFile
from ..runtimes.flower.identity import KIT_VARIABLE
from ..runtimes.flower.link.tokens import TOKENS_VARIABLE
from ..runtimes.flower.processes import NOTHING_OF_OTHERS, environment
from ..runtimes.flower.secured import Operator
from ..runtimes.flower.server import STORE_VARIABLE
from . import certificates
from .clocks import BEHIND_SECONDS, WORTH_SAYING_SECONDS, clock_skew, complaint, described
from .kits import ClientKit, ServerKit
from .record import Record
from .supervisor import Say, Supervisor, only_one

START_SECONDS = 90.0  # time for the SuperLink to answer; it takes a second or two, and longer on a busy machine
CHECK_SECONDS = 3.0  # time for the SuperLink to answer a check of its health
DATA_VARIABLE = "UMBEL_CLIENT_DATA"
NOT_LET_IN = "does not let this node in"  # words that a node ends with
FLOWER = f"{__name__.partition('.')[0]}.runtimes.flower"


def run_server(folder: Path, stop: threading.Event, say: Say) -> None:
    """Run the server of a kit until stop is set: the SuperLink, and what runs the rounds.

    The store's audit log has that the server is up, and was stopped; who may connect, and no longer. The SuperLink
    listens on loopback: nginx.conf publishes what clients need of it. Nodes whose keys are in the kit's folder clients
    are registered, others are not, or no longer. Errors: ConfigError for a kit that cannot be used, a port that is
    taken, and a kit that runs already.
    """
    kit = ServerKit.load(folder.resolve())
    node_keys, record = kit.node_keys, Record(kit)
    state, token = kit.folder / "state", secrets.token_urlsafe(32)
    with only_one(state), Supervisor(say) as supervisor:
        require_free(kit.port)
        _warn_of_expiry(kit.folder, (KitFile.CERTIFICATE, KitFile.AUTHORITY), say)
        supervisor.start("superlink", _superlink(kit), _superlink_environment(kit, token), kit.folder / "experiments")
        with Operator(f"127.0.0.1:{kit.port}", kit.folder / KitFile.AUTHORITY, token) as operator:
            if not supervisor.wait_until(
                lambda: _answers(operator), stop, START_SECONDS, "the SuperLink does not answer"
            ):
                return
            record.note([*register(operator, node_keys, say), ("deploy.up", kit.address)])
            operator.end_orphans()
            for line in [*record.settle(), *record.erase()]:
                say(line)
        executor = {STORE_VARIABLE: kit.store, TOKENS_VARIABLE: "", KIT_VARIABLE: str(kit.folder)}
        supervisor.start(
            "superexec", _superexec(kit), environment(_flower_home(state), executor), kit.folder / "experiments"
        )
        say(f"the server listens on 127.0.0.1:{kit.port}; {len(node_keys)} clients may connect")
        supervisor.watch(stop)
    record.note([("deploy.stopped", kit.address)])


def run_client(
    folder: Path, data: str | None, address: str | None, stop: threading.Event, say: Say, replicas: int = 1
) -> None:
    """Run a client of a kit until stop is set: one process, which is a node of the SuperLink, and trains.

    data: where its examples are, before what policy.toml says; its experiment finds it in UMBEL_CLIENT_DATA. address:
    host:port at which the server is reached, in place of the kit's. replicas: number of this host's devices among which
    the client's batches are divided. Errors: ConfigError for a kit that cannot be used,
    a kit that runs already, and a server that is not the federation's.
    """
    kit = ClientKit.load(folder.resolve())
    source = data or Policy.read(kit.folder / KitFile.POLICY).source
    host, port = certificates.host_and_port(address or kit.server)
    authority, state = kit.folder / KitFile.AUTHORITY, kit.folder / "state"
    with only_one(state), Supervisor(say) as supervisor:
        try:
            certificates.probe(host, port, authority)
        except OSError as error:  # not there yet; the node goes on trying
            say(f"the server at {host}:{port} cannot be reached: {error.strerror or error}; trying again")
        except ConfigError as error:
            _explain_by_clock(error, host, port, authority)
            raise
        _warn_of_clock(host, port, authority, say)
        _warn_of_expiry(kit.folder, (KitFile.AUTHORITY,), say)
        own = NOTHING_OF_OTHERS | {POLICY_VARIABLE: str(kit.folder / KitFile.POLICY), KIT_VARIABLE: str(kit.folder)}
        if source is not None:
            own[DATA_VARIABLE] = os.path.abspath(source) if os.path.exists(source) else source

        def why(lines: Sequence[str]) -> str | None:
            return _why_node_ended(lines, host, port, authority)

        words = [*_node(kit, certificates.joined(host, port)), "--replicas", str(replicas)]
        variables = environment(_flower_home(state), own)
        supervisor.start("node", words, variables, kit.folder / "experiments", why)
        say(f"client {kit.name} works for {certificates.joined(host, port)}")
        supervisor.watch(stop)


def superlink_check(kit: ServerKit) -> Callable[[], None]:
    """Make the check that the SuperLink of a kit answers; it has time to start. Errors of the check: UmbelError."""
    began = time.monotonic()

    def check() -> None:
        try:
            certificates.probe("127.0.0.1", kit.port, kit.folder / KitFile.AUTHORITY, CHECK_SECONDS)
        except (OSError, UmbelError) as error:
            if time.monotonic() - began > START_SECONDS:
                raise UmbelError(f"the SuperLink does not answer on port {kit.port}: {error}") from error

    return check


def register(operator: Operator, node_keys: Mapping[str, bytes], say: Say) -> list[tuple[str, str]]:
    """Let these nodes connect, and no others; return who was added and revoked, for the audit log."""
    known, changes = {node.public_key: node for node in operator.nodes()}, []
    for key, node in known.items():  # first: a client with a new key is the old one no longer
        if key not in node_keys.values():
            operator.unregister(node.node)
            say(f"client {node.name} may no longer connect: its key is not in the kit")
            changes.append(("client.revoked", node.name))
    for name, key in node_keys.items():
        if key not in known:
            _register(operator, name, key)
            changes.append(("client.added", name))
    return changes


def _register(operator: Operator, name: str, key: bytes) -> None:
    try:
        operator.register(name, key)
    except UmbelError as error:
        if "412" not in str(error):
            raise
        raise ConfigError(
            f"the key of {name} was revoked before, and is never taken again; give it another (umbel deploy rekey), or "
            "take its .pub out of KIT/clients"
        ) from error


def _superlink(kit: ServerKit) -> list[str]:
    files: dict[str, str] = {"--certificate": KitFile.CERTIFICATE, "--key": KitFile.CERTIFICATE_KEY}
    files |= {"--secret": KitFile.RUNTIME_SECRET, "--database": "state/superlink.db"}
    options = [word for option, file in files.items() for word in (option, str(kit.folder / file))]
    return [*_python("link"), "--port", str(kit.port), *options]


def _superlink_environment(kit: ServerKit, token: str) -> dict[str, str]:
    """Return the environment of the SuperLink's process.

    token: this server's own, for as long as it runs, to register nodes with.
    """
    hashes = f"{kit.token_sha256},{hashlib.sha256(token.encode()).hexdigest()}"
    own = NOTHING_OF_OTHERS | {TOKENS_VARIABLE: hashes}
    return environment(_flower_home(kit.folder / "state"), own)


def _superexec(kit: ServerKit) -> list[str]:
    files: dict[str, str] = {"--authority": KitFile.AUTHORITY, "--secret": KitFile.RUNTIME_SECRET}
    options = [word for option, file in files.items() for word in (option, str(kit.folder / file))]
    return [*_python("link.executor"), f"127.0.0.1:{kit.port}", *options]


def _node(kit: ClientKit, server: str) -> list[str]:
    state = kit.folder / "state"
    options = {
        "--client": str(kit.number),
        "--clients": str(kit.clients),
        "--home": str(kit.memory),
        "--state": str(_flower_home(state)),
        "--authority": str(kit.folder / KitFile.AUTHORITY),
        "--key": str(kit.folder / KitFile.NODE_KEY),
    }
    return [*_python("node"), server, *(word for option in options.items() for word in option)]


def _python(module: str, *first: str) -> list[str]:
    """Return the command of a module of ours, which ends with this process.

    -P: a file in its folder takes no other module's place.
    """
    return [sys.executable, "-P", "-m", f"{FLOWER}.{module}", *first, str(os.getpid())]


def _flower_home(state: Path) -> Path:
    home = state / "flower"
    home.mkdir(exist_ok=True, mode=0o700)
    return home


def _answers(operator: Operator) -> bool:
    try:
        operator.nodes()
    except ConfigError:
        raise
    except UmbelError:
        return False
    return True


def require_free(port: int) -> None:
    """Raise ConfigError for a port of loopback that something listens on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used: {error.strerror}; end what listens there, or change port in server.toml"
            ) from error


def _warn_of_clock(host: str, port: int, authority: Path, say: Say) -> None:
    """Say how far this host's clock is from the server's, where that is more than messages take to travel."""
    skew = clock_skew(host, port, authority)
    if skew is not None and abs(skew) > WORTH_SAYING_SECONDS:
        say(f"warning: {complaint(skew, host) or described(skew, host)}")


def _explain_by_clock(error: ConfigError, host: str, port: int, authority: Path) -> None:
    """Raise the error again with how far this host's clock is from the server's, where that may be why."""
    skew = clock_skew(host, port, authority)
    if skew is not None and abs(skew) > BEHIND_SECONDS:
        raise ConfigError(f"{error}; {described(skew, host)}") from error


def _warn_of_expiry(folder: Path, names: Sequence[str], say: Say) -> None:
    for name in names:
        days = certificates.days_left(folder / name)
        if days < certificates.WARNING_DAYS:
            remedy = "authority trust" if name == KitFile.AUTHORITY else "renew"
            say(f"warning: {name} expires in {days:.0f} days; on the operator's host: umbel deploy {remedy}")


def _why_node_ended(lines: Sequence[str], host: str, port: int, authority: Path) -> str | None:
    """Say why a client's process ended: it was not let in, or the server is not the federation's any more."""
    try:
        if wrong := complaint(clock_skew(host, port, authority), host):
            return wrong
    except ConfigError as error:
        return str(error)
    if any(NOT_LET_IN in line for line in lines):
        return (
            "the server does not let this node in: it does not know its key (on its host, put node's .pub into "
            "KIT/clients and restart it), or another process that has this key is connected"
        )
    try:
        certificates.probe(host, port, authority)
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return f"the server at {host}:{port} cannot be reached: {error.strerror or error}"
    return None
