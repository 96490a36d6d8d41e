"""`umbel keys`: the keys of nodes, operators, recipients and stores, and the roster of who may take part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..core.errors import ConfigError
from ..core.validation import require
from .console import print_table, to_json
from .options import JsonOption

if TYPE_CHECKING:  # cryptography is imported by the commands, not for the list of them
    from ..privacy.keys import KeyFile

app = typer.Typer()
roster = typer.Typer()
app.add_typer(roster, name="roster")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]
DaysOption = Annotated[float, typer.Option(metavar="D", help="Days until it expires.")]


@app.callback(invoke_without_command=True)
def keys(context: typer.Context) -> None:
    """Make, show and replace keys; sign the roster of those who may take part.

    A key is a file that only its owner can read, and is refused when others can. What `show` prints holds no secret.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def new(
    file: FileArgument,
    kind: Annotated[
        Literal["node", "operator", "recipient", "storage"],
        typer.Option(
            help="node signs a node's updates; operator signs rosters and model versions; recipient opens envelopes; "
            "storage encrypts a store."
        ),
    ] = "node",
    owner: Annotated[str, typer.Option(metavar="NAME", help="Name of the owner, for people to read.")] = "",
    days: DaysOption = 365,
    post_quantum: Annotated[
        bool, typer.Option("--post-quantum", help="A recipient key of X25519 and ML-KEM-768 together.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key in a new FILE with mode 0600. A file that is there already is never overwritten."""
    from ..privacy.keys import HYBRID, KeyFile

    require(owner.isprintable() and len(owner) <= 100, f"expected owner={owner!r} to be printable, ≤ 100 characters")
    key = KeyFile.generate(kind, days, owner=owner, algorithm=HYBRID if post_quantum else None)
    key.save(file)
    show_key(key, as_json)


@app.command()
def show(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show a key's kind, id, public half and expiry, never the secret. With --json as a public JSON Web Key."""
    from ..privacy.keys import KeyFile

    show_key(KeyFile.load(file), as_json)


@app.command()
def rotate(
    file: FileArgument,
    new_file: Annotated[Path, typer.Argument(metavar="NEW", show_default=False)],
    days: DaysOption = 365,
    overlap_days: Annotated[
        float, typer.Option(metavar="D", help="Days for which the old key stays valid, if it is.")
    ] = 14,
    store: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A store to put under the new storage key, at once; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the key in FILE by a fresh one of its kind in NEW. The old one expires after the overlap.

    A storage key is replaced in its stores: each in one transaction, and its content is not encrypted anew. Keep the
    old file as long as backups of them. Interrupted, the same command goes on. After a node's key sign a new roster.
    """
    from ..privacy.keys import KeyFile

    old = KeyFile.load(file)
    is_storage = old.kind == "storage"
    require(0 <= overlap_days <= 3650, f"expected overlap_days={overlap_days!r} from 0 to 3650")
    require(is_storage or not store, f"--store is for a storage key, and {file} holds a {old.kind} key")
    require(bool(store) or not is_storage, "name the stores that are under this storage key: --store URL")
    if is_storage and new_file.exists():  # an earlier attempt; the store may be under it already
        key = KeyFile.load(new_file).check("storage")
        require(key.id != old.id, f"{new_file} holds the same key as {file}; name a new file")
    else:
        key = KeyFile.generate(old.kind, days, owner=old.owner, algorithm=old.algorithm)
        key.save(new_file)
    for url in store or []:
        rewrap(url, old, key)
    until = min(old.expires, int(time.time() + overlap_days * 86400))
    replace(old, expires=until).save(file, replace=True)
    show_key(key, as_json, {"replaces": old.id, "replaced_expires": until})


@roster.callback(invoke_without_command=True)
def roster_group(context: typer.Context) -> None:
    """Sign and verify the list of nodes that may take part, with their public keys."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@roster.command()
def sign(
    members: Annotated[Path, typer.Argument(metavar="MEMBERS", show_default=False)],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The operator's key.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The signed roster, a new file.")],
    as_json: JsonOption = False,
) -> None:
    """Sign a roster with the operator's key.

    MEMBERS is a .csv with the columns node, key, owner and expiry, or JSON with these fields: an array of objects, or
    an object per line. A key is what umbel keys show prints; an expiry is a date.
    """
    from ..privacy.keys import KeyFile
    from ..privacy.keys.members import read_members

    signed = read_members(members, time.time())
    authority = KeyFile.load(key).check("operator")
    try:
        with open(output, "xb") as file:
            file.write(signed.signed(authority.signing))
    except OSError as error:
        raise ConfigError(f"roster {output} cannot be written: {error.strerror}; name a new file") from error
    facts = {"members": len(signed.members), "digest": signed.digest.hex(), "operator": authority.public.text}
    show_facts(facts, as_json)


@roster.command()
def verify(
    file: FileArgument,
    operator: Annotated[
        str, typer.Option(metavar="KEY", help="The operator's public key, or a file of umbel keys show --json.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check that the operator signed a roster, and list its members."""
    from ..privacy.keys import day, load_public
    from ..privacy.keys.members import describe
    from ..privacy.keys.roster import Roster

    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"roster {file} cannot be read: {error.strerror}") from error
    rows = list(describe(Roster.open(content, load_public(operator).raw), time.time()))
    if as_json:
        for row in rows:
            print(to_json(row))
        return
    titles = ["node", "owner", "expiry", "state", "key"]
    cells = [{**row, "expiry": day(row["expiry"])} for row in rows]
    print_table(titles, [[str(row[title]) for title in titles] for row in cells])


def rewrap(url: str, old: KeyFile, new: KeyFile) -> None:
    """Put a store under another storage key."""
    from ..privacy.keys.vault import StorageVault
    from ..server.store import Store

    Store.rotate(url, StorageVault(old), StorageVault(new))


def show_key(key: KeyFile, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """Show what may be known of a key: a fact a line, or a public JSON Web Key."""
    from ..privacy.keys import day

    if as_json:
        print(to_json(key.public_jwk() | dict(more or {})))
        return
    facts = {"kind": key.kind, "owner": key.owner, "id": key.id}
    facts |= {} if key.kind == "storage" else {"key": key.public.text}
    facts |= {"created": day(key.created), "expires": day(key.expires) + ", expired" * (time.time() >= key.expires)}
    facts |= {name: day(value) if name.endswith("expires") else value for name, value in (more or {}).items()}
    show_facts({name.replace("_", " "): value for name, value in facts.items() if value}, as_json)


def show_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """Show a name and a value a line, or one JSON object."""
    if as_json:
        print(to_json(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
