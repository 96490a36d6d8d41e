"""Secure sums: the state machines of `secagg`, as halves that a runtime carries the messages of.

Clients train before they advertise keys, so that whoever fails at its training leaves no masks behind. What a client
took part in is on its disk before anything leaves it: a client that was started again is not asked twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..core.errors import ConfigError, RunStopped
from ..core.random import Key
from ..core.sums import Meeting
from ..core.types import ClientUpdate, Failure, RoundResult, Total
from .encoder import Encoder
from .keys.credentials import write_atomically
from .keys.errors import SERVER, Misbehaviour, SecAggAbort
from .keys.roster import Roster
from .secagg.client import Client, RoundLog
from .secagg.dealing import Pair
from .secagg.graph import quorum
from .secagg.messages import HEADER_BYTES, SEALED_BYTES, SIGNATURE_BYTES, Kind, Offer, peek
from .secagg.server import Outcome, Server
from .secagg.session import Stage, Terms
from .secagg.shamir import SHARE_BYTES

log = logging.getLogger(__name__)

ITEM_BYTES = 8 + SEALED_BYTES + 32 + SIGNATURE_BYTES  # length of the longest entry in a list that a client sends
MOST_ATTEMPTS = 3  # most attempts at a round's sum; a further one leaves out who spoiled the one before


class SecureServer:
    """A round's session from the server's side: five stages, then the sum. See `core.sums.ServerSum`."""

    def __init__(self, encoder: Encoder, minimum_clients: int, meeting: Meeting, cohort: Sequence[int], roster: Roster):
        self.reply_bytes = 0
        self.counted: tuple[int, ...] = ()
        self._encoder, self._round, now = encoder, meeting.round, int(time.time())
        terms = terms_of(encoder, roster, minimum_clients, meeting, meeting.least or 0)
        self._lists = HEADER_BYTES + 4 + len(cohort) * ITEM_BYTES
        self._masked = HEADER_BYTES + terms.ring_length * encoder.encoding.dtype.itemsize
        # What it tells of each one's shares, and the names of those whose shares do not open.
        self._masked += 2 * 4 + (8 + SHARE_BYTES + 8) * (len(cohort) + 1)
        self._terms, self._cohort, self._meeting, self._now = terms, list(cohort), meeting, now
        self._attempt = 1
        self._disputed: set[Pair] = set()
        self._server = self._begin()
        self._outcome: Outcome | None = None
        self.left_out: dict[int, Failure] = {}
        self.is_spoiled = False

    def advance(self) -> Mapping[int, bytes]:
        """Return the next stage's messages; nothing once the sum is known. Errors: RunStopped when too few are left."""
        try:
            if self._server.stage is Stage.UNMASK:
                self._finish()
                return {}
            sent = self._advanced()
        except SecAggAbort as error:
            raise RunStopped(f"round {self._round}: no secure sum was formed: {error}") from error
        self.reply_bytes = self._masked if self._server.stage is Stage.MASK else self._lists
        return sent

    def receive(self, client: int, reply: bytes) -> Failure | None:
        """Take in a reply. A Failure, with the protocol's reason, for one that an honest client would not send."""
        try:
            self._server.receive(client, reply)
        except SecAggAbort as error:
            return Failure(client, error.reason, str(error))
        return None

    def total(self) -> Total:
        """Return the sum; that of nobody, where it was spoiled. Errors: RunStopped before the last stage is over."""
        if self.is_spoiled:
            return RoundResult.of_nobody().total
        if self._outcome is None:
            raise RunStopped(f"round {self._round}: no secure sum was formed")
        return self._encoder.decode(self._outcome.total, len(self._outcome.survivors))

    def _begin(self) -> Server:
        meeting = self._meeting
        terms, cohort, attempt = self._terms, self._cohort, self._attempt
        return Server(terms, cohort, meeting.run, meeting.round, attempt, self._now, self._disputed)

    def _advanced(self) -> Mapping[int, bytes]:
        """Return the next stage's messages; those of another attempt, without whoever spoiled this one.

        Another attempt is made only while nothing was revealed: two sums that differ by one client are that client's
        update. Clients, which remember what they revealed, have no part in an attempt after that either.
        """
        try:
            return self._server.advance()
        except Misbehaviour as error:
            culprit = error.culprit
            if not isinstance(culprit, int) or culprit not in self._cohort or self._attempt == MOST_ATTEMPTS:
                raise
            for client in (culprit, *error.others):
                self._leave_out(client, error.reason, str(error))
                self._cohort.remove(client)
            self._disputed |= self._server.disputed
            self._attempt += 1
            self._server = self._begin()
            return self._server.advance()

    def _leave_out(self, client: int, reason: str, detail: str) -> None:
        log.warning("round %d: client %d is left out (%s): %s", self._round, client, reason, detail)
        self.left_out[client] = Failure(client, reason, detail)

    def stands_for(self, bytes_up: int) -> int:
        """Return bytes_up: what was sent is the protocol's own."""
        return bytes_up

    def _finish(self) -> None:
        """Form the sum. One that is spoiled, now that shares have left, is not tried again: the round counts nobody."""
        try:
            outcome = self._server.finish()
        except Misbehaviour as error:
            self._spoil(str(error))
            if isinstance(error.culprit, int):
                self._leave_out(error.culprit, error.reason, str(error))
            return
        for client in outcome.left_out:
            self._leave_out(client, "bad_delivery", "its shares did not open, or it said so of others'")
        for dealer, sender in outcome.bad_shares:
            who = "a client that cannot be told" if sender is None else f"client {sender}"
            log.warning("round %d: %s revealed a wrong share of client %d's secret", self._round, who, dealer)
        if not self._encoder.encoding.holds(outcome.total, len(outcome.survivors)):
            self._spoil("its numbers are larger than so many updates can add up to, so that one of them was none")
            for dealer in {dealer for dealer, sender in outcome.bad_shares if dealer == sender}:
                self._leave_out(dealer, "bad_share", "it dealt shares of another secret than it committed to")
            return
        self._outcome, self.counted = outcome, outcome.survivors

    def _spoil(self, why: str) -> None:
        log.warning("round %d: the secure sum is spoiled, and the round counts nobody: %s", self._round, why)
        self.is_spoiled = True


