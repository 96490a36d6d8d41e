"""The server's side of one session: it relays, adds, and learns the sum. A state machine, bytes in and bytes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ...core.errors import ConfigError
from ..keys.errors import BelowThreshold, MalformedMessage, Misbehaviour, SecAggAbort
from ..keys.roster import is_signed_as_before
from . import dealing, shamir
from .disputes import Disputes
from .graph import Topology, quorum
from .masking import add_to, apply_masks
from .messages import (
    SIGNATURE_BYTES,
    Advert,
    Consent,
    Kind,
    Roll,
    Sealed,
    dealing_of,
    decode_bytes,
    decode_list,
    decode_masked,
    decode_reveal,
    encode_list,
    encode_survivors,
)
from .session import Session, Stage, Terms, check_key, commitment, pair_mask, self_mask

T = TypeVar("T")


class BadShare(NamedTuple):
    """A share that does not belong to the secret it was revealed for."""

    dealer: int  # client whose secret it is a share of
    sender: int | None  # client that revealed it; None where too few shares are left to say


class Outcome(NamedTuple):
    """Result of a session, as the server learns it."""

    total: np.ndarray  # sum in the ring: FixedPoint.decode makes numbers of it
    survivors: tuple[int, ...]  # the clients in the sum, ascending
    bad_shares: tuple[BadShare, ...]  # wrong shares that did not hurt: enough good ones were left
    left_out: tuple[int, ...] = ()  # clients left out for shares that did not open, ascending


class Server:
    """One session, from offer to sum.

        for node, message in server.advance().items(): …       # five times: send
        server.receive(node, reply)                            # and collect
        server.finish()

    A reply that fails a check raises a SecAggAbort whose culprit is the node, and changes nothing: the session goes on
    without it. Too few replies raise BelowThreshold in `advance` or `finish`; the session is then over.
    """

    def __init__(
        self,
        terms: Terms,
        cohort: Sequence[int],
        run: str,
        round: int,
        attempt: int,
        now: int,
        before: Iterable[dealing.Pair] = (),
    ):
        """Prepare a session with cohort, the nodes to ask.

        attempt: from 1, larger for each retry of a round. now: seconds since 1970. before: `disputed` of the attempts
        before.
        """
        self.disputed = set(before)  # pairs of a holder and a dealer whose shares do not go with the others'
        self.stage = Stage.ADVERTISE
        self._terms, self._cohort, self._now = terms, sorted(cohort), now
        self._offer = terms.offer(run, round, attempt)
        self._offer_digest = self._offer.digest
        self._awaited: set[int] | None = None  # None: the stage's messages are not out yet
        self._adverts: dict[int, Advert] = {}
        self._shares: dict[int, dict[int, Sealed]] = {}  # sender: receiver: shares
        self._total = np.zeros(terms.ring_length, terms.encoding.dtype)
        self._survivors: list[int] = []
        self._told: dict[int, dict[int, int]] = {}  # dealer: holder: point of its polynomial
        self._consents: dict[int, Consent] = {}
        self._disputes = Disputes()
        self._revealed: dict[int, dict[int, int]] = {}  # dealer: sender: share
        self._pairs: dict[int, dict[int, bytes]] = {}  # client that dropped out: sender: seed of the mask they share
        self._answered = 0
        self._probe = X25519PrivateKey.generate()  # to find keys of low order
        self._session: Session

    def __repr__(self) -> str:
        return f"Server(run={self._offer.run!r}, round={self._offer.round}, stage={self.stage.name})"

    def advance(self) -> dict[int, bytes]:
        """Close the stage under way and open the next: return what to send, by node. Errors: BelowThreshold."""
        opens: dict[Stage, Callable[[], dict[int, bytes]]] = {
            Stage.ADVERTISE: self._offers,
            Stage.SHARE: self._rolls,
            Stage.MASK: self._deliveries,
            Stage.CONSISTENCY: self._survivor_lists,
            Stage.UNMASK: self._consent_lists,
        }
        stage = self.stage if self._awaited is None or self.stage > Stage.UNMASK else Stage(self.stage + 1)
        if stage not in opens:
            raise ConfigError(f"the session is at stage {self.stage.name}: nothing is left to send")
        sent = self._or_abandon(opens[stage])
        self.stage, self._awaited = stage, set(sent)
        return sent

    def receive(self, node: int, reply: bytes) -> None:
        """Take in a node's reply to this stage. node: number as the transport authenticated it.

        Errors: a SecAggAbort with that node as culprit; the reply then counts as missing.
        """
        takes = {
            Stage.ADVERTISE: self._take_advert,
            Stage.SHARE: self._take_shares,
            Stage.MASK: self._take_masked,
            Stage.CONSISTENCY: self._take_consent,
            Stage.UNMASK: self._take_revealed,
        }
        if self.stage not in takes or node not in (self._awaited or ()):
            raise Misbehaviour("unexpected", f"no reply was awaited from client {node}", node)
        assert self._awaited is not None
        self._awaited.discard(node)  # one reply each: a second try could be fitted to what the first one caused
        try:
            takes[self.stage](node, reply)
        except MalformedMessage as error:
            raise MalformedMessage(error.reason, str(error), node) from error

    def finish(self) -> Outcome:
        """Close the last stage and return the sum.

        Errors: BelowThreshold; Misbehaviour "bad_share" where a secret is lost.
        """
        if self.stage is not Stage.UNMASK or self._awaited is None:
            raise ConfigError(f"the session is at stage {self.stage.name}: there is no sum to finish")
        outcome = self._or_abandon(self._unmask)
        self._total, self._revealed, self._pairs, self.stage = self._total[:0], {}, {}, Stage.DONE
        return outcome

    def abandon(self) -> None:
        """End the session and drop all that was collected."""
        self._shares, self._revealed, self._pairs, self._total = {}, {}, {}, self._total[:0]
        self.stage = Stage.ABANDONED

    def _or_abandon(self, step: Callable[[], T]) -> T:
        """Run step; whatever it raises ends the session."""
        try:
            return step()
        except BaseException:
            self.abandon()
            raise

    def _offers(self) -> dict[int, bytes]:
        return dict.fromkeys(self._cohort, self._offer.encode())

    def _take_advert(self, node: int, reply: bytes) -> None:
        advert = Advert.decode(reply, self._offer_digest)
        if advert.node != node:
            raise Misbehaviour("other_node", f"client {node} sent the advert of client {advert.node}", node)
        self._terms.check_advert(advert, self._offer_digest, self._now)
        taken = {key for other in self._adverts.values() for key in (other.mask_key, other.share_key)}
        keys = {advert.mask_key, advert.share_key}
        if len(keys) < 2 or keys & taken:
            raise Misbehaviour("repeated_key", f"client {node} advertised a key that is not its own alone", node)
        for key in keys:
            check_key(self._probe, key, node)
        self._adverts[node] = advert

    def _rolls(self) -> dict[int, bytes]:
        self._require(len(self._adverts), self._terms.fewest, "advertised")
        topology = Topology.of(len(self._adverts))
        adverts = tuple(self._adverts[node] for node in sorted(self._adverts))
        roll = Roll(topology.degree, topology.threshold, adverts)
        self._session = Session.establish(self._terms, self._offer, roll)
        return dict.fromkeys(self._session.nodes, roll.encode(self._offer_digest))

    def _take_shares(self, node: int, reply: bytes) -> None:
        session = self._session
        shares: list[Sealed] = decode_list(Kind.SHARES, reply, session.digest)
        if [sealed.node for sealed in shares] != session.neighbours(node):
            raise Misbehaviour("wrong_receivers", f"client {node} did not share with just its neighbours", node)
        key = self._terms.roster.member(node, self._now).key
        whole = dealing_of({sealed.node: sealed.ciphertext for sealed in shares})
        for sealed in shares:
            text = session.sealed_text(node, sealed.node, sealed.dealing, sealed.ciphertext)
            if sealed.dealing != whole or not is_signed_as_before(key, sealed.signature, text):
                raise Misbehaviour("wrong_signature", f"client {node} did not sign its shares", node)
        self._shares[node] = {sealed.node: sealed for sealed in shares}

    def _deliveries(self) -> dict[int, bytes]:
        session = self._session
        self._require_quorum(len(self._shares), "shared their secrets")
        sent = {}
        for receiver in sorted(self._shares):
            senders = [node for node in session.neighbours(receiver) if node in self._shares]
            sealed = [self._shares[node][receiver]._replace(node=node) for node in senders]
            sent[receiver] = encode_list(Kind.DELIVERY, session.digest, sealed)
        self._shares = {node: {} for node in self._shares}
        return sent

    def _take_masked(self, node: int, reply: bytes) -> None:
        body, points, disputed = decode_masked(reply, self._session.digest, self._total.nbytes)
        delivered = [peer for peer in self._session.holders(node) if peer in self._shares]
        if not set(disputed).issubset(delivered) or node in disputed:
            raise Misbehaviour("wrong_dispute", f"client {node} disputes shares that it was not sent", node)
        if [point.node for point in points] != [peer for peer in delivered if peer not in disputed]:
            raise Misbehaviour("wrong_points", f"client {node} did not tell of the shares of each that it holds", node)
        for point in points:
            self._told.setdefault(point.node, {})[node] = point.value
        vector = np.frombuffer(body, self._total.dtype)
        if disputed:
            self._disputes.add(node, disputed, vector)
            return
        add_to(self._total, vector, self._terms.encoding.wide)
        self._survivors.append(node)

    def _survivor_lists(self) -> dict[int, bytes]:
        session = self._session
        self._settle_disputes()
        self._check_dealings()
        self._require_quorum(len(self._survivors), "sent their masked vectors")
        self._survivors.sort()
        return dict.fromkeys(self._survivors, encode_survivors(session.digest, self._flags()))

    def _settle_disputes(self) -> None:
        """Leave out who dealt, or disputed, shares that do not open. Nothing has been revealed yet.

        Errors: Misbehaviour, its culprit the dealer, where its masks cannot be taken out of the sum any more.
        """
        session, disputes = self._session, self._disputes
        disputes.settle(set(self._survivors))
        for node, vector in disputes.vectors.items():
            if node not in disputes.left_out:
                add_to(self._total, vector, self._terms.encoding.wide)
                self._survivors.append(node)
        disputes.vectors.clear()
        survivors = set(self._survivors)
        for dealer in disputes.left_out:
            near = [peer for peer in session.neighbours(dealer) if peer in survivors]
            accepted = [peer for peer in near if disputes.accepts(peer, dealer)]
            if dealer in survivors or 0 < len(accepted) < session.roll.threshold:
                raise Misbehaviour("bad_delivery", f"client {dealer} dealt shares that do not open", dealer)

    def _check_dealings(self) -> None:
        """Raise Misbehaviour where too many of a dealer's shares are of no secret, while nothing has been revealed."""
        session, found = self._session, set()
        for dealer, told in self._told.items():
            points = {session.points[holder]: value for holder, value in told.items()}
            wrong = dealing.strangers(points, session.roll.threshold)
            found |= {(session.nodes[point - 1], dealer) for point in wrong}
        self._told = {}
        if found:
            worst, *others = dealing.culprits(found, self.disputed)
            self.disputed |= found
            text = f"shares that client {worst} dealt, or tells of, are of no secret"
            raise Misbehaviour("bad_dealing", text, worst, others)

    def _take_consent(self, node: int, reply: bytes) -> None:
        signature = bytes(decode_bytes(Kind.CONSENT, reply, self._session.digest, SIGNATURE_BYTES))
        key = self._terms.roster.member(node, self._now).key
        if not is_signed_as_before(key, signature, self._session.survivors_text(self._flags())):
            raise Misbehaviour("wrong_signature", f"client {node} did not sign the list of survivors", node)
        self._consents[node] = Consent(node, signature)

    def _consent_lists(self) -> dict[int, bytes]:
        self._require(len(self._consents), quorum(len(self._session.nodes)), "signed the list of survivors")
        session, sent = self._session, {}
        for node in sorted(self._consents):
            heard = [self._consents[holder] for holder in session.holders(node) if holder in self._consents]
            sent[node] = encode_list(Kind.CONSENTS, session.digest, heard)
        return sent

    def _take_revealed(self, node: int, reply: bytes) -> None:
        shares, pairs = decode_reveal(reply, self._session.digest)
        dealers = [dealer for dealer in self._session.holders(node) if dealer in self._shares]
        held = [dealer for dealer in dealers if self._disputes.accepts(node, dealer)]
        if [share.node for share in shares] != held:
            raise Misbehaviour("wrong_shares", f"client {node} did not reveal one share for each it holds", node)
        gone = [dealer for dealer in held if dealer not in self._survivors]
        if pairs and [pair.node for pair in pairs] != gone:
            raise Misbehaviour("wrong_shares", f"client {node} revealed masks of others than dropped out", node)
        for share in shares:
            self._revealed.setdefault(share.node, {})[node] = share.value
        for pair in pairs:
            self._pairs.setdefault(pair.node, {})[node] = pair.seed
        self._answered += 1

    def _unmask(self) -> Outcome:
        """Subtract every self-mask, and the pairwise masks of those who dropped out after sharing."""
        session, survivors = self._session, set(self._survivors)
        self._require(self._answered, quorum(len(session.nodes)), "revealed shares")
        added: list[bytes] = []
        subtracted: list[bytes] = []
        bad: list[BadShare] = []
        for dealer in sorted(self._shares):
            near = [peer for peer in session.neighbours(dealer) if peer in survivors]
            peers = [peer for peer in near if self._disputes.accepts(peer, dealer)]
            if dealer not in survivors and not peers:
                continue  # nobody has masks with it
            if dealer in survivors:
                secret, senders = self._rebuild(dealer, True)
                bad += [BadShare(dealer, sender) for sender in senders]
                subtracted.append(self_mask(session, secret))
                continue
            masks, senders = self._masks_with(dealer, peers)
            bad += [BadShare(dealer, sender) for sender in senders]
            for peer, mask in masks.items():
                (subtracted if peer < dealer else added).append(mask)
        apply_masks(self._total, added, subtracted, self._terms.encoding.wide)
        return Outcome(self._total, tuple(self._survivors), tuple(bad), tuple(sorted(self._disputes.left_out)))

    def _masks_with(self, dealer: int, peers: list[int]) -> tuple[dict[int, bytes], list[int | None]]:
        """Return the stream seeds of the masks that survivors share with who dropped out, and who sent wrong shares.

        The seeds come from its mask key where enough shares give that back, which proves them; else from what the
        survivors say themselves. One that lies then spoils the sum, as it could by what it sends for its own vector.
        """
        session, said = self._session, self._pairs.get(dealer, {})
        try:
            secret, senders = self._rebuild(dealer, False)
        except SecAggAbort:
            if not all(peer in said for peer in peers):
                raise
            return {peer: said[peer] for peer in peers}, [dealer]
        private = X25519PrivateKey.from_private_bytes(secret)
        masks = {peer: pair_mask(session, private, session.adverts[peer].mask_key, peer) for peer in peers}
        return masks, senders

    def _rebuild(self, dealer: int, survived: bool) -> tuple[bytes, list[int | None]]:
        """Rebuild the dealer's self-mask seed, or its mask key where it did not survive; tell who sent wrong shares."""
        session, advert = self._session, self._session.adverts[dealer]

        def is_seed(secret: bytes) -> bool:
            return commitment(self._offer_digest, dealer, secret) == advert.commitment

        def is_key(secret: bytes) -> bool:
            return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == advert.mask_key

        revealed = dict(self._revealed.get(dealer, {}))
        own = revealed.pop(dealer, None)  # the whole seed, of a survivor that is still here
        seed = own.to_bytes(32, "big") if own is not None and own < 2**256 else None
        is_whole = seed is not None and is_seed(seed)
        if not is_whole:
            self._require(len(revealed), session.roll.threshold, f"revealed shares of client {dealer}'s secret")
        if len(revealed) < session.roll.threshold:
            return cast(bytes, seed), []
        shares = {session.points[sender]: value for sender, value in revealed.items()}
        found = shamir.reconstruct(shares, session.roll.threshold, is_seed if survived else is_key)
        liars: list[int | None] = [dealer] if own is not None and not is_whole else []
        if found.secret is not None:
            return found.secret, liars + [session.nodes[point - 1] for point in found.bad_points]
        if is_whole:
            # Without shares to spare, any of the senders may be at fault, or the dealer.
            return cast(bytes, seed), [dealer if found.is_consistent else None]
        if survived and found.is_consistent:
            # Shares to spare, all on one polynomial, and not the secret advertised: it was dealt so. It counts: whoever
            # masked with another one has sent a vector of random numbers, as anybody can.
            return (shamir.interpolate(shares) % 2**256).to_bytes(32, "big"), [dealer]
        culprit = dealer if found.is_consistent else None
        raise Misbehaviour("bad_share", f"the shares of client {dealer}'s secret do not give it back", culprit)

    def _flags(self) -> list[bool]:
        survivors = set(self._survivors)
        return [node in survivors for node in self._session.nodes]

    def _require_quorum(self, count: int, did: str) -> None:
        self._require(count, self._terms.quorum(len(self._session.nodes)), did)

    def _require(self, count: int, least: int, did: str) -> None:
        if count < least:
            raise BelowThreshold(f"{count} clients {did}; at least {least} are needed")
