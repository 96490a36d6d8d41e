"""Random replies, signed and not: whatever one holds, it is its client's failure, and nothing else is raised."""

import os
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from umbel.core.types import NOTHING, ClientUpdate, Failure, Weighted
from umbel.deploy import kits
from umbel.privacy.keys.identities import Identity
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.check import Expected, check_metrics, check_update
from umbel.runtimes.flower.malformed import Malformed
from umbel.runtimes.flower.signing import REPLY, SIGNATURE, Stamp, opened, signed

GOOD = wire.pack_update(1, ClientUpdate(np.ones(3, np.float32), NOTHING, 1.0, {"loss": Weighted(1.0, 1.0)}))
VALUES = [1, -1, 2**62, 0.5, float("nan"), float("inf"), "x" * 9, b"\0\xff", True, [1, 2], [0.5], [b"q"], ["a"], []]
METRICS = [1, 0.5, float("nan"), [1.0, 2.0], [float("inf"), 1.0], [1, 2], [], [0.0, 0.0], [1.0, -1.0], [5.0, 0.0]]
RECORDS = ["vectors", "update", "metrics", "states", "failure", "stage", "message", "identity", "sealed", "more"]
FIELDS = ["round", "weight", "reason", "detail", "run", "number", "cohort", "client", "version", "z"]
JOINS = {"acc": (("sum", 2), ("max", 1))}
DTYPES, SHAPES = (
    ["float32", "float64", "uint8", "object", "<f4", ""],
    [(3,), (0,), (2, 2), (-1,), (2**40,), (), (2**40, 0)],
)


class Reply:
    """A message with a content."""

    def __init__(self, content):
        self.content = content

    def has_content(self):
        return True


@pytest.fixture(scope="module")
def parties(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fed")
    kits.make(folder / "fed", "127.0.0.1", None, ["north", "south"])
    return Identity.load(folder / "fed" / "server"), Identity.load(folder / "fed" / "clients" / "north")


def mangled(random):
    """A good reply with one to three of its records replaced."""
    content = dict(GOOD)
    for _ in range(random.integers(1, 4)):
        name, kind = random.choice(RECORDS), random.integers(0, 5)
        any_of = lambda values: values[random.integers(0, len(values))]  # noqa: E731
        try:
            if kind == 0:
                content.pop(name, None)
            elif kind == 1:
                content[name] = ConfigRecord({any_of(FIELDS): any_of(VALUES) for _ in range(random.integers(0, 5))})
            elif kind == 2:
                names = ["loss", "acc", "z" * 200]
                content[name] = MetricRecord({any_of(names): any_of(METRICS) for _ in range(random.integers(0, 4))})
            else:
                arrays = {
                    any_of(["delta", "extra", "payload", "message", "m", "acc"]): Array(
                        any_of(DTYPES), any_of(SHAPES), any_of([wire.RAW, "numpy.ndarray"]), random.bytes(12)
                    )
                    for _ in range(random.integers(0, 3))
                }
                content[name] = ArrayRecord(arrays)
        except (TypeError, ValueError):  # Flower itself refuses such a record
            continue
    return RecordDict(content)


def test_no_reply_raises_anything_but_its_clients_failure(parties):
    server, north = parties
    stamp = Stamp(7, "train", 1, 0, os.urandom(16), int(time.time()) + 600)
    random, failed = np.random.default_rng(0), 0
    for _ in range(300):
        content = mangled(random)
        found = check_update(Reply(content), Expected(0, 1, 3, 0, 1.0))
        failed += isinstance(found, Failure)
        check_metrics(Reply(content), 0, JOINS)
        for read in (
            lambda content=content: opened(signed(content, REPLY, stamp, north), REPLY, stamp, server),
            lambda content=content: wire.unpack_stage(content),
            lambda content=content: wire.unpack_identity(content),
        ):
            try:
                read()
            except Malformed:
                continue
    assert 30 < failed < 300


@pytest.mark.parametrize("value", [[b"a"], [[b"a"]], 2**63 - 1, "\ud800"])
def test_what_is_not_signed_is_refused_whatever_it_holds(parties, value):
    server, _ = parties
    stamp = Stamp(7, "train", 1, 0, os.urandom(16), int(time.time()) + 600)
    about = {"client": 0, "round": 1, "nonce": stamp.nonce, "expires": stamp.expires, "signature": bytes(64)}
    try:
        content = RecordDict({"update": ConfigRecord({"x": value}), SIGNATURE: ConfigRecord(about)})
    except (TypeError, ValueError):
        return  # Flower itself refuses it
    with pytest.raises(Malformed):
        opened(content, REPLY, stamp, server)
