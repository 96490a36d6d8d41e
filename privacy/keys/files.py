"""Key files: one key each, as a JSON Web Key, readable by its owner alone.

    {"kty": "OKP", "crv": "Ed25519", "kid": …, "kind": "node", "owner": …, "iat": …, "exp": …, "x": …, "d": …}

JWK is RFC 7517; Ed25519 and X25519 in it RFC 8037; a public key's id is its thumbprint, RFC 7638. A file is created
with mode 0600, never over another, and refused when anyone but its owner (or root) may read or change it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ...core.errors import ConfigError
from ...core.validation import require, suggest

ED25519, X25519, HYBRID, AES256 = "Ed25519", "X25519", "MLKEM768-X25519", "A256GCM"
# Algorithms that each kind of key may have; the first is the usual one.
KINDS: Mapping[str, tuple[str, ...]] = {
    "node": (ED25519,),  # signs a node's updates and its part of secure aggregation
    "operator": (ED25519,),  # signs rosters and model versions
    "recipient": (X25519, HYBRID),  # opens envelopes; the second also withstands a quantum computer
    "storage": (AES256,),  # wraps the keys of what a store holds
}
PUBLIC_BYTES = {ED25519: 32, X25519: 32, HYBRID: 1184 + 32}
SECRET_BYTES = {ED25519: 32, X25519: 32, HYBRID: 64 + 32, AES256: 32}  # the hybrid's: ML-KEM's seed, then X25519's
MAX_FILE_BYTES = 1 << 16
DAY_SECONDS = 86400


@dataclass(frozen=True)
class PublicKey:
    """A public key. Errors: ConfigError for a wrong length."""

    algorithm: str  # ED25519, X25519 or HYBRID
    raw: bytes

    def __post_init__(self) -> None:
        expected = PUBLIC_BYTES[self.algorithm]
        if len(self.raw) != expected:
            raise ConfigError(f"expected an {self.algorithm} public key of {expected} bytes, got {len(self.raw)}")

    def members(self) -> dict[str, str]:
        """Return the members of a JWK that its thumbprint covers."""
        if self.algorithm == HYBRID:
            return {"alg": HYBRID, "kty": "AKP", "pub": encode(self.raw)}
        return {"crv": self.algorithm, "kty": "OKP", "x": encode(self.raw)}

    @property
    def id(self) -> str:
        """Thumbprint of the key, SHA-256: 43 characters."""
        canonical = json.dumps(self.members(), sort_keys=True, separators=(",", ":"))
        return encode(hashlib.sha256(canonical.encode()).digest())

    @property
    def text(self) -> str:
        """The key as `umbel keys show` prints it and a roster's file takes it: base64url."""
        return encode(self.raw)

    @cached_property
    def sealing(self) -> X25519PublicKey | hpke.MLKEM768X25519PublicKey:
        """The key that HPKE seals to. Errors: ConfigError for one that signs."""
        if self.algorithm == HYBRID:
            post_quantum = MLKEM768PublicKey.from_public_bytes(self.raw[:-32])
            return hpke.MLKEM768X25519PublicKey(post_quantum, X25519PublicKey.from_public_bytes(self.raw[-32:]))
        require(self.algorithm == X25519, f"an {self.algorithm} key signs; envelopes are sealed to a recipient's key")
        return X25519PublicKey.from_public_bytes(self.raw)


