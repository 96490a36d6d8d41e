"""Secure sums among real devices: the state machines of `secagg`, between a runtime and the files of kits.

Clients train before they advertise keys, so that whoever fails at its training leaves no masks behind. What a client
took part in is on its disk before anything leaves it: a client that was started again is not asked twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.errors import ConfigError, RunStopped
from ..core.random import Key
from ..core.sums import Meeting
from ..core.types import ClientUpdate, Failure, Total
from .credentials import identity_in, roster_in, write_atomically
from .encoder import Encoder, encoded_or_failure
from .secagg.client import Client, RoundLog
from .secagg.errors import SERVER, Misbehaviour, SecAggAbort
from .secagg.messages import HEADER_BYTES, SEALED_BYTES, SIGNATURE_BYTES, Offer
from .secagg.server import Outcome, Server
from .secagg.session import Stage, Terms

log = logging.getLogger(__name__)

ITEM_BYTES = 8 + SEALED_BYTES + SIGNATURE_BYTES  # of the longest entry in a list that a client sends
ATTEMPT = 1  # a round that is abandoned ends the run; resumed, the server has another name


class SecureServer:
    """A round's session from the server's side: five stages, then the sum. See `core.sums.ServerSum`."""

    def __init__(self, encoder: Encoder, minimum_clients: int, meeting: Meeting, cohort: Sequence[int], kit: Path):
        self.reply_bytes = 0
        self.counted: tuple[int, ...] = ()
        self._encoder, self._round, now = encoder, meeting.round, int(time.time())
        terms = Terms(roster_in(kit), encoder.encoding, encoder.layout.size, meeting.model, minimum_clients)
        self._lists = HEADER_BYTES + 4 + len(cohort) * ITEM_BYTES
        self._masked = HEADER_BYTES + terms.ring_length * encoder.encoding.dtype.itemsize
        self._server = Server(terms, cohort, meeting.run, meeting.round, ATTEMPT, now)
        self._outcome: Outcome | None = None

    def advance(self) -> Mapping[int, bytes]:
        """The next stage's messages; nothing once the sum is known. Errors: RunStopped when too few are left."""
        try:
            if self._server.stage is Stage.UNMASK:
                self._finish()
                return {}
            sent = self._server.advance()
        except SecAggAbort as error:
            raise RunStopped(f"round {self._round}: no secure sum was formed: {error}") from error
        self.reply_bytes = self._masked if self._server.stage is Stage.MASK else self._lists
        return sent

    def receive(self, client: int, reply: bytes) -> Failure | None:
        """Take in a reply; a Failure with the protocol's reason for one that an honest client would not send."""
        try:
            self._server.receive(client, reply)
        except SecAggAbort as error:
            return Failure(client, error.reason, str(error))
        return None

    def total(self) -> Total:
        """The sum. Errors: RunStopped before the last stage is over."""
        if self._outcome is None:
            raise RunStopped(f"round {self._round}: no secure sum was formed")
        return self._encoder.decode(self._outcome.total, len(self._outcome.survivors))

    def _finish(self) -> None:
        outcome = self._server.finish()
        for dealer, sender in outcome.bad_shares:
            log.warning("round %d: client %d revealed a wrong share of client %d's secret", self._round, sender, dealer)
        self._outcome, self.counted = outcome, outcome.survivors


class SecureClient:
    """A round's session from a client's side. See `core.sums.ClientSum`."""

    def __init__(self, encoder: Encoder, minimum_clients: int, meeting: Meeting, client: int, kit: Path, home: Path):
        self._encoder, self._meeting, self._number = encoder, meeting, client
        self._roster, self._identity = roster_in(kit), identity_in(kit)
        self._terms = Terms(self._roster, encoder.encoding, encoder.layout.size, meeting.model, minimum_clients)
        self._log = kept_log(home / f"secure-sums-{client}.json")
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"SecureClient(client={self._number}, round={self._meeting.round})"

    def check(self, message: bytes) -> Failure | None:
        """Whether the server's offer is what this client expects: roster, model, parameters, a round not yet played."""
        try:
            self._begin(message)
        except SecAggAbort as error:
            return Failure(self._number, error.reason, str(error))
        return None

    def provide(self, update: ClientUpdate, key: Key) -> Failure | None:
        """Encode the update, to be masked when the stage comes."""
        assert self._client is not None
        values = encoded_or_failure(self._encoder, self._number, update, key)
        if isinstance(values, Failure):
            self.abandon()
            return values
        self._client.provide(values)
        return None

    def answer(self, message: bytes) -> bytes | Failure:
        """The reply to the server's next message."""
        assert self._client is not None
        try:
            return self._client.answer(message)
        except SecAggAbort as error:
            return Failure(self._number, error.reason, str(error))

    def abandon(self) -> None:
        """Erase what is secret, and answer nothing more."""
        if self._client is not None:
            self._client.abandon()

    def _begin(self, message: bytes) -> None:
        offer, expected = Offer.decode(message), self._meeting
        if (offer.run, offer.round) != (expected.run, expected.round):
            raise Misbehaviour("other_session", f"an offer for round {offer.round}, not {expected.round}", SERVER)
        self._terms.check_offer(offer)
        self._log.check(offer.run, offer.round, offer.attempt)
        now = int(time.time())
        self._client = Client(self._number, self._identity.signing, self._terms, None, now, self._log)


def kept_log(path: Path) -> RoundLog:
    """What a client took part in, as its file says; the file follows every change.

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
