"""Messages on the wire: broadcasts, updates and metrics as Flower records, and back, bit for bit.

    to a client      "vectors": params, extra           "broadcast": round, rate, transforms
                                                     "order": digest, compile, key, memory, since, terms, base, number,
                                                     committed
    from a client    "vectors": delta, extra            "update": round, weight          "metrics": name → [sum, count]
                     with a codec: payload, extra                                        "states": name → float64
                 or  "failure": round, reason, detail
    of a cut model   "vectors" of the client's half      "steps": session, key; in its reply: attempt
    of a hidden sum  "message": message                 "stage": run, round, number, cohort      either way

A vector is its raw little-endian float32: no header to parse, and a length that either fits its shape or does not.
Unpacking trusts nothing: whatever does not have this form raises Malformed. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ...core.parts.phases import PERSONAL
from ...core.random import Key
from ...core.serial import dumps, loads
from ...core.types import Broadcast, ClientUpdate, CodedUpdate, Failure, Join, Metrics, MetricState, State, Weighted
from .greeting import Invitation
from .malformed import Malformed
from .objects import array_record, raw_array

RAW = "umbel.raw"  # type of an Array whose bytes are in C order, little-endian, nothing else
NAMES = frozenset(
    ["bool", "float16", "float32", "float64", "bfloat16"] + [f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64)]
)
FORMAT = 5  # number of the format that is described here
VERSION = version("umbel")
MAX_METRICS = 256
STEPS = "steps"  # name of a record of what trains in two halves
Joins = Mapping[str, tuple[tuple[Join, int], ...]]
NO_JOINS: Joins = {}
MAX_TEXT = 500  # most characters of a client's own words that the server keeps


class Order(NamedTuple):
    """All that a client is told besides the broadcast."""

    digest: str  # digest of the server's experiment
    compile: str  # "xla" or "graph": the same as for the server's own model
    key: Key  # this client's key in this round
    memory: str = ""  # name under which clients keep their memory in this run; "" where they keep nothing
    since: int = 0  # number of this client's last work that counted: the one whose memory counts; 0 for none
    terms: str = ""  # terms on which the server's model measures, which the client's takes over
    base: str = ""  # digest of what the server's model holds in its frozen variables; "" where none is frozen
    number: int = 0  # number of this work, under which the client keeps its memory: the round's, or one of its own
    committed: int = 0  # number whose memory counts if the server dies now: another where this client landed since


class Reply(NamedTuple):
    """A client's update, and the round it says it is for."""

    round: int
    update: ClientUpdate | CodedUpdate


class SumMessage(NamedTuple):
    """A message of a round's hidden sum, or the reply to it."""

    run: str  # the server's name for the rounds that it plays without a restart
    round: int
    number: int  # number of the stage, from 0
    cohort: int  # number of clients that were asked
    message: bytes  # the aggregation's message: nothing else reads it

    def __repr__(self) -> str:
        return f"Stage(round={self.round}, number={self.number}, message={len(self.message)} bytes hidden)"


def pack_broadcast(broadcast: Broadcast) -> RecordDict:
    """Pack the part that a whole cohort shares: Flower stores and hashes equal objects once."""
    rate = broadcast.learning_rate
    order: dict[str, Any] = {
        "format": FORMAT,
        "round": broadcast.round,
        "transforms": dumps(broadcast.transforms),
    }
    if rate is not None:
        order["learning_rate"] = float(rate)
    vectors = array_record({"params": pack_array(broadcast.params), "extra": pack_array(broadcast.extra)})
    return RecordDict({"vectors": vectors, "broadcast": ConfigRecord(order)})


def pack_order(shared: RecordDict, order: Order) -> RecordDict:
    """Pack one client's message: the shared part, and what is this client's alone."""
    own = ConfigRecord({**order._asdict(), "key": order.key.digest})
    return RecordDict({**shared, "order": own})


def unpack_order(content: RecordDict) -> Order:
    """Invert `pack_order`."""
    record = _record(content, "order", ConfigRecord)
    texts, numbers = ("digest", "compile", "memory", "terms", "base"), ("since", "number", "committed")
    kinds: dict[str, type] = {**dict.fromkeys(texts, str), **dict.fromkeys(numbers, int), "key": bytes}
    fields = {name: _field(record, name, kind) for name, kind in kinds.items()}
    return Order(**{**fields, "key": Key(fields["key"])})


def unpack_broadcast(content: RecordDict, like: State = None) -> Broadcast:
    """Invert `pack_broadcast`. like: a transforms' state, for the classes of its named tuples.

    Errors: Malformed; StoreError for a transforms' state that does not read back.
    """
    record = _record(content, "broadcast", ConfigRecord)
    if record.get("format") != FORMAT:
        raise Malformed("schema", f"expected format {FORMAT}, got {record.get('format')!r}: another version of Umbel")
    params, extra = _vectors(content, params="float32", extra="float32")
    rate = _field(record, "learning_rate", float) if "learning_rate" in record else None
    transforms = loads(_field(record, "transforms", bytes), like)
    return Broadcast(_field(record, "round", int), params, extra, transforms, rate)