@dataclass(frozen=True)
class KeyFile:
    """A private or symmetric key with what its file says of it. Its repr holds no secret. Times: seconds since 1970."""

    kind: str
    algorithm: str
    created: int
    expires: int  # time from which the key is refused
    owner: str  # name of the owner, for people to read; may be empty
    secret: bytes = field(repr=False)

    @staticmethod
    def generate(kind: str, days: float, *, owner: str = "", algorithm: str | None = None) -> KeyFile:
        """Generate a fresh key that expires in so many days. Errors: ConfigError for an unknown kind or algorithm."""
        require(kind in KINDS, f"no kind of key {kind!r}; {suggest(kind, KINDS)}")
        chosen = algorithm or KINDS[kind][0]
        require(chosen in KINDS[kind], f"a {kind} key is {' or '.join(KINDS[kind])}, not {chosen!r}")
        require(0 < days <= 36500, f"expected days={days!r} > 0 and ≤ 36500")
        now = int(time.time())
        # Each of these private keys is any string of random bytes of its length.
        return KeyFile(kind, chosen, now, now + int(days * DAY_SECONDS), owner, os.urandom(SECRET_BYTES[chosen]))

    @cached_property
    def public(self) -> PublicKey:
        """The public half. Errors: ConfigError for a storage key, which has none."""
        if self.algorithm == ED25519:
            return PublicKey(ED25519, self.signing.public_key().public_bytes_raw())
        require(self.algorithm != AES256, "a storage key is symmetric: it has no public half")
        raw = X25519PrivateKey.from_private_bytes(self.secret[-32:]).public_key().public_bytes_raw()
        if self.algorithm == HYBRID:
            raw = MLKEM768PrivateKey.from_seed_bytes(self.secret[:-32]).public_key().public_bytes_raw() + raw
        return PublicKey(self.algorithm, raw)

    @property
    def id(self) -> str:
        """The public key's thumbprint; of a storage key, a MAC that reveals nothing of it."""
        if self.algorithm == AES256:
            return encode(hmac.digest(self.secret, b"umbel storage key id", "sha256")[:16])
        return self.public.id

    def check(self, kind: str, now: float | None = None) -> KeyFile:
        """Return the key itself. Errors: ConfigError when it is of another kind, or has expired."""
        require(
            self.kind == kind, f"key {self.id} is of kind {self.kind}; a key of kind {kind} is needed: umbel keys new"
        )
        if (time.time() if now is None else now) >= self.expires:
            raise ConfigError(f"key {self.id} expired on {day(self.expires)}; replace it: umbel keys rotate")
        return self

    @cached_property
    def signing(self) -> Ed25519PrivateKey:
        """The key as one that signs. Errors: ConfigError for one that does not."""
        require(self.algorithm == ED25519, f"an {self.algorithm} key does not sign; an Ed25519 key is needed")
        return Ed25519PrivateKey.from_private_bytes(self.secret)

    @cached_property
    def opening(self) -> X25519PrivateKey | hpke.MLKEM768X25519PrivateKey:
        """The key as one that opens what HPKE sealed. Errors: ConfigError for one that does not."""
        classical = X25519PrivateKey.from_private_bytes(self.secret[-32:])
        if self.algorithm == HYBRID:
            return hpke.MLKEM768X25519PrivateKey(MLKEM768PrivateKey.from_seed_bytes(self.secret[:-32]), classical)
        require(self.algorithm == X25519, f"a key of kind {self.kind} opens no envelopes; a recipient key does")
        return classical

    def public_jwk(self) -> dict[str, Any]:
        """Return the key as it may be shown: no secret is in it."""
        half = {} if self.algorithm == AES256 else self.public.members()
        facts = {"kid": self.id, "kind": self.kind, "owner": self.owner, "iat": self.created, "exp": self.expires}
        return half | facts

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the key file: mode 0600, on disk when this returns.

        replace: put it in the place of an older version of itself, at once. Errors: ConfigError when there is a file
        already (unless replace), or the folder cannot be written.
        """
        secret = {"kty": "oct", "k": encode(self.secret)} if self.algorithm == AES256 else self._private_members()
        text = json.dumps(self.public_jwk() | secret, indent=1, ensure_ascii=False) + "\n"
        path = Path(path)
        try:
            if replace:
                target = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
                _write_new(target, text.encode())
                target.replace(path)
            else:
                _write_new(path, text.encode())
            _sync_folder(path)
        except FileExistsError:
            raise ConfigError(f"key file {path} exists already, and keys are never overwritten; name another") from None
        except OSError as error:
            raise ConfigError(f"key file {path} cannot be written: {error.strerror}") from error

    def _private_members(self) -> dict[str, str]:
        return {"priv" if self.algorithm == HYBRID else "d": encode(self.secret)}

    @staticmethod
    def load(path: str | Path) -> KeyFile:
        """Read the key in a file, expired or not: see `check`.

        Errors: ConfigError when there is none, when others than its owner may read or change it, when it belongs to
        another user, and when it does not hold a key. No message holds anything of its content.
        """
        members = _parse(read_private(Path(path)), path)
        try:
            key = _from_members(members)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise ConfigError(f"key file {path} does not hold a private key that Umbel knows") from None
        if members.get("kid") != key.id or (key.algorithm != AES256 and members | key.public.members() != members):
            raise ConfigError(f"key file {path} contradicts itself: its id is not that of its key; restore it")
        return key


def is_private(path: str) -> bool:
    """Return whether this names a file that holds, or may hold, a private key: anything but a public JSON Web Key."""
    if not os.path.exists(path):
        return False
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            members = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(members, dict) or not {"x", "pub"} & set(members) or bool({"d", "priv"} & set(members))


def load_public(text: str, algorithm: str = ED25519) -> PublicKey:
    """Read a public key given as `umbel keys show` prints it, or as the name of a file of `umbel keys show --json`.

    Errors: ConfigError for what is neither.
    """
    if os.path.isfile(text):
        try:
            members = _parse(Path(text).read_bytes()[: MAX_FILE_BYTES + 1], text)
        except OSError as error:
            raise ConfigError(f"public key file {text} cannot be read: {error.strerror}") from error
        found = members.get("crv") or members.get("alg")
        require(found == algorithm, f"public key file {text} does not hold an {algorithm} key")
        text = str(members.get("x") or members.get("pub"))
    try:
        return PublicKey(algorithm, decode(text))
    except (ValueError, binascii.Error):
        raise ConfigError(
            f"{text!r} is neither a file nor an {algorithm} public key; umbel keys show prints one"
        ) from None


def encode(raw: bytes) -> str:
    """Encode bytes as base64url without padding, as in a JWK."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Invert `encode`. Errors: ValueError for anything that it never gives."""
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encode(raw) != text:
        raise ValueError("not canonical base64url")
    return raw


