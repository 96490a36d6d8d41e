"""`umbel deploy`, `umbel server`, `umbel client`: a federation on real hosts, or all of it on this one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, UmbelError
from ..privacy.keys.kit import KitFile
from .console import print_table, to_json

deploy = typer.Typer()
authority = typer.Typer()
deploy.add_typer(authority, name="authority")
server = typer.Typer()
client = typer.Typer()

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", show_default=False)]
KitArgument = Annotated[Path, typer.Argument(metavar="KIT", show_default=False)]
MonitorOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", envvar="UMBEL_MONITOR", help="Serve /metrics, /healthz and /readyz there."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def _help_of(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@deploy.callback(invoke_without_command=True)
def deploy_group(context: typer.Context) -> None:
    """Make the kits of a federation, run all of it on this machine, see who is connected.

    A kit is the folder that one party needs. Connections are encrypted, and nodes known by their keys, always.
    """
    _help_of(context)


@server.callback(invoke_without_command=True)
def server_group(context: typer.Context) -> None:
    """Run the server of a federation from its kit."""
    _help_of(context)


@client.callback(invoke_without_command=True)
def client_group(context: typer.Context) -> None:
    """Run a client of a federation from its kit."""
    _help_of(context)


@deploy.command()
def init(
    folder: FolderArgument,
    clients: Annotated[str, typer.Option(metavar="A,B,C", help="Names of the clients, separated by commas.")],
    host: Annotated[
        str,
        typer.Option("--server", metavar="HOST[:PORT]", help="Name or address by which clients reach the server."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(metavar="N", envvar="UMBEL_PORT", help="Port of the server's own process, on loopback."),
    ] = 8443,
    seal: Annotated[
        bool, typer.Option("--seal", help="Clients seal what they send to a key that only the rounds' process holds.")
    ] = False,
) -> None:
    """Write one kit per party: DIR/server, DIR/clients/NAME, DIR/operator. DIR must be new, or empty.

    A kit holds the party's keys and certificates, the signed roster, its settings, a start script, a systemd unit and a
    compose file. Hand each party its own, over a channel that you trust, and keep the operator's.
    """
    from ..deploy.certificates import host_and_port
    from ..deploy.kits import make

    has_port = host.count(":") == 1 or "]:" in host
    name, public_port = host_and_port(host, None if has_port else 443)
    names = [one.strip() for one in clients.split(",")]
    make(folder, name, public_port if has_port else None, names, port, seal)
    print(f"{folder}: kits of the server, of {len(names)} clients, and of the operator")


@authority.callback(invoke_without_command=True)
def authority_group(context: typer.Context) -> None:
    """Replace the certificate authority, while runs go on: trust the new one, switch to it, retire the old one.

    Each step changes files in the kits of DIR, names those that have to be copied to kits elsewhere, and says what
    comes next. Parties that run take them up by themselves. A step that was interrupted is repeated.
    """
    _help_of(context)


@authority.command("trust")
def trust_authority(folder: FolderArgument) -> None:
    """Make a new authority, which every kit in DIR trusts beside the old one."""
    from ..deploy.authority import trust

    _print_step(
        folder,
        trust(folder),
        "copy DIR/operator/ca.crt into every kit elsewhere, clients' and the server's; reload the server's nginx",
    )


@authority.command("switch")
def switch_authority(
    folder: FolderArgument,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="Do not ask the server what clients trust: it does not run, or cannot be asked."
        ),
    ] = False,
) -> None:
    """Give the server a certificate of the new authority. It is refused while a connected client does not trust it."""
    from ..deploy import federation
    from ..deploy.authority import switch
    from ..deploy.kits import OperatorKit

    kit = OperatorKit.load(folder / "operator")
    found = None if offline else federation.nodes(kit)
    if found is None and not offline:
        raise ConfigError(f"the server at {kit.address} does not answer, so what clients trust is not known; --offline")
    changed = switch(folder, {} if found is None else federation.trusts_of(kit))
    away = [node.name for node in found or [] if node.status != "online"]
    if away:
        print(f"not connected, and not asked: {', '.join(away)}; each needs ca.crt of operator in its kit")
    _print_step(folder, changed, "copy server.key and server.crt to the server's kit; reload its nginx")


@authority.command("retire")
def retire_authority(folder: FolderArgument) -> None:
    """Let every kit in DIR trust the new authority alone."""
    from ..deploy.authority import retire

    _print_step(
        folder,
        retire(folder),
        "copy DIR/operator/ca.crt into every kit elsewhere, clients' and the server's; reload the server's nginx",
    )


def _print_step(folder: Path, changed: Sequence[Path], elsewhere: str) -> None:
    """Print what changed, what to do for kits that are not in the folder, and what comes next."""
    from ..deploy.authority import NEXT, stage_of

    if not changed:
        print("this step is done already; nothing changed")
    print("".join(f"{path}\n" for path in changed) + elsewhere.replace("DIR", str(folder)))
    if following := NEXT[stage_of(folder / "operator")]:
        print(f"next, {following} {folder}")


@deploy.command()
def renew(folder: FolderArgument) -> None:
    """Give the server a new certificate. Copy server.key and server.crt to where it runs, and reload its nginx."""
    from ..deploy.authority import renew as renew_certificate
    from ..privacy.keys import day

    print(f"{folder / 'server' / KitFile.CERTIFICATE} expires on {day(int(renew_certificate(folder)))}")


@deploy.command()
def rekey(folder: FolderArgument, name: Annotated[str, typer.Argument(metavar="CLIENT", show_default=False)]) -> None:
    """Give a client new keys, which it signs with and connects by. Between runs: end all parties, and start them again.

    Prints the files that changed: copy each to the kit of the same name elsewhere. The old node key is never taken
    again.
    """
    from ..deploy.rotation import rekey as give_new_keys

    print("\n".join(map(str, give_new_keys(folder, name))))


@deploy.command()
def token(folder: FolderArgument) -> None:
    """Give the operator a new token. Between runs: copy server.toml to where the server runs, and restart it."""
    from ..deploy.rotation import retoken

    print("\n".join(map(str, retoken(folder))))


@deploy.command()
def remove(folder: FolderArgument, name: Annotated[str, typer.Argument(metavar="CLIENT", show_default=False)]) -> None:
    """Take a client that left for good out of the federation. The others' kits stay as they are, and so do numbers.

    Prints the files that changed: copy the server's to its kit elsewhere, and restart it there. A server that answers
    lets the client go at once; what the store holds of it is erased.
    """
    from ..deploy.membership import let_go
    from ..deploy.membership import remove as take_out

    print("\n".join(map(str, take_out(folder, name))))
    print("\n".join(let_go(folder, name)))


@deploy.command()
def add(folder: FolderArgument, name: Annotated[str, typer.Argument(metavar="CLIENT", show_default=False)]) -> None:
    """Make a kit for one more client. The others' kits stay as they are; runs that began go on without it.

    Prints the new kit, and the files that changed: copy the server's to its kit elsewhere, and restart it there. A
    server that answers lets the client in at once.
    """
    from ..deploy.membership import add as take_in
    from ..deploy.membership import let_in

    print("\n".join(map(str, take_in(folder, name))))
    print(let_in(folder, name))


@deploy.command()
def keys(folder: FolderArgument, experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT")]) -> None:
    """Give the kits in DIR what the experiment's aggregation needs besides: for homomorphic encryption, its keys.

    Prints the files that are new. Hand each to the party whose kit it is in; to nobody else those in clients.
    """
    from ..core.reading.loading import load_experiment
    from ..deploy.provision import provision

    found = provision(folder, load_experiment(experiment).secure_aggregation)
    print("\n".join(map(str, found)) or "these kits have all that it needs")


@deploy.command()
def up(folder: FolderArgument) -> None:
    """Run every party of DIR on this machine, in the background, and wait until all clients are connected."""
    from ..deploy import federation

    federation.up(folder, lambda text: print(text, file=sys.stderr, flush=True))
    print(f"all clients are connected; umbel run --runtime flower --federation {folder / 'operator'}")


@deploy.command()
def status(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show who is connected, what runs, and when certificates expire. DIR may be an operator's kit, too."""
    from ..deploy import federation

    found = federation.status(folder)
    if as_json:
        print(to_json(found))
        _require_server(found)
        return
    answers = "answers" if found["server"]["connected"] else "does not answer"
    print(f"server {found['server']['address']} {answers}")
    rows = [(one["name"], one["state"], one["since"][:19].replace("T", " "), _trust(one)) for one in found["clients"]]
    print_table(["client", "state", "since", "trusts"], rows)
    print_table(
        ["run", "status", "started"], [(str(one["run"]), one["status"], one["started"]) for one in found["runs"]]
    )
    for one in found["certificates"]:
        remedy = "authority trust" if Path(one["file"]).name == KitFile.AUTHORITY else "renew"
        warning = f" (soon: umbel deploy {remedy})" if one["days"] < 14 else ""
        print(f"{one['file']} {one['sha256'][:8]} expires in {one['days']:.0f} days{warning}")
    if found["authority"]["next"]:
        print(f"the authority is being replaced; next, {found['authority']['next']} {folder}")
    _require_server(found)


