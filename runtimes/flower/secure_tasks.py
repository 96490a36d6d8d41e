"""A client's side of a hidden sum: what it trained waits here, in its process, between one stage and the next.

Nothing of it is on disk: with the process a client's part in the round is over. A message that comes a second time,
since a reply was lost on its way, is given the same reply, and a state machine sees each but once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from ...core.errors import ConfigError
from ...core.parts.sampling import least_cohort
from ...core.random import Key
from ...core.recipe import Recipe
from ...core.sums import ClientSum, Joins, Meeting, digest_of
from ...core.types import Broadcast, ClientUpdate, Failure
from . import wire
from .secure import kit_folder

log = logging.getLogger(__name__)  # the client's own log: nothing in it is sent

RUNS = 2  # number of runs, of those that take turns, whose sums are under way in a process


@dataclass
class SumPart:
    """A client's part in a round's sum."""

    client: int
    meeting: Meeting
    half: ClientSum
    seen: wire.SumMessage  # the last message from the server
    reply: RecordDict | None = None  # the reply to that message

    def __repr__(self) -> str:
        return f"Part(client={self.client}, round={self.meeting.round})"

    def before(self, stage: wire.SumMessage) -> RecordDict | Failure | None:
        """Return the reply that was given, to the last message again; a Failure for one before it; None for any other.

        After an outage, a message may come twice, and the second time after those that followed it.
        """
        if (stage.run, stage.round) != (self.meeting.run, self.meeting.round):
            return None
        if stage.number < self.seen.number:
            return Failure(self.client, "stale", f"stage {stage.number} of round {stage.round} is over")
        return self.reply if stage == self.seen else None

    def answer(self, stage: wire.SumMessage) -> RecordDict | Failure:
        """Return the reply to the server's next message."""
        found = self.half.answer(stage.message)
        if isinstance(found, Failure):
            return found
        self.seen, self.reply = stage, wire.pack_stage(stage._replace(message=found))
        return self.reply


_parts: dict[tuple[int, int], SumPart] = {}  # (run, client)


def begin(
    run: int,
    client: int,
    experiment: Recipe,
    joins: Joins,
    digest: str,
    broadcast: Broadcast,
    content: RecordDict,
    home: Path,
) -> SumPart | RecordDict | Failure:
    """Begin the client's part in a sum, before it trains, once what the server proposes has been looked at.

    Returns what it replied, where the client has its part already and this is its first message again; a Failure where
    it refuses.

    run: Flower's number. joins: how the states of the metrics that this client's model measures join. digest: the
    experiment's, as the server has it, too. home: folder where the client keeps what outlives its process.

    Errors: Malformed; ConfigError for a kit that lacks something.
    """
    stage = wire.unpack_stage(content)
    known = _parts.get((run, client))
    if known is not None and (given := known.before(stage)) is not None:
        return given
    _drop(run, client)
    model = digest_of(broadcast, digest)
    # The size of the cohort is the server's word; how few it may be is this client's own experiment's.
    least = least_cohort(experiment.sampler, len(experiment.population))
    shape = experiment.encoded_shape(broadcast)
    meeting = Meeting(stage.run, broadcast.round, stage.cohort, shape, model, least, joins)
    aggregation: Any = experiment.secure_aggregation
    part = SumPart(client, meeting, aggregation.client(meeting, client, kit_folder(), home), stage)
    refused = part.half.check(stage.message)
    return part if refused is None else refused


def enter(run: int, part: SumPart, update: ClientUpdate) -> RecordDict | Failure:
    """Hand in what was trained, and answer the first message."""
    # Not the key that the server gave: whoever knows how a number was rounded knows it a little better.
    try:
        refused = part.half.provide(update, Key.fresh())
    except ConfigError as error:  # it weighs more than a client may: a failure would tell of how many examples it has
        log.warning("client %d adds nothing to the sum: %s", part.client, error)
        nothing = update._replace(
            delta=np.zeros_like(update.delta), extra=np.zeros_like(update.extra), weight=0.0, metrics={}
        )
        refused = part.half.provide(nothing, Key.fresh())
    if refused is not None:
        return refused
    _make_room(run)
    _parts[run, part.client] = part
    return _finished(run, part, part.answer(part.seen))


def go_on(run: int, client: int, content: RecordDict) -> RecordDict | Failure:
    """Return the reply to a later message of a sum that this process has a part in."""
    try:
        stage = wire.unpack_stage(content)
    except wire.Malformed as malformed:
        return Failure(client, malformed.reason, malformed.detail)
    part = _parts.get((run, client))
    if part is None or (part.meeting.run, part.meeting.round) != (stage.run, stage.round):
        return Failure(
            client,
            "no_session",
            f"this process has no part in the sum of round {stage.round}: it was started since, or dropped it; its "
            "worker has to outlive a round, as Umbel's does",
        )
    given = part.before(stage)
    return _finished(run, part, part.answer(stage)) if given is None else given


def _finished(run: int, part: SumPart, reply: RecordDict | Failure) -> RecordDict | Failure:
    """Return the reply; with a Failure the client's part is over."""
    if isinstance(reply, Failure):
        _drop(run, part.client)
    return reply


def _make_room(run: int) -> None:
    """Drop the parts in the runs that began first, where there are too many."""
    others = list(dict.fromkeys(of for of, _ in _parts if of != run))
    for other in others[: max(0, len(others) + 1 - RUNS)]:
        for one in [one for one in _parts if one[0] == other]:
            _drop(*one)


def _drop(run: int, client: int) -> None:
    """Erase a part."""
    part = _parts.pop((run, client), None)
    if part is not None:
        part.half.abandon()
