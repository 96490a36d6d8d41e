"""Checks at the edge: nothing that a client sent goes further before it has passed here."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from flwr.app import Message

from ...core.aggregators import decoded
from ...core.bases import Codec
from ...core.errors import ClientError
from ...core.types import ClientUpdate, CodedUpdate, Failure, Metrics
from .malformed import Malformed, reading
from .wire import MAX_TEXT, NO_JOINS, Joins, unpack_failure, unpack_metrics, unpack_update

# Reasons for Flower's error codes that are not the client's code: its message expired, its node is gone.
FLOWER_REASONS = {3: "timeout", 5: "unreachable"}


SLACK_BYTES = 1 << 16


class Expected(NamedTuple):
    """The form of a valid reply of one client."""

    client: int
    round: int
    size: int  # length of delta as it leaves the client
    extra_size: int
    max_weight: float  # largest weight: the client's number of examples, or 1
    codec: Codec | None = None  # codec that delta travels with
    joins: Joins = NO_JOINS  # how the states join that this server's model measures in training

    @property
    def bytes(self) -> int:
        """Bytes of its vectors, and a little for one that is of another type and has to be named."""
        delta = 4 * self.size if self.codec is None else self.codec.payload_bytes(self.size)
        return delta + 4 * self.extra_size + state_bytes(self.joins)


def check_update(reply: Message, expected: Expected) -> ClientUpdate | Failure:
    """Return the update in reply; or, for whatever is wrong with it, a Failure with a reason and the value.

    Reasons: "schema", "dtype", "shape", "metrics", "round", "weight", "codec", "non_finite"; "client_error" when the
    client's code raised or its process died, "unreachable" when its node is gone; or the client's own. Guarantees of an
    update: delta and extra are float32 of the expected lengths, and finite with a finite squared norm;
    0 < weight ≤ max_weight; metrics are finite sums over counts ≥ 0.
    """
    client = expected.client
    try:
        with reading(f"client {client}'s reply"):
            failure = check_content(reply, client) or unpack_failure(reply.content, client)
            if failure is not None:
                return failure
            round, sent = unpack_update(reply.content, expected.codec is not None, expected.joins)
            update = _decoded(sent, expected)
            _check_bounds(round, update, expected)
    except Malformed as malformed:
        return Failure(client, malformed.reason, malformed.detail)
    return update._replace(weight=float(update.weight))


def state_bytes(joins: Joins) -> int:
    """Return the most bytes of the metrics in a reply, each for a client's own model as well."""
    return SLACK_BYTES + 2 * sum(8 * count + 200 for runs in joins.values() for _, count in runs or [("sum", 2)])


def check_metrics(reply: Message, client: int, joins: Joins) -> Metrics | Failure:
    """Return the metrics in the reply to an evaluation, or why there are none. joins: see `wire.unpack_metrics`."""
    try:
        with reading(f"client {client}'s reply"):
            failure = check_content(reply, client) or unpack_failure(reply.content, client)
            return failure or unpack_metrics(reply.content, joins)
    except Malformed as malformed:
        return Failure(client, malformed.reason, malformed.detail)


def check_content(reply: Message, client: int) -> Failure | None:
    """Return None when reply has content; else Flower's own error, with its code and words."""
    if reply.has_content():
        return None
    error = reply.error
    reason = FLOWER_REASONS.get(error.code, "client_error")
    return Failure(client, reason, f"Flower error {error.code}: {(error.reason or 'no reason given')[:MAX_TEXT]}")


def _decoded(sent: ClientUpdate | CodedUpdate, expected: Expected) -> ClientUpdate:
    """Decode an update that travelled with a codec. Raise Malformed for a payload that the codec did not make."""
    if isinstance(sent, ClientUpdate):
        return sent
    try:
        return decoded(sent, expected.codec, expected.size)
    except ClientError as error:
        raise Malformed("codec", str(error)) from error


def _check_bounds(round: int, update: ClientUpdate, expected: Expected) -> None:
    """Raise Malformed for a well-formed update with a value out of bounds."""
    if round != expected.round:
        raise Malformed("round", f"expected an update for round {expected.round}, got one for {round}")
    for name, vector, size in (("delta", update.delta, expected.size), ("extra", update.extra, expected.extra_size)):
        if len(vector) != size:
            raise Malformed("shape", f"expected {name} of shape ({size},), got {vector.shape}")
        with np.errstate(all="ignore"):
            # One pass that also catches numbers so large that a sum over clients would not be finite.
            squared_norm = float(np.dot(vector, vector))
        if not math.isfinite(squared_norm):
            raise Malformed("non_finite", f"expected {name} to be finite, its squared norm is {squared_norm}")
    if not 0 < update.weight <= expected.max_weight:
        raise Malformed("weight", f"expected 0 < weight={update.weight!r} ≤ {expected.max_weight:g}")
