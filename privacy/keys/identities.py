"""A party's identity in a federation, as its kit has it: the key it signs with, and those whose signatures it trusts.

identity.jwk   its own key, Ed25519          roster.bin   the clients' public keys
operator.pub   pinned: who signed both       server.bin   the server's public key, and the one that replies are
                                                          sealed to, where the federation seals them
recipient.jwk  at the server alone: what opens them
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import ConfigError
from .envelopes import Binding, EnvelopeRefused, ReplayGuard, seal, unseal
from .errors import Misbehaviour
from .files import X25519, KeyFile, PublicKey
from .kit import KitFile
from .roster import Member, Roster, is_signed

# Owners in server.bin. No client's name has a space.
SERVER, RECIPIENT = "umbel server", "umbel recipient"
KEY_BYTES = 32
LIFETIME_SECONDS = 24 * 3600  # lifetime of a sealed reply; what it answers has a deadline, and a challenge of its own


@dataclass(frozen=True)
class Identity:
    """A party's key, with the rosters that the operator signed. Its repr holds no secret."""

    key: KeyFile
    clients: Roster
    server: Roster
    number: int | None  # the client's number in the roster; None for the server
    operator: bytes  # the pinned public key of who signed both rosters
    opening: KeyFile | None = None  # the recipient's key, at the server; None elsewhere, and where nothing is sealed

    @staticmethod
    def load(folder: Path) -> Identity:
        """Read the identity of a kit.

        Errors: ConfigError for a key file that is refused, for rosters that the pinned operator did not sign, and for a
        key that is in neither.
        """
        operator = operator_key(folder)
        clients, server = (open_roster(folder / name, operator) for name in (KitFile.ROSTER, KitFile.SERVER_ROSTER))
        key = KeyFile.load(folder / KitFile.IDENTITY).check("node")
        numbers = [member.node for member in clients.members if member.key == key.public.raw]
        is_server = any(member.owner == SERVER and member.key == key.public.raw for member in server.members)
        if not numbers and not is_server:
            raise ConfigError(f"the key of {folder} is not in its roster; ask the operator for a new kit")
        found = Identity(key, clients, server, None if is_server else numbers[0], operator)
        if is_server and found.seals:
            found = replace(found, opening=KeyFile.load(folder / KitFile.RECIPIENT).check("recipient"))
        return found

    @property
    def federation(self) -> bytes:
        """Digest that tells this federation from others, by who signs its rosters, and by its server's keys.

        It is the same whoever joins or leaves.
        """
        return self.operator + self.server.digest

    @property
    def members(self) -> Mapping[int, str]:
        """Names of the clients, by number, as the roster lists them."""
        return {member.node: member.owner for member in self.clients.members}

    @property
    def seals(self) -> bool:
        """Return whether clients seal what they send: server.bin says to which key."""
        return self._owner(RECIPIENT) is not None

    def sign(self, statement: bytes) -> bytes:
        """Sign a statement as this party. Errors: ConfigError for a key that has expired."""
        return self.key.check("node").signing.sign(statement)

    def objection(self, signer: int | None, statement: bytes, signature: bytes) -> str | None:
        """Say why the signature is not that of a client, or of the server (None); None where it is."""
        now = int(time.time())
        try:
            member = self._owner(SERVER) if signer is None else self.clients.member(signer, now)
        except Misbehaviour as error:
            return str(error)
        if member is None or now >= member.expires:
            return "the server's key is not in this kit, or has expired; ask the operator for a new one"
        if is_signed(member.key, signature, statement):
            return None
        return "it was not signed by this federation's server" if signer is None else "it was not signed as it is"

    def client_of(self, name: str) -> int | None:
        """Return the number of the client of that name; None where there is none."""
        return next((member.node for member in self.clients.members if member.owner == name), None)

    def seal(self, body: bytes, run: str, round: int, challenge: str) -> memoryview:
        """Seal a client's reply in an envelope to the recipient."""
        recipient = self._owner(RECIPIENT)
        assert recipient is not None
        assert self.number is not None
        to, binding = PublicKey(X25519, recipient.key), Binding(run, round, self.number, challenge)
        return seal(body, to, self.key, binding, lifetime_seconds=LIFETIME_SECONDS)

    def unseal(self, sealed: bytes | memoryview, client: int, run: str, round: int, challenge: str) -> bytes:
        """Open what a client sealed. Errors: EnvelopeRefused."""
        if self.opening is None:
            raise EnvelopeRefused("does_not_open", "this kit has no key that opens envelopes", client)
        expected = Binding(run, round, client, challenge)
        # Challenges are never repeated, so that nothing sealed fits twice: a guard need remember none.
        return bytes(unseal(sealed, expected, self.opening, self.clients, ReplayGuard()))

    def _owner(self, owner: str) -> Member | None:
        return next((member for member in self.server.members if member.owner == owner), None)


def operator_key(folder: Path) -> bytes:
    """Read the operator's public key, as a kit pins it. Errors: ConfigError."""
    path = folder / KitFile.OPERATOR
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path} holds {len(key)} bytes in hex, and a public key has {KEY_BYTES}; restore the kit")
    return key


def open_roster(path: Path, operator: bytes) -> Roster:
    """Read a roster that the operator signed. Errors: ConfigError when another did, or there is none."""
    try:
        return Roster.open(path.read_bytes(), operator)
    except OSError as error:
        raise ConfigError(f"roster {path} cannot be read: {error.strerror}; ask the operator for a new kit") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; ask the operator for a new kit") from error