def pack_update(round: int, update: ClientUpdate | CodedUpdate) -> RecordDict:
    """Pack a client's update, as its reply."""
    if isinstance(update, CodedUpdate):
        first = {"payload": pack_array(np.frombuffer(update.payload, np.uint8))}
    else:
        first = {"delta": pack_array(update.delta)}
    vectors = array_record({**first, "extra": pack_array(update.extra)})
    about = ConfigRecord({"round": round, "weight": update.weight})
    return RecordDict({"vectors": vectors, "update": about, **pack_metrics(update.metrics)})


def unpack_update(content: RecordDict, is_coded: bool = False, joins: Joins = NO_JOINS) -> Reply:
    """Invert `pack_update`; values are of the right kind, but not yet within any bounds. Errors: Malformed.

    is_coded: whether an update through a codec is expected, and no other. joins: see `unpack_metrics`.
    """
    about = _record(content, "update", ConfigRecord)
    kinds = {"payload": "uint8"} if is_coded else {"delta": "float32"}
    first, extra = _vectors(content, **kinds, extra="float32")
    weight = about.get("weight")
    if not isinstance(weight, (int, float)) or isinstance(weight, bool):
        raise Malformed("weight", f"expected weight={weight!r} to be a number")
    rest = extra, weight, unpack_metrics(content, joins)
    update = CodedUpdate(first.tobytes(), *rest) if is_coded else ClientUpdate(first, *rest)
    return Reply(_field(about, "round", int), update)


def pack_stage(stage: SumMessage) -> RecordDict:
    """Pack a message of a hidden sum."""
    about = {name: value for name, value in stage._asdict().items() if name != "message"}
    message = pack_array(np.frombuffer(stage.message, np.uint8))
    return RecordDict({"stage": ConfigRecord(about), "message": array_record({"message": message})})


def unpack_stage(content: RecordDict) -> SumMessage:
    """Invert `pack_stage`. Errors: Malformed."""
    about = _record(content, "stage", ConfigRecord)
    round, number, cohort = (_field(about, name, int) for name in ("round", "number", "cohort"))
    (message,) = _vectors(content, "message", message="uint8")
    return SumMessage(_field(about, "run", str), round, number, cohort, message.tobytes())


def pack_invitation(invitation: Invitation) -> RecordDict:
    """Pack what a client is told of the session that its steps are taken in."""
    return RecordDict({STEPS: ConfigRecord({"session": invitation.session, "key": invitation.key})})


def unpack_invitation(content: RecordDict) -> Invitation:
    """Invert `pack_invitation`. Errors: Malformed."""
    record = _record(content, STEPS, ConfigRecord)
    return Invitation(_field(record, "session", str), _field(record, "key", bytes))


def pack_attempt(attempt: str) -> RecordDict:
    """Pack the attempt that an update is of."""
    return RecordDict({STEPS: ConfigRecord({"attempt": attempt})})


def unpack_attempt(content: RecordDict) -> str:
    """Return the attempt that a reply names. Errors: Malformed."""
    return _field(_record(content, STEPS, ConfigRecord), "attempt", str)


def pack_failure(round: int, failure: Failure) -> RecordDict:
    """Pack why there is no update, in the client's words."""
    return RecordDict(
        {"failure": ConfigRecord({"round": round, "reason": failure.reason, "detail": failure.detail[:MAX_TEXT]})}
    )


def unpack_failure(content: RecordDict, client: int) -> Failure | None:
    """Return the failure that a reply reports; None for a reply that reports none. Errors: Malformed."""
    if "failure" not in content:
        return None
    record = _record(content, "failure", ConfigRecord)
    reason, detail = (_field(record, name, str) for name in ("reason", "detail"))
    if not re.fullmatch("[a-z_]{1,32}", reason):
        raise Malformed("schema", f"expected reason={reason[:80]!r} to be a short code")
    return Failure(client, reason, detail[:MAX_TEXT])


def pack_metrics(metrics: Metrics) -> dict[str, Any]:
    """Pack two records: means as [sum, count] by name, and the numbers of other states."""
    means: dict[str, Any] = {
        name: [float(value.sum), float(value.count)] for name, value in metrics.items() if is_mean(value)
    }
    states = {name: pack_array(value.numbers) for name, value in metrics.items() if isinstance(value, MetricState)}
    return {"metrics": MetricRecord(means)} | ({"states": array_record(states)} if states else {})


