"""The server's side of a hidden sum: the stages of an aggregation, carried by Flower's messages.

Keys, masks and ciphertexts are the aggregation's business, in `privacy`. Here its bytes are sent and collected; who
does not answer a stage in time, or answers what is refused, is out of the round.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message, RecordDict

from ...core.errors import ConfigError, IncompatibleError
from ...core.parts.private import RemoteAggregation
from ...core.recipe import Recipe
from ...core.sums import Meeting
from ...core.types import Failure
from . import wire
from .check import check_content
from .identity import KIT_VARIABLE
from .malformed import reading

# Same as KIT_VARIABLE, for a party of a federation inside one machine, which has no kit but for hidden sums.
LOCAL_KIT_VARIABLE = "UMBEL_LOCAL_KIT"
STAGE_SECONDS = 120.0  # time for a reply to a stage in which nobody trains; less where a round has less
FIRST, LATER = "train", "train.stage"  # kinds of messages


def kit_folder() -> Path:
    """Return the folder with what this process's party proves itself by. Errors: ConfigError where it has none."""
    named = os.environ.get(KIT_VARIABLE) or os.environ.get(LOCAL_KIT_VARIABLE)
    if not named:
        raise ConfigError(
            f"updates are hidden between parties that have kits, and {KIT_VARIABLE} names none; start this federation "
            "from kits (umbel deploy init), or on this machine: umbel run --runtime flower"
        )
    return Path(named)


def check_hidden(experiment: Recipe, over_selection: float) -> None:
    """Raise IncompatibleError or ConfigError for what an experiment's aggregation cannot hide on real devices."""
    aggregation = experiment.secure_aggregation
    if aggregation is None:
        return
    if not isinstance(aggregation, RemoteAggregation):
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


def pack_messages(meeting: Meeting, number: int, messages: Mapping[int, bytes]) -> dict[int, RecordDict]:
    """Pack a stage's messages. What several clients are sent alike is one record: Flower sends and hashes it once."""
    alike: dict[int, RecordDict] = {}
    for message in messages.values():
        if id(message) not in alike:
            stage = wire.SumMessage(meeting.run, meeting.round, number, meeting.cohort, message)
            alike[id(message)] = wire.pack_stage(stage)
    return {client: alike[id(message)] for client, message in messages.items()}


def check_stage(meeting: Meeting, number: int, client: int, reply: Message | Failure) -> bytes | Failure:
    """Return a client's reply to a stage; or why there is none."""
    if isinstance(reply, Failure):
        return reply
    try:
        with reading(f"client {client}'s reply"):
            failure = check_content(reply, client) or wire.unpack_failure(reply.content, client)
            if failure is not None:
                return failure
            stage = wire.unpack_stage(reply.content)
    except wire.Malformed as malformed:
        return Failure(client, malformed.reason, malformed.detail)
    expected = (meeting.run, meeting.round, number)
    if stage[:3] != expected:
        return Failure(client, "stale", f"expected a reply to stage {number} of round {meeting.round}, got another's")
    return stage.message
