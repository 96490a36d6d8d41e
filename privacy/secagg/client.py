"""A client's side of one session: a state machine, bytes in and bytes out.

Source: Bonawitz et al. 2017, https://doi.org/10.1145/3133956.3133982, the variant against a lying server, with the
graph of Bell et al. 2020 above 64 clients. The names of the stages and messages are in `messages.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...core.errors import ConfigError
from ...core.validation import require
from ..keys.errors import SERVER, BelowThreshold, MalformedMessage, Misbehaviour
from ..keys.roster import is_signed_as_before
from . import shamir
from .dealing import challenge, point
from .masking import apply_masks
from .messages import (
    UNBOUND,
    Advert,
    Consent,
    Kind,
    Offer,
    Pair,
    Roll,
    Sealed,
    Share,
    dealing_of,
    decode_list,
    decode_survivors,
    encode_bytes,
    encode_list,
    encode_masked,
    encode_reveal,
    peek,
)
from .session import Session, Stage, Terms, agree, commitment, pair_mask, seal_key, self_mask

RUNS = 1024  # number of runs that a node remembers
NONCE = bytes(12)  # every key seals one message: session, sender and receiver are in its derivation


@dataclass
class RoundLog:
    """Record of what one node has taken part in, so that no session is played to it twice.

    Keep it between rounds, and on disk between processes: a node that forgets can be asked for a second sum. It has
    the RUNS that were last taken part in: names are the server's, who could make up ever more of them. What is
    forgotten can be played again under its name, as it could be under a new one.
    """

    answered: dict[str, tuple[int, int]] = field(default_factory=dict)  # run: last (round, attempt) offered
    unmasked: dict[str, int] = field(default_factory=dict)  # run: last round whose shares left this node
    keep: Callable[[RoundLog], None] | None = field(default=None, repr=False, compare=False)  # called at every change

    def check(self, run: str, round: int, attempt: int) -> None:
        """Raise Misbehaviour by the server for a session entered before, or a round already unmasked.

        A second sum of one round would tell the updates in which the two differ.
        """
        if (round, attempt) <= self.answered.get(run, (-1, -1)):
            raise Misbehaviour("replayed_session", f"attempt {attempt} at round {round} was offered before", SERVER)
        if round <= self.unmasked.get(run, -1):
            raise Misbehaviour("second_unmask", f"round {round} was unmasked before", SERVER)

    def admit(self, run: str, round: int, attempt: int) -> None:
        """Enter a session. Errors: as `check`."""
        self.check(run, round, attempt)
        self.answered.pop(run, None)  # the last one comes last
        self.answered[run] = (round, attempt)
        for oldest in list(self.answered)[:-RUNS]:
            del self.answered[oldest]
            self.unmasked.pop(oldest, None)
        self._changed()

    def release(self, run: str, round: int) -> None:
        """Note that shares are about to leave."""
        self.unmasked[run] = max(round, self.unmasked.get(run, -1))
        self._changed()

    def _changed(self) -> None:
        if self.keep is not None:
            self.keep(self)


class Client:
    """One client in one session; `answer` is called once for each of the server's five messages.

    The first check that fails raises a SecAggAbort with reason and culprit, erases what was secret, and ends the
    session: no later message is answered. Secrets are in memory only, and dropped at the end, as far as Python can.
    """

    def __init__(
        self,
        node: int,
        identity: Ed25519PrivateKey,
        terms: Terms,
        values: np.ndarray | None,
        now: int,
        log: RoundLog,
        entropy: Callable[[int], bytes] = os.urandom,
    ):
        """Prepare one session.

        values: as for `provide`, or None where they come later. now: seconds since 1970, for the roster.

        entropy: gives that many secret random bytes; anything but the default is for tests. Errors: ConfigError for
        values of another length or ring than the terms', or an identity that is not the node's in the roster.
        """
        if terms.roster.member(node, now).key != identity.public_key().public_bytes_raw():
            raise ConfigError(f"the identity given is not that of node {node} in the roster")
        self.node, self.stage = node, Stage.ADVERTISE
        self._identity, self._terms, self._now, self._log, self._entropy = identity, terms, now, log, entropy
        self._values: np.ndarray | None = None
        self._mask_key: X25519PrivateKey | None = None
        self._share_key: X25519PrivateKey | None = None
        self._seed = bytearray()
        self._agreed: dict[int, bytes] = {}  # node: the secret that its share key and this client's agree on
        self._pairs: dict[int, bytes] = {}  # node: the stream seed of the mask that is shared with it
        self._held: dict[int, tuple[int, int]] = {}  # node: shares of its mask key and of its self-mask seed
        self._points: dict[int, int] = {}  # node: what is told of the shares that it dealt
        self._survivors: list[bool] = []
        self._bound = UNBOUND  # digest that the next message is bound to
        self._offer: Offer
        self._advert: Advert
        self._session: Session
        if values is not None:
            self.provide(values)

    def __repr__(self) -> str:
        return f"Client(node={self.node}, stage={self.stage.name})"

    def provide(self, values: np.ndarray) -> None:
        """Take the values to mask, once they are known: needed by the time the Delivery is answered.

        values: what FixedPoint.encode gave, left as it is. Errors: ConfigError for another length or ring than the
        terms', or once the client has masked.
        """
        terms = self._terms
        require(self.stage <= Stage.MASK, f"client {self.node} is at stage {self.stage.name}: it takes no more values")
        require(values.shape == (terms.ring_length,), f"expected {terms.ring_length} values, got shape {values.shape}")
        require(values.dtype == terms.encoding.dtype, f"expected values of {terms.encoding.dtype}, got {values.dtype}")
        self._values = values

    def answer(self, message: bytes) -> bytes:
        """Return the reply to the server's next message.

        Errors: a SecAggAbort; from then on the client answers nothing.
        """
        steps = {
            Kind.OFFER: self._advertise,
            Kind.ROLL: self._share,
            Kind.DELIVERY: self._mask,
            Kind.SURVIVORS: self._consent,
            Kind.CONSENTS: self._unmask,
        }
        try:
            self._expect(message, list(steps))
            reply = steps[list(steps)[self.stage]](message)
        except MalformedMessage as error:
            self.abandon()
            raise MalformedMessage(error.reason, str(error), SERVER) from error
        except BaseException:
            self.abandon()
            raise
        self.stage = Stage(self.stage + 1)
        if self.stage is Stage.DONE:
            self._erase()
        return reply

    def abandon(self) -> None:
        """End the session and erase what was secret. Nothing leaves the client any more."""
        self._erase()
        if self.stage is not Stage.DONE:
            self.stage = Stage.ABANDONED

    def _expect(self, message: bytes, kinds: list[Kind]) -> None:
        """Refuse what does not come next, is not of this session, or comes after its end."""
        kind, bound = peek(message)
        if self.stage is Stage.ABANDONED:
            raise Misbehaviour("abandoned", "this session was abandoned", SERVER)
        if self.stage is Stage.DONE:
            raise Misbehaviour("second_unmask", f"a {kind.name} after the session's end", SERVER)
        if kind is not kinds[self.stage]:
            raise Misbehaviour("out_of_order", f"expected {kinds[self.stage].name}, got {kind.name}", SERVER)
        if bound != self._bound:
            raise Misbehaviour("replayed_session", f"a {kind.name} of another session", SERVER)

    def _advertise(self, message: bytes) -> bytes:
        """Answer Offer with Advert."""
        self._offer = offer = Offer.decode(message)
        self._bound = offer.digest
        self._terms.check_offer(offer)
        self._log.admit(offer.run, offer.round, offer.attempt)
        self._mask_key = X25519PrivateKey.from_private_bytes(self._entropy(32))
        self._share_key = X25519PrivateKey.from_private_bytes(self._entropy(32))
        self._seed = bytearray(self._entropy(32))
        mask_key, share_key = (key.public_key().public_bytes_raw() for key in (self._mask_key, self._share_key))
        unsigned = Advert(
            self.node, mask_key, share_key, commitment(self._bound, self.node, bytes(self._seed)), signature=b""
        )
        signature = self._identity.sign(unsigned.signed_bytes(self._bound))
        self._advert = unsigned._replace(signature=signature)
        return self._advert.encode(self._bound)

    def _share(self, message: bytes) -> bytes:
        """Answer Roll with Shares."""
        roll = Roll.decode(message, self._bound)
        for advert in roll.adverts:
            try:
                self._terms.check_advert(advert, self._bound, self._now)
            except Misbehaviour as error:  # an honest server would have refused the advert
                raise Misbehaviour(
                    error.reason, f"the roll holds a bad advert of client {advert.node}", SERVER
                ) from error
        self._session = session = Session.establish(self._terms, self._offer, roll)
        if session.adverts.get(self.node) != self._advert:
            raise Misbehaviour("wrong_advert", "the roll does not hold this client's advert as it was sent", SERVER)
        self._bound = session.digest
        assert self._mask_key is not None
        holders, threshold = session.holders(self.node), roll.threshold
        points = [session.points[holder] for holder in holders]
        secrets = self._mask_key.private_bytes_raw(), bytes(self._seed), self._entropy(32)
        dealt = (shamir.split(secret, threshold, points, self._entropy) for secret in secrets)
        shares = dict(zip(holders, zip(*dealt, strict=True), strict=True))
        own = shares.pop(self.node)
        ciphertexts = {peer: self._seal(peer, triple) for peer, triple in shares.items()}
        dealing = dealing_of(ciphertexts)
        self._hold(self.node, dealing, own)
        sealed = []
        for peer, ciphertext in ciphertexts.items():
            signature = self._identity.sign(session.sealed_text(self.node, peer, dealing, ciphertext))
            sealed.append(Sealed(peer, ciphertext, dealing, signature))
        return encode_list(Kind.SHARES, session.digest, sealed)

    def _hold(self, dealer: int, dealing: bytes, shares: Sequence[int]) -> None:
        """Keep a dealer's shares, and the point that tells the server whether they go with the others'."""
        of_key, of_seed, of_blind = shares
        self._held[dealer] = of_key, of_seed
        self._points[dealer] = point(challenge(self._session.digest, dealer, dealing), of_key, of_seed, of_blind)

    def _seal(self, peer: int, shares: Sequence[int]) -> bytes:
        """Encrypt the peer's shares to it."""
        session, route = self._session, self._session.route(self.node, peer)
        key = seal_key(session, self._agree(peer), route)
        return AESGCM(key).encrypt(NONCE, b"".join(map(shamir.to_bytes, shares)), route)

    def _agree(self, peer: int) -> bytes:
        """Return the secret shared with a peer that keys come from, one for each direction."""
        if peer not in self._agreed:
            assert self._share_key is not None
            self._agreed[peer] = agree(self._share_key, self._session.adverts[peer].share_key, peer)
        return self._agreed[peer]

    def _mask(self, message: bytes) -> bytes:
        """Answer Delivery with Masked."""
        session = self._session
        delivered = decode_list(Kind.DELIVERY, message, session.digest)
        strangers = {sealed.node for sealed in delivered} - set(session.neighbours(self.node))
        if strangers:
            raise Misbehaviour("wrong_delivery", f"shares from {min(strangers)}, who is no neighbour", SERVER)
        disputed = []
        for sealed in delivered:
            try:
                self._hold(sealed.node, sealed.dealing, self._unseal(sealed))
            except Misbehaviour as error:
                if error.culprit != sealed.node:
                    raise
                disputed.append(sealed.node)  # as if it had dropped out: without it the others' sum goes on
        self._require_holders(len(self._held), "sent shares that open")
        added = [self_mask(session, bytes(self._seed))]
        subtracted: list[bytes] = []
        assert self._mask_key is not None
        require(self._values is not None, f"client {self.node} was asked for its vector before it was provided")
        for peer in self._held.keys() - {self.node}:
            mask = pair_mask(session, self._mask_key, session.adverts[peer].mask_key, peer)
            self._pairs[peer] = mask
            (added if self.node < peer else subtracted).append(mask)
        values = self._values.copy()  # type: ignore[union-attr]
        apply_masks(values, added, subtracted, self._terms.encoding.wide)
        self._values = self._mask_key = self._share_key = None
        self._agreed = {}
        points = [Share(*told) for told in sorted(self._points.items())]
        return encode_masked(session.digest, values.data.cast("B"), points, disputed)

    def _unseal(self, sealed: Sealed) -> list[int]:
        """Return the three shares in what a peer sent. Errors: Misbehaviour by whoever changed or made it."""
        session, peer = self._session, sealed.node
        route = session.route(peer, self.node)
        # Signed, so that all of a dealer's holders hash the same dealing: a server that had them hash others would have
        # their points add up to a secret. It tells besides who spoiled what does not decrypt.
        member = self._terms.roster.member(peer, self._now)
        text = session.sealed_text(peer, self.node, sealed.dealing, sealed.ciphertext)
        if not is_signed_as_before(member.key, sealed.signature, text):
            raise Misbehaviour("wrong_signature", f"client {peer} did not sign the shares said to be its own", SERVER)
        key = seal_key(session, self._agree(peer), route)
        try:
            plain = AESGCM(key).decrypt(NONCE, sealed.ciphertext, route)
        except InvalidTag as error:
            raise Misbehaviour("bad_ciphertext", f"the shares of client {peer} do not decrypt", peer) from error
        size = shamir.SHARE_BYTES
        found = [shamir.from_bytes(plain[start : start + size]) for start in range(0, len(plain), size)]
        shares = [share for share in found if share is not None]
        if len(shares) < len(found):
            raise Misbehaviour("bad_share", f"a share of client {peer} is no field element", peer)
        return shares

    def _consent(self, message: bytes) -> bytes:
        """Answer Survivors with Consent."""
        session = self._session
        flags = decode_survivors(message, session.digest, len(session.nodes))
        survivors = {node for node, survived in zip(session.nodes, flags, strict=True) if survived}
        known = survivors & set(session.holders(self.node))
        if self.node not in survivors:
            raise Misbehaviour("forged_survivors", "this client is said to have dropped out", SERVER)
        unheard = known - set(self._held)
        if unheard:
            text = f"client {min(unheard)} is said to have survived, and never shared its secrets"
            raise Misbehaviour("forged_survivors", text, SERVER)
        least = self._terms.quorum(len(flags))
        if len(survivors) < least:
            raise BelowThreshold(f"{len(survivors)} of {len(flags)} clients survived; at least {least} are needed")
        self._require_holders(len(known), "survived")
        self._survivors = flags
        signature = self._identity.sign(session.survivors_text(flags))
        return encode_bytes(Kind.CONSENT, session.digest, signature)

    def _unmask(self, message: bytes) -> bytes:
        """Answer Consents with Reveal: for each client whose shares are held, one of the two.

        Two lists of survivors cannot both have threshold signatures among the same holders unless some of them signed
        both: of n who all mask with one another at least n/3, and honest clients sign once.
        """
        session = self._session
        survived = dict(zip(session.nodes, self._survivors, strict=True))
        allowed = {node for node in session.holders(self.node) if survived[node]}
        text = session.survivors_text(self._survivors)
        consents: list[Consent] = decode_list(Kind.CONSENTS, message, session.digest)
        for consent in consents:
            if consent.node not in allowed:
                raise Misbehaviour("forged_survivors", f"client {consent.node} has no say in this list", SERVER)
            key = self._terms.roster.member(consent.node, self._now).key
            if not is_signed_as_before(key, consent.signature, text):
                raise Misbehaviour("wrong_signature", f"client {consent.node} signed no such list", SERVER)
        self._require_holders(len(consents), "signed the list of survivors")
        self._log.release(self._offer.run, self._offer.round)
        # Its own seed whole: who dealt bad shares of it, and is still here, ends nobody's sum.
        own = {self.node: Share(self.node, int.from_bytes(self._seed, "big"))}
        shares = {node: Share(node, pair[survived[node]]) for node, pair in self._held.items()}
        revealed = [share for _, share in sorted((shares | own).items())]
        # The mask shared with who dropped out: who dealt bad shares of its key, and has left, ends nobody's sum either.
        # It says no more than enough shares would; the mask of who survived never leaves.
        pairs = [Pair(peer, seed) for peer, seed in sorted(self._pairs.items()) if not survived[peer]]
        return encode_reveal(session.digest, revealed, pairs)

    def _require_holders(self, count: int, did: str) -> None:
        """Raise BelowThreshold when fewer of this client's holders are left than give a secret back."""
        threshold = self._session.roll.threshold
        if count < threshold:
            raise BelowThreshold(f"{count} clients {did}; at least {threshold} are needed")

    def _erase(self) -> None:
        """Forget every secret of the session."""
        self._seed[:] = bytes(len(self._seed))
        self._mask_key = self._share_key = self._values = None
        self._held, self._agreed, self._pairs, self._points = {}, {}, {}, {}
