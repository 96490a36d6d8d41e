"""Files of a kit, as they are read, checked and written."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..core.errors import ConfigError
from ..core.validation import require, suggest
from ..privacy.keys.kit import KitFile


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


def check_secret(path: Path) -> None:
    """Check that a file holds a secret of 32 bytes, in hex. Errors: ConfigError."""
    if not re.fullmatch("[0-9a-f]{64}", read_text(path)):
        raise ConfigError(f"{path} does not hold 32 bytes in hex; restore the kit, or write new ones: see Rotation")


def check_token(path: Path) -> None:
    """Check that a file holds an operator's token. Errors: ConfigError."""
    if not re.fullmatch("[A-Za-z0-9_-]{32,}", read_text(path)):
        raise ConfigError(f"{path} does not hold a token; restore the kit, or give it another: umbel deploy token DIR")


def check_node_key(path: Path) -> None:
    """Check that a file holds a node's private key, as OpenSSH writes it. Errors: ConfigError."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} does not hold a private key in OpenSSH's format; restore the kit ({error})"
        ) from error
    is_known = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
    require(is_known, f"{path} does not hold a key of the curve P-384; restore the kit")


def write(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a new file with this mode from the start."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content.encode() if isinstance(content, str) else content)


def toml(values: Mapping[str, Any]) -> str:
    """Write a flat TOML table. JSON's strings, numbers and arrays of strings are TOML's."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def read_settings(folder: Path, party: str, fields: Mapping[str, type], **defaults: Any) -> dict[str, Any]:
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


def absolute_store(url: str, folder: Path) -> str:
    """Return a store's URL; a SQLite file's path, which is relative to the kit, is made absolute."""
    prefix, file = "sqlite:///", url.removeprefix("sqlite:///")
    if not url.startswith(prefix) or file.startswith("/"):
        return url
    return f"{prefix}{os.path.normpath(folder.resolve() / file)}"


def read_text(path: Path) -> str:
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


def public_node_key(path: Path) -> bytes:
    """Read a public node key from a file in OpenSSH's format, and return it as the SuperLink keeps it."""
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} does not hold a public key in OpenSSH's format: {error}") from error
    require(isinstance(key, ec.EllipticCurvePublicKey), f"{path} does not hold an elliptic-curve key")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
