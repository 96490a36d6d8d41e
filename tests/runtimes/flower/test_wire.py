"""What is packed comes back bit for bit, through the bytes that Flower sends."""

from typing import NamedTuple

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from umbel.core.random import derive
from umbel.core.types import NOTHING, Broadcast, ClientUpdate, Failure, MetricState, Weighted
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.malformed import Malformed
from umbel.runtimes.flower.objects import content_bytes

EVERY_KIND = np.array([0.0, -0.0, 1e-45, -1e-38, 3.4e38, np.inf, -np.inf, np.nan, 1 / 3], np.float32)


class State(NamedTuple):
    clip_norm: float
    signs: np.ndarray


def sent(content: RecordDict) -> RecordDict:
    """content after a journey as bytes."""
    objects = {name: part.deflate() for name, part in get_all_nested_objects(content).items()}
    return inflate_object_from_contents(content.object_id, objects)


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("rate", [None, 0.1, 5e-324])
@pytest.mark.parametrize("extra", [NOTHING, EVERY_KIND[::-1]])
def test_broadcast_and_order_round_trip(rate, extra):
    state = (State(0.1 + 0.2, np.array([1, -1], np.int8)), ())
    broadcast = Broadcast(7, EVERY_KIND, extra, state, rate)
    order = wire.Order("d" * 64, "xla", derive(3, "client", 5))
    content = sent(wire.pack_order(wire.pack_broadcast(broadcast), order))
    back = wire.unpack_broadcast(content, like=(State(0.0, NOTHING), ()))
    assert wire.unpack_order(content) == order
    assert (back.round, back.learning_rate) == (7, rate)
    assert_same_bits(back.params, EVERY_KIND)
    assert_same_bits(back.extra, extra)
    assert isinstance(back.transforms[0], State)
    assert back.transforms[0].clip_norm == 0.1 + 0.2
    assert_same_bits(back.transforms[0].signs, state[0].signs)


@pytest.mark.parametrize("extra", [NOTHING, EVERY_KIND])
def test_update_round_trips(extra):
    metrics = {"loss": Weighted(1 / 3, 12.0), "accuracy": Weighted(0.0, 0.0)}
    reply = wire.unpack_update(sent(wire.pack_update(3, ClientUpdate(EVERY_KIND, extra, 17.0, metrics))))
    assert (reply.round, reply.update.weight, reply.update.metrics) == (3, 17.0, metrics)
    assert_same_bits(reply.update.delta, EVERY_KIND)
    assert_same_bits(reply.update.extra, extra)


SUMS, ENDS = (("sum", 9),), (("max", 1), ("min", 1))
STATES = {"auc": MetricState(np.arange(9.0), SUMS), "ends": MetricState(np.array([-np.inf, np.inf]), ENDS)}
JOINS = {"loss": (), "auc": SUMS, "ends": ENDS}


def test_states_of_metrics_round_trip():
    metrics = {"loss": Weighted(1 / 3, 12.0), **STATES, "personal_auc": STATES["auc"]}
    content = sent(RecordDict(wire.pack_metrics(metrics)))
    assert wire.unpack_metrics(content, JOINS) == metrics


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"auc": MetricState(np.zeros(8), (("sum", 8),))}, r"'auc' of 9 float64 numbers, got float64\[8\]"),
        ({"auc": MetricState(np.full(9, np.inf), SUMS)}, "'auc' to be finite"),
        ({"ends": MetricState(np.array([np.nan, 0.0]), ENDS)}, "'ends' to be finite"),
        ({"other": STATES["auc"]}, "'other' of 0 float64 numbers"),
        ({"auc": Weighted(1.0, 1.0)}, "the state of 'auc', got a mean"),
        ({"loss": STATES["auc"]}, "'loss' of 0 float64 numbers"),
    ],
)
def test_states_that_the_server_does_not_measure_are_malformed(metrics, message):
    with pytest.raises(Malformed, match=message):
        wire.unpack_metrics(sent(RecordDict(wire.pack_metrics(metrics))), JOINS)


def test_failure_round_trips():
    failure = Failure(4, "non_finite", "its update is not finite (training loss nan) é")
    assert wire.unpack_failure(sent(wire.pack_failure(2, failure)), 4) == failure
    assert wire.unpack_failure(sent(wire.pack_identity(1)), 4) is None


def test_identity_round_trips():
    assert wire.unpack_identity(sent(wire.pack_identity(11))) == 11


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_arrays_of_any_shape_round_trip(dtype):
    arrays = [np.arange(6).reshape(2, 3).astype(dtype), np.array(1, dtype), np.zeros((0, 4), dtype)]
    arrays += [np.asfortranarray(arrays[0]), np.arange(12).astype(dtype)[::5]]
    for array in arrays:
        back = wire.unpack_array(wire.pack_array(array))
        assert_same_bits(back, array)
        assert not back.flags.writeable


def test_what_is_counted_is_what_is_sent():
    """Bytes of a record, without making them; equal chunks of an array once."""
    update = ClientUpdate(np.zeros(3_000_000, np.float32), EVERY_KIND, 17.0, {})
    content = wire.pack_update(3, update)
    parts = get_all_nested_objects(content).values()
    assert content_bytes(content) == sum(len(part.deflate()) for part in parts)