def day(seconds: int) -> str:
    """Write a time as a date and the hour, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _write_new(path: Path, content: bytes) -> None:
    """Create a file that only its owner may read, all of it on disk or none of it there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(path: Path) -> None:
    """Make the file's name last: a store is put under a new key only once that cannot be lost."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_private(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """Read the bytes of a file that only its owner may read, cut off one after `most`. Errors: ConfigError."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            facts = os.fstat(file.fileno())  # of what was opened: the name may be given to another file meanwhile
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigError(f"key file {path} is not a regular file")
            if facts.st_uid not in (os.geteuid(), 0):  # root can read every file as it is
                raise ConfigError(f"key file {path} belongs to user {facts.st_uid}; make it your own: chown")
            if mode := facts.st_mode & 0o077:
                raise ConfigError(
                    f"key file {path} is open to others than its owner (mode {facts.st_mode & 0o777:04o}, "
                    f"{mode:03o} too many); close it, chmod 600 {path}, and consider the key known to them"
                )
            content = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}; make one: umbel keys new") from error
    return content


def _without_waiting(path: str, flags: int) -> int:
    """Open what may be a pipe without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parse(content: bytes, path: str | Path) -> dict[str, Any]:
    try:
        members = json.loads(content) if len(content) <= MAX_FILE_BYTES else None
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise ConfigError(f"key file {path} is not a JSON Web Key; umbel keys new makes one")
    return members


def _from_members(members: Mapping[str, Any]) -> KeyFile:
    """Read a key from its JWK. Errors: KeyError, TypeError, ValueError."""
    kty = members["kty"]
    algorithm = {"OKP": members.get("crv"), "AKP": members.get("alg"), "oct": AES256}[kty]
    secret = decode(members[{"OKP": "d", "AKP": "priv", "oct": "k"}[kty]])
    kind, created, expires, owner = (members[name] for name in ("kind", "iat", "exp", "owner"))
    if algorithm not in KINDS[kind] or len(secret) != SECRET_BYTES[algorithm]:
        raise ValueError("kind, algorithm and length do not agree")
    if not (type(created) is type(expires) is int and isinstance(owner, str)):
        raise ValueError("times are integers and the owner is text")
    return KeyFile(kind, algorithm, created, expires, owner, secret)
