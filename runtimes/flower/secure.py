"""The server's side of a hidden sum: the stages of an aggregation, carried by Flower's messages.

Keys, masks and ciphertexts are the aggregation's business, in `privacy`. Here its bytes are sent and collected; who
does not answer a stage in time, or answers what is refused, is out of the round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from flwr.app import Message, RecordDict

from ...core.errors import ConfigError, IncompatibleError, RunStopped
from ...core.experiment import Experiment
from ...core.sums import Meeting, ServerSum
from ...core.types import Failure, Total
from . import wire
from .check import SLACK_BYTES, check_content
from .exchange import Exchange, bytes_received, bytes_sent
from .identity import KIT_VARIABLE

# As KIT_VARIABLE, for a party of a federation inside one machine, which has no kit but for hidden sums.
LOCAL_KIT_VARIABLE = "UMBEL_LOCAL_KIT"
STAGE_SECONDS = 120.0  # for a reply to a stage in which nobody trains; less where a round has less
FIRST, LATER = "train", "train.stage"  # kinds of messages

# (kind of message, contents by client, label, most bytes of an array of a reply, is it short) → an Exchange
Ask = Callable[[str, Mapping[int, RecordDict], str, int, bool], Exchange]
Note = Callable[[int, Failure], None]  # of a round


class Collected(NamedTuple):
    """What came of a cohort's stages."""

    total: Total
    failures: list[Failure]
    bytes_up: int
    bytes_down: int


def kit_folder() -> Path:
    """The folder with what this process's party proves itself by. Errors: ConfigError where it has none."""
    named = os.environ.get(KIT_VARIABLE) or os.environ.get(LOCAL_KIT_VARIABLE)
    if not named:
        raise ConfigError(
            f"updates are hidden between parties that have kits, and {KIT_VARIABLE} names none; start this federation "
            "from kits (umbel deploy init), or on this machine: umbel run --runtime flower"
        )
    return Path(named)


def check_hidden(experiment: Experiment, over_selection: float) -> None:
    """Errors: IncompatibleError, ConfigError for what an experiment's aggregation cannot hide on real devices."""
    aggregation = experiment.aggregation
    if aggregation is None:
        return
    if not hasattr(aggregation, "server") or not hasattr(aggregation, "client"):
        raise ConfigError(f"{aggregation!r} runs in simulation only; drop it, or --runtime flower")
    if over_selection > 1:
        raise IncompatibleError(
            f"over_selection={over_selection:g} lets the slower updates go; {aggregation!r} sums those of the whole "
            "cohort, and can do without a third of it: use 1"
        )
    if experiment.validation is not None:
        raise IncompatibleError(
            f"validation has each client report metrics of its own, and {aggregation!r} is to hide what single clients "
            "say; evaluate on the server's test examples instead"
        )
    kit_folder()


def collect_hidden(
    meeting: Meeting, session: ServerSum, contents: Mapping[int, RecordDict], ask: Ask, note: Note
) -> Collected:
    """Play the stages. contents: each client's broadcast and order, which the first stage's message joins.

    note: told of each client that is left out, as it happens. Errors: RunStopped when too few are left at a stage.
    """
    failures: list[Failure] = []
    number = up = down = 0
    try:
        while messages := session.advance():
            sent = _packed(meeting, number, messages, contents)
            kind, label = (
                (LATER, f"stage {number} of round {meeting.round}") if number else (FIRST, f"round {meeting.round}")
            )
            down += bytes_sent(sent)
            with ask(kind, sent, label, session.reply_bytes + SLACK_BYTES, number > 0) as exchange:
                for client, reply in exchange.replies(in_order=False):
                    up += bytes_received(reply)
                    failure = _taken(meeting, number, session, client, reply)
                    if failure is not None:
                        note(meeting.round, failure)
                        failures.append(failure)
            number += 1
        return Collected(session.total(), failures, up, down)
    except RunStopped as stopped:
        raise RunStopped(f"{stopped}{_told(failures)}") from stopped


def _packed(
    meeting: Meeting, number: int, messages: Mapping[int, bytes], contents: Mapping[int, RecordDict]
) -> dict[int, RecordDict]:
    """A stage's contents. What several clients are sent alike is one record: Flower sends and hashes it once."""
    alike: dict[int, RecordDict] = {}
    for message in messages.values():
        if id(message) not in alike:
            alike[id(message)] = wire.pack_stage(
                wire.Stage(meeting.run, meeting.round, number, meeting.cohort, message)
            )
    return {
        client: RecordDict({**({} if number else contents[client]), **alike[id(message)]})
        for client, message in messages.items()
    }


def _taken(meeting: Meeting, number: int, session: ServerSum, client: int, reply: Message | Failure) -> Failure | None:
    """None for a reply that the session took in; else why not."""
    if isinstance(reply, Failure):
        return reply
    try:
        failure = check_content(reply, client) or wire.unpack_failure(reply.content, client)
        if failure is not None:
            return failure
        stage = wire.unpack_stage(reply.content)
    except wire.Malformed as malformed:
        return Failure(client, malformed.reason, malformed.detail)
    expected = (meeting.run, meeting.round, number)
    if stage[:3] != expected:
        return Failure(client, "stale", f"expected a reply to stage {number} of round {meeting.round}, got another's")
    return session.receive(client, stage.message)


def _told(failures: list[Failure]) -> str:
    """Who failed, and why, for the error that ends a run."""
    if not failures:
        return ""
    reasons = ", ".join(sorted({failure.reason for failure in failures}))
    return f" ({len(failures)} failed: {reasons}; client {failures[0].client}: {failures[0].detail})"
