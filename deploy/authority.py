"""The server's certificate, and the authority that signs it, replaced while the federation runs.

    trust    a second authority is made, and every kit trusts both      operator/ca.new.key, two certificates in ca.crt
    switch   the server's certificate is one of the new authority's     ca.new.key takes the place of ca.key
    retire   every kit trusts the new authority alone                   one certificate in ca.crt

How far it is follows from the files of the operator's kit alone. Each file is put in its place whole; a step that was
interrupted is repeated, and one that is done already changes nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import NameOID

from ..core.errors import ConfigError
from ..privacy.keys.kit import KitFile
from .certificates import (
    Authority,
    check_pair,
    expiry,
    fingerprint,
    host_and_port,
    hosts_of,
    load,
    load_all,
    load_key,
    pem,
    private_pem,
    shake_hands,
)
from .kit_files import require_private, write
from .kits import OperatorKit, ServerKit

Stage = Literal["steady", "trusted", "switched"]
NEXT = {
    "steady": "",
    "trusted": "when every kit has the new ca.crt: umbel deploy authority switch",
    "switched": "when the server shows its new certificate: umbel deploy authority retire",
}


def renew(folder: Path) -> float:
    """Give the server in a folder of kits a new certificate, for the same hosts, of the same authority.

    Returns when it expires, in seconds since 1970.

    A server that runs takes it up. Interrupted between its two files, it is repeated.
    """
    operator, server = folder / "operator", folder / "server"
    require_private(operator, KitFile.AUTHORITY_KEY)
    _install(server, Authority.load(operator / KitFile.AUTHORITY, operator / KitFile.AUTHORITY_KEY))
    return expiry(server / KitFile.CERTIFICATE).timestamp()


def stage_of(operator: Path) -> Stage:
    """Return how far the authority of an operator's kit is on its way to the next.

    Errors: ConfigError for a kit without an authority.
    """
    if len(load_all(operator / KitFile.AUTHORITY)) == 1:
        return "steady"
    return "trusted" if (operator / KitFile.NEXT_AUTHORITY_KEY).exists() else "switched"


def trust(folder: Path) -> list[Path]:
    """Make the next authority, which every kit of a folder trusts beside the present one; return the changed files.

    The key of the present one may be lost. Errors: ConfigError while an authority before it is still trusted.
    """
    operator = folder / "operator"
    if stage_of(operator) == "switched":
        raise ConfigError("the authority before this one is still trusted; first: umbel deploy authority retire")
    bundle, path = load_all(operator / KitFile.AUTHORITY), operator / KitFile.NEXT_AUTHORITY_KEY
    name = str(bundle[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    if not path.exists():
        put(path, private_pem(Authority.new(name).key), 0o600)
    require_private(operator, KitFile.NEXT_AUTHORITY_KEY)
    key = load_key(path)
    if all(one.public_key() != key.public_key() for one in bundle):
        bundle.append(Authority.new(name, key=key).certificate)
    return _hand_out(folder, bundle)


def switch(folder: Path, trusts: Mapping[str, frozenset[str] | None]) -> list[Path]:
    """Give the server a certificate of the next authority, which signs from now on; return the changed files.

    trusts: {client: SHA-256 of the authorities that it trusts}, of clients that are connected; None for one that does
    not say. Errors: ConfigError before `trust`, for a kit of the folder that it has not reached, and for clients that
    would be locked out.
    """
    operator, server = folder / "operator", folder / "server"
    stage = stage_of(operator)
    if stage == "steady":
        raise ConfigError("there is no new authority that the kits trust; first: umbel deploy authority trust")
    if stage == "switched":
        return []
    require_private(operator, KitFile.NEXT_AUTHORITY_KEY)
    authority = Authority.load(operator / KitFile.AUTHORITY, operator / KitFile.NEXT_AUTHORITY_KEY)
    behind = [kit for kit in _kits(folder) if authority.certificate not in load_all(kit / KitFile.AUTHORITY)]
    if behind:
        raise ConfigError(f"{behind[0]} does not trust the new authority; repeat: umbel deploy authority trust")
    _refuse_lockout(trusts, fingerprint(authority.certificate), operator / KitFile.AUTHORITY)
    changed = []
    if not _is_installed(server, authority):
        _install(server, authority)
        changed = [server / KitFile.CERTIFICATE_KEY, server / KitFile.CERTIFICATE]
    (operator / KitFile.NEXT_AUTHORITY_KEY).replace(operator / KitFile.AUTHORITY_KEY)
    return [*changed, operator / KitFile.AUTHORITY_KEY]


def retire(folder: Path) -> list[Path]:
    """Let the kits of a folder trust the authority alone that signs now; return the changed files.

    Errors: ConfigError before `switch`, and for a server that can be reached and still shows an older certificate.
    """
    operator, server = folder / "operator", folder / "server"
    stage = stage_of(operator)
    if stage == "trusted":
        raise ConfigError("the server has a certificate of the old authority; first: umbel deploy authority switch")
    require_private(operator, KitFile.AUTHORITY_KEY)
    authority = Authority.load(operator / KitFile.AUTHORITY, operator / KitFile.AUTHORITY_KEY)
    if not _is_installed(server, authority):
        raise ConfigError(
            f"{server / KitFile.CERTIFICATE} is not of the authority that stays; first: umbel deploy renew"
        )
    if stage == "switched":
        _refuse_old_certificate(folder, authority)
    return _hand_out(folder, [authority.certificate])


def put(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put a file in the place of another, whole or not at all, whatever interrupts it."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        write(fresh, content, mode)
        descriptor = os.open(fresh, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; mend that, and repeat the command") from error


def _install(server: Path, authority: Authority) -> None:
    """Put a new certificate of an authority's, and its key, in place of those of a server's kit."""
    issued = authority.issue(hosts_of(server / KitFile.CERTIFICATE))
    put(server / KitFile.CERTIFICATE_KEY, issued.key, 0o600)
    put(server / KitFile.CERTIFICATE, issued.certificate)


def _is_installed(server: Path, authority: Authority) -> bool:
    """Return whether a server's kit has a certificate of an authority's, and its key."""
    try:
        check_pair(server / KitFile.CERTIFICATE, server / KitFile.CERTIFICATE_KEY, "")
    except ConfigError:
        return False
    return authority.issued(load(server / KitFile.CERTIFICATE))


def _kits(folder: Path) -> list[Path]:
    """List the kits of a folder, the operator's first; clients' that were handed out and removed are not there."""
    found = [folder / "operator", folder / "server", *sorted((folder / "clients").glob("*"))]
    return [kit for kit in found if (kit / KitFile.AUTHORITY).is_file()]


def _hand_out(folder: Path, bundle: list[x509.Certificate]) -> list[Path]:
    content = b"".join(map(pem, bundle))
    changed = [kit / KitFile.AUTHORITY for kit in _kits(folder) if (kit / KitFile.AUTHORITY).read_bytes() != content]
    for path in changed:
        put(path, content)
    return changed


def _refuse_lockout(trusts: Mapping[str, frozenset[str] | None], new: str, bundle: Path) -> None:
    for client, trusted in sorted(trusts.items()):
        if trusted is None:
            raise ConfigError(
                f"client {client} has not said what it trusts, and may be locked out; ask again in a minute, and if it "
                "stays so, install this version of Umbel there and start it again"
            )
        if new not in trusted:
            raise ConfigError(
                f"client {client} does not trust the new authority, and would be locked out; copy {bundle} into its kit"
            )


def _refuse_old_certificate(folder: Path, authority: Authority) -> None:
    context = ssl.create_default_context(cadata=pem(authority.certificate).decode())
    server = ServerKit.load(folder / "server").address
    for address in dict.fromkeys((OperatorKit.load(folder / "operator").address, server)):
        try:
            shake_hands(*host_and_port(address), context)
        except ConfigError as error:
            raise ConfigError(
                f"clients would be locked out: {error}; copy server.key and server.crt there, and reload nginx"
            ) from error
        except OSError:  # not reached from here, or not running
            continue