def _require_server(status: dict[str, Any]) -> None:
    """Raise UmbelError where the server does not answer: a script sees it by the status."""
    if not status["server"]["connected"]:
        raise UmbelError(
            f"the server at {status['server']['address']} does not answer; start it: umbel server start KIT"
        )


def _trust(client: dict[str, Any]) -> str:
    """Return the authorities that a client trusts, as their certificates begin in the list below."""
    return " ".join(one[:8] for one in client["trusts"] or [])


@deploy.command()
def stop(folder: FolderArgument) -> None:
    """End every party of DIR that runs on this machine."""
    from ..deploy import federation

    ended = federation.stop(folder)
    print(f"ended: {', '.join(ended)}" if ended else "nothing was running")


@server.command("start")
def start_server(
    kit: KitArgument,
    monitor: MonitorOption = None,
) -> None:
    """Run the server in the foreground, for a service manager. SIGTERM ends it within 30 seconds, with status 0."""
    from ..deploy.kits import ServerKit
    from ..deploy.parties import run_server, superlink_check
    from ..deploy.supervisor import stop_on_signals
    from ..server.monitoring.watching import monitored_party

    certificates, loaded = {"server": kit / KitFile.CERTIFICATE, "ca": kit / KitFile.AUTHORITY}, ServerKit.load(kit)
    alive = {"superlink": superlink_check(loaded)}
    with stop_on_signals() as stop_event, monitored_party(monitor, certificates, loaded.store, alive):
        run_server(kit, stop_event, _say)