class SecureClient:
    """A round's session from a client's side. See `core.sums.ClientSum`."""

    def __init__(
        self,
        encoder: Encoder,
        minimum_clients: int,
        meeting: Meeting,
        client: int,
        roster: Roster,
        identity: Ed25519PrivateKey,
        log: RoundLog,
    ):
        """Prepare a client's side. identity: its own long-term key, which the roster lists. log: its rounds so far."""
        self._encoder, self._meeting, self._number = encoder, meeting, client
        # Where its experiment does not say how few may take part, a client insists on two thirds of the roster.
        least = quorum(len(roster.members)) if meeting.least is None else meeting.least
        self._terms = terms_of(encoder, roster, minimum_clients, meeting, least)
        self._identity, self._log = identity, log
        self._client: Client | None = None
        self._values: np.ndarray | None = None  # the update's integers, until the sum of this round is unmasked

    def __repr__(self) -> str:
        return f"SecureClient(client={self._number}, round={self._meeting.round})"

    def check(self, message: bytes) -> Failure | None:
        """Return a Failure unless the offer is as expected: roster, model, parameters, a round not yet played."""
        try:
            self._begin(message)
        except SecAggAbort as error:
            return Failure(self._number, error.reason, str(error))
        return None

    def provide(self, update: ClientUpdate, key: Key) -> Failure | None:
        """Encode the update, to be masked when the stage comes; one that is not finite weighs 0."""
        assert self._client is not None
        self._values = self._encoder.encode_or_nothing(update, key)
        self._client.provide(self._values)
        return None

    def answer(self, message: bytes) -> bytes | Failure:
        """Return the reply to the server's next message."""
        assert self._client is not None
        try:
            if peek(message)[0] is Kind.OFFER and self._client.stage is not Stage.ADVERTISE:
                self._begin_again(message)
            reply = self._client.answer(message)
        except SecAggAbort as error:
            return Failure(self._number, error.reason, str(error))
        if self._client.stage is Stage.DONE:
            self._values = None
        return reply

    def abandon(self) -> None:
        """Erase what is secret, and answer nothing more."""
        self._values = None
        if self._client is not None:
            self._client.abandon()

    def _begin_again(self, message: bytes) -> None:
        """Begin another attempt at the round's sum, of the same update under fresh masks.

        Errors: Misbehaviour by the server once shares have left this client, and for one attempt too many.
        """
        attempt = Offer.decode(message).attempt
        if attempt > MOST_ATTEMPTS or self._values is None:
            raise Misbehaviour("replayed_session", f"attempt {attempt} at round {self._meeting.round}", SERVER)
        if self._client is not None:
            self._client.abandon()
        self._begin(message)
        assert self._client is not None
        self._client.provide(self._values)

    def _begin(self, message: bytes) -> None:
        offer, expected = Offer.decode(message), self._meeting
        if (offer.run, offer.round) != (expected.run, expected.round):
            raise Misbehaviour("other_session", f"an offer for round {offer.round}, not {expected.round}", SERVER)
        self._terms.check_offer(offer)
        self._log.check(offer.run, offer.round, offer.attempt)
        now = int(time.time())
        self._client = Client(self._number, self._identity, self._terms, None, now, self._log)


def terms_of(encoder: Encoder, roster: Roster, minimum_clients: int, meeting: Meeting, least: int) -> Terms:
    """Return the terms that a party insists on. least: clients that have to take part."""
    return Terms(roster, encoder.encoding, encoder.layout.size, meeting.model, minimum_clients, least)


def kept_log(path: Path) -> RoundLog:
    """Read from its file what a client took part in; the file follows every change.

    Errors: ConfigError for a file that does not read back.
    """
    try:
        noted = json.loads(path.read_text("utf-8"))
        answered = {str(run): (int(round), int(attempt)) for run, (round, attempt) in noted["answered"].items()}
        unmasked = {str(run): int(round) for run, round in noted["unmasked"].items()}
    except FileNotFoundError:
        answered, unmasked = {}, {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} says what this client took part in, and cannot be read ({error}); restore it: a client that "
            "forgets can be asked for a second sum of one round"
        ) from error

    def keep(changed: RoundLog) -> None:
        text = json.dumps({"answered": changed.answered, "unmasked": changed.unmasked})
        write_atomically(path, text.encode())

    return RoundLog(answered, unmasked, keep)
