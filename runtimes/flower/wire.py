"""What travels: broadcasts, updates and metrics as Flower records, and back, bit for bit.

    to a client      "vectors": params, extra           "broadcast": round, rate, transforms
                                                     "order": digest, compile, key, memory, since
    from a client    "vectors": delta, extra            "update": round, weight          "metrics": name → [sum, count]
                 or  "failure": round, reason, detail

A vector is its raw little-endian float32: no header to parse, and a length that either fits its shape or does not.
Unpacking trusts nothing: whatever does not have this form raises Malformed. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ...core.random import Key
from ...core.serial import dumps, loads
from ...core.types import Broadcast, ClientUpdate, Failure, Metrics, State, Vector, Weighted
from .private import array_record, raw_array

RAW = "umbel.raw"  # how an Array's bytes are meant: C order, little-endian, nothing else
NAMES = frozenset(
    ["bool", "float16", "float32", "float64", "bfloat16"] + [f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64)]
)
FORMAT = 2  # of all that is described here
MAX_METRICS = 256
MAX_TEXT = 500  # characters of a client's own words that the server keeps


class Malformed(Exception):
    """A record that is not what was agreed on. reason: "schema", "dtype", "shape" or "metrics"."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Order(NamedTuple):
    """What a client is told besides the broadcast."""

    digest: str  # of the server's experiment
    compile: str  # "xla" or "graph": as the server's own model
    key: Key  # this client's, this round
    memory: str = ""  # what clients keep in this run is kept under; "" where they keep nothing
    since: int = 0  # the last round that this client counted in: the one whose memory counts; 0 for none


class Reply(NamedTuple):
    """A client's update, and the round it says it is for."""

    round: int
    update: ClientUpdate


def pack_broadcast(broadcast: Broadcast) -> RecordDict:
    """The part that a whole cohort shares: Flower stores and hashes equal objects once."""
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
    """One client's message: the shared part, and what is this client's alone."""
    own = ConfigRecord({**order._asdict(), "key": order.key.digest})
    return RecordDict({**shared, "order": own})


def unpack_order(content: RecordDict) -> Order:
    """The inverse of `pack_order`."""
    record = _record(content, "order", ConfigRecord)
    kinds = {"digest": str, "compile": str, "key": bytes, "memory": str, "since": int}
    fields = {name: _field(record, name, kind) for name, kind in kinds.items()}
    return Order(**{**fields, "key": Key(fields["key"])})


def unpack_broadcast(content: RecordDict, like: State = None) -> Broadcast:
    """The inverse of `pack_broadcast`. like: a transforms' state, for the classes of its named tuples.

    Errors: Malformed; StoreError for a transforms' state that does not read back.
    """
    record = _record(content, "broadcast", ConfigRecord)
    if record.get("format") != FORMAT:
        raise Malformed("schema", f"expected format {FORMAT}, got {record.get('format')!r}: another version of Umbel")
    params, extra = _vectors(content, "params", "extra")
    rate = _field(record, "learning_rate", float) if "learning_rate" in record else None
    transforms = loads(_field(record, "transforms", bytes), like)
    return Broadcast(_field(record, "round", int), params, extra, transforms, rate)


def pack_update(round: int, update: ClientUpdate) -> RecordDict:
    """A client's update, as its reply."""
    vectors = array_record({"delta": pack_array(update.delta), "extra": pack_array(update.extra)})
    about = ConfigRecord({"round": round, "weight": update.weight})
    return RecordDict({"vectors": vectors, "update": about, "metrics": pack_metrics(update.metrics)})


def unpack_update(content: RecordDict) -> Reply:
    """The inverse of `pack_update`; values are of the right kind, but not yet within any bounds. Errors: Malformed."""
    about = _record(content, "update", ConfigRecord)
    delta, extra = _vectors(content, "delta", "extra")
    weight = about.get("weight")
    if not isinstance(weight, (int, float)) or isinstance(weight, bool):
        raise Malformed("weight", f"expected weight={weight!r} to be a number")
    return Reply(_field(about, "round", int), ClientUpdate(delta, extra, weight, unpack_metrics(content)))


def pack_failure(round: int, failure: Failure) -> RecordDict:
    """Why there is no update, in the client's words."""
    return RecordDict(
        {"failure": ConfigRecord({"round": round, "reason": failure.reason, "detail": failure.detail[:MAX_TEXT]})}
    )


def unpack_failure(content: RecordDict, client: int) -> Failure | None:
    """The failure that a reply reports; None for a reply that reports none. Errors: Malformed."""
    if "failure" not in content:
        return None
    record = _record(content, "failure", ConfigRecord)
    reason, detail = (_field(record, name, str) for name in ("reason", "detail"))
    if not re.fullmatch("[a-z_]{1,32}", reason):
        raise Malformed("schema", f"expected reason={reason[:80]!r} to be a short code")
    return Failure(client, reason, detail[:MAX_TEXT])


def pack_metrics(metrics: Metrics) -> MetricRecord:
    """Metric sums as [sum, count] by name."""
    return MetricRecord({name: [float(value.sum), float(value.count)] for name, value in metrics.items()})


def unpack_metrics(content: RecordDict) -> dict[str, Weighted]:
    """The inverse of `pack_metrics`. Errors: Malformed for anything but finite sums over counts ≥ 0."""
    record = _record(content, "metrics", MetricRecord)
    if len(record) > MAX_METRICS:
        raise Malformed("metrics", f"expected at most {MAX_METRICS} metrics, got {len(record)}")
    metrics = {}
    for name, pair in record.items():
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(number, float) for number in pair)
        if not is_pair or not all(map(math.isfinite, pair)) or pair[1] < 0 or (pair[1] == 0 and pair[0] != 0):
            raise Malformed("metrics", f"expected {name[:80]}={pair!r} to be a finite sum and a count ≥ 0"[:MAX_TEXT])
        metrics[name] = Weighted(*pair)
    return metrics


def pack_identity(client: int) -> RecordDict:
    """Which client a node is."""
    return RecordDict({"identity": ConfigRecord({"client": client})})


def unpack_identity(content: RecordDict) -> int:
    """The inverse of `pack_identity`. Errors: Malformed."""
    return _field(_record(content, "identity", ConfigRecord), "client", int)


def pack_array(array: np.ndarray) -> Array:
    """An array as its raw little-endian bytes, under its dtype and shape. Not copied: it must not change any more."""
    flat = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(-1)
    return raw_array(str(array.dtype), tuple(array.shape), RAW, flat.view(np.uint8).data)


def unpack_array(array: Array) -> np.ndarray:
    """The inverse of `pack_array`; read-only, without a copy. Errors: Malformed."""
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


def _vectors(content: RecordDict, *names: str) -> list[Vector]:
    """The named float32 vectors of a message, which must hold these and no others."""
    record = _record(content, "vectors", ArrayRecord)
    if set(record) != set(names):
        raise Malformed("schema", f"expected the vectors {', '.join(names)}, got {', '.join(sorted(record))[:80]}")
    for name in names:
        if record[name].dtype != "float32":
            raise Malformed("dtype", f"expected {name} to be float32, got {record[name].dtype[:80]!r}")
        if len(record[name].shape) != 1:
            raise Malformed("shape", f"expected {name} to be a vector, got {len(record[name].shape)} axes")
    return [unpack_array(record[name]) for name in names]


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