def unpack_metrics(content: RecordDict, joins: Joins = NO_JOINS) -> dict[str, Weighted | MetricState]:
    """Invert `pack_metrics`.

    joins: how the numbers of each state join that this server's own model measures, by name; () for a mean. Errors:
    Malformed for anything but finite sums over counts ≥ 0, and states of as many numbers that can be joined.
    """
    record = _record(content, "metrics", MetricRecord)
    most = MAX_METRICS + 2 * len(joins)
    if len(record) > most:
        raise Malformed("metrics", f"expected at most {most} metrics, got {len(record)}")
    metrics: dict[str, Weighted | MetricState] = {}
    for name, pair in record.items():
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(number, float) for number in pair)
        if not is_pair or not all(map(math.isfinite, pair)) or pair[1] < 0 or (pair[1] == 0 and pair[0] != 0):
            raise Malformed("metrics", f"expected {name[:80]}={pair!r} to be a finite sum and a count ≥ 0"[:MAX_TEXT])
        if joins.get(name):
            raise Malformed("metrics", f"expected the state of {name!r}, got a mean")
        metrics[name] = Weighted(*pair)
    states = _record(content, "states", ArrayRecord) if "states" in content else {}
    return metrics | {name: _state(name, array, joins) for name, array in states.items()}


def _state(name: str, array: Array, joins: Joins) -> MetricState:
    """Return a metric's state as it arrived. Raise Malformed for one that this server's model does not have."""
    expected = joins.get(name) or joins.get(name.removeprefix(PERSONAL), ())
    size = sum(count for _, count in expected)
    if not size or array.dtype != "float64" or list(array.shape) != [size]:
        kind = f"{array.dtype[:20]}{list(array.shape)[:8]}"
        raise Malformed("metrics", f"expected {name[:80]!r} of {size} float64 numbers, got {kind}")
    numbers = unpack_array(array)
    # A maximum, or a minimum, of nothing may be infinite; a sum may not, and NaN is no number of any state.
    is_sum = np.concatenate([np.full(count, join == "sum") for join, count in expected])
    if np.isnan(numbers).any() or not np.isfinite(numbers[is_sum]).all():
        raise Malformed("metrics", f"expected the state of {name[:80]!r} to be finite")
    return MetricState(numbers, expected)


def is_mean(value: Weighted | MetricState) -> TypeGuard[Weighted]:
    """Return whether a metric's state is one mean."""
    return isinstance(value, Weighted)


def pack_identity(client: int) -> RecordDict:
    """Pack which client a node is, and which version of Umbel it runs."""
    return RecordDict({"identity": ConfigRecord({"client": client, "version": VERSION})})


def unpack_identity(content: RecordDict) -> int:
    """Invert `pack_identity`. Errors: Malformed."""
    return _field(_record(content, "identity", ConfigRecord), "client", int)


def unpack_version(content: RecordDict) -> tuple[int, int]:
    """Return the major and minor number of the version that a node runs. Errors: Malformed."""
    text = _field(_record(content, "identity", ConfigRecord), "version", str)
    if not (found := re.match(r"(\d{1,6})\.(\d{1,6})", text)):
        raise Malformed("schema", f"expected version={text[:80]!r} as in {VERSION}")
    return int(found[1]), int(found[2])


def pack_array(array: np.ndarray) -> Array:
    """Pack an array as its raw little-endian bytes, under its dtype and shape.

    Not copied: it must not change any more.
    """
    flat = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(-1)
    return raw_array(str(array.dtype), tuple(array.shape), RAW, flat.view(np.uint8).data)


def unpack_array(array: Array) -> np.ndarray:
    """Invert `pack_array`; read-only, without a copy. Errors: Malformed."""
    if array.stype != RAW:
        raise Malformed("schema", f"expected an array encoded as {RAW!r}, got {array.stype[:80]!r}")
    if array.dtype not in NAMES:
        raise Malformed("dtype", f"unknown dtype {array.dtype[:80]!r}")
    dtype = np.dtype(array.dtype).newbyteorder("<")
    if min(array.shape, default=0) < 0 or len(array.data) != math.prod(array.shape) * dtype.itemsize:
        raise Malformed("shape", f"{len(array.data)} bytes are not {dtype.name}{list(array.shape)[:8]}")
    unpacked = np.frombuffer(array.data, dtype).reshape(array.shape)
    unpacked.flags.writeable = False
    return unpacked


def _vectors(content: RecordDict, name: str = "vectors", /, **dtypes: str) -> list[np.ndarray]:
    """Return the vectors of a message's record, which must hold these, of these dtypes, and no others."""
    record = _record(content, name, ArrayRecord)
    if set(record) != set(dtypes):
        raise Malformed("schema", f"expected the vectors {', '.join(dtypes)}, got {', '.join(sorted(record))[:80]}")
    for vector, dtype in dtypes.items():
        if record[vector].dtype != dtype:
            raise Malformed("dtype", f"expected {vector} to be {dtype}, got {record[vector].dtype[:80]!r}")
        if len(record[vector].shape) != 1:
            raise Malformed("shape", f"expected {vector} to be a vector, got {len(record[vector].shape)} axes")
    return [unpack_array(record[vector]) for vector in dtypes]


def _record(content: RecordDict, name: str, kind: type) -> Any:
    record = content.get(name)
    if not isinstance(record, kind):
        found = "none" if record is None else type(record).__name__
        raise Malformed("schema", f"expected a {kind.__name__} named {name!r}, got {found}")
    return record


def _field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if type(value) is not kind:
        raise Malformed("schema", f"expected {name} of type {kind.__name__}, got {type(value).__name__}")
    return value