@client.command("start")
def start_client(
    kit: KitArgument,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            envvar="UMBEL_CLIENT_DATA",
            help="Where this client's examples are. [dim]\\[default: as policy.toml says][/dim]",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Reach the server there, in place of the kit's address.")
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="UMBEL_CLIENT_REPLICAS",
            help="Divide each batch among so many of this host's devices, for clients too large for one.",
        ),
    ] = 1,
    monitor: MonitorOption = None,
) -> None:
    """Run a client in the foreground, for a service manager. SIGTERM ends it within 30 seconds, with status 0."""
    from ..deploy.parties import run_client
    from ..deploy.supervisor import stop_on_signals
    from ..server.monitoring.watching import monitored_party

    with stop_on_signals() as stop_event, monitored_party(monitor, {"ca": kit / KitFile.AUTHORITY}):
        run_client(kit, data or None, address, stop_event, _say, replicas)


@client.command()
def budget(
    kit: KitArgument,
    reset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Forget what was released for an experiment, or for all: --reset all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this client has released of its examples, by its own account, or reset it.

    The client refuses what would exceed policy.toml's max_rounds and max_epsilon, whatever runs a server names. Reset
    it where the examples are others than before, or where you agree to release as much again.
    """
    from ..clients.spending import SpendingFile, total
    from ..deploy.kits import ClientKit

    found = ClientKit.load(kit)
    account = SpendingFile.of(found.memory, found.number)
    if reset is not None:
        account.reset(None if reset == "all" else reset)
    spendings = {name: total(variants) for name, variants in account.read().items()}
    if as_json:
        print(to_json({name: {"replies": one.replies, "events": dict(one.events)} for name, one in spendings.items()}))
        return
    rows = [
        (name, str(one.replies), ", ".join(f"{count} × {event}" for event, count in one.events.items()) or "no noise")
        for name, one in spendings.items()
    ]
    print_table(["experiment", "replies", "releases"], rows)


@client.command()
def digest(experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", show_default=False)]) -> None:
    """Print the digest of an experiment as it is here, for the table experiments.digests of policy.toml."""
    from ..core.reading.loading import load_experiment

    print(load_experiment(experiment).digest)


def _say(text: Any) -> None:
    """Print a line on standard error, where a service manager keeps it; nothing once nobody reads it any more."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (BrokenPipeError, ValueError):
        return
