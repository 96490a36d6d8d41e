"""Metrics' states in a hidden sum: exact counts, a stated bound, and nothing that saturates."""

import numpy as np
import pytest
from sums import total_of

from optional import needs_tenseal
from umbel import ConfigError
from umbel.core.random import derive
from umbel.core.types import ClientUpdate, MetricState, Shape, Weighted
from umbel.privacy.encoder import Encoder
from umbel.privacy.gridded import Gridded
from umbel.privacy.homomorphic import Homomorphic
from umbel.privacy.layout import Layout
from umbel.privacy.schemes import BFV, CKKS
from umbel.privacy.secagg.masking import add_to, apply_masks, keystream, rings_of
from umbel.privacy.secure_sum import SecureSum
from umbel.privacy.states import LARGEST, integers_of, length, summed_states

TABLE = (("sum", 3),)
STATES = (("loss", ()), ("table", TABLE))


def measured(loss, count, table, weight=1.0):
    metrics = {"loss": Weighted(loss, count), "table": MetricState(np.array(table, np.float64), TABLE)}
    return ClientUpdate(np.full(4, 0.1, np.float32), np.zeros(0, np.float32), weight, metrics)


@pytest.mark.parametrize("is_real", [False, pytest.param(True, marks=needs_tenseal)])
@pytest.mark.parametrize(
    ("hidden", "settings"),
    [
        (SecureSum, {}),
        (SecureSum, {"max_weight": 100}),
        (SecureSum, {"ring_bits": 64}),
        (Homomorphic, {"clients": 5}),
        (Homomorphic, {"max_weight": 100}),
        (Homomorphic, {"scheme": "ckks"}),
        (Homomorphic, {"scheme": BFV.for_clients(5, bits=2), "clients": 5}),
    ],
    ids=str,
)
def test_counts_are_exact_and_sums_within_the_bound(hidden, settings, is_real):
    """Also negative numbers, those beyond 32 bits, and with a client that drops out; weights multiply none of them."""
    aggregation = hidden(1.0, metrics=("loss", "table"), **settings)
    generator = np.random.default_rng(1)
    weights = [1.0 if aggregation.max_weight == 1 else float(7 * client + 1) for client in range(5)]
    tables = [[2.0**40 + client, -3.0 * client, generator.normal()] for client in range(5)]
    updates = {
        client: measured(1e5 * generator.normal(), 1000 + client, tables[client], weights[client])
        for client in range(5)
    }
    total, _ = total_of(aggregation, range(5), updates, derive(3), is_real=is_real, dropped=(2,))
    added = [updates[client] for client in (0, 1, 3, 4)]
    loss = sum((one.metrics["loss"] for one in added), Weighted(0.0, 0.0))
    table = sum(one.metrics["table"].numbers for one in added)
    assert total.metrics["loss"].count == loss.count
    assert total.metrics["loss"].sum == pytest.approx(loss.sum, abs=4 * 2**-13)
    np.testing.assert_array_equal(total.metrics["table"].numbers[:2], table[:2])
    assert total.metrics["table"].numbers[2] == pytest.approx(table[2], abs=4 * 2**-13)
    assert total.metrics["table"].joins == TABLE


@pytest.mark.parametrize("clients", [3, 1000, 32_000])
def test_the_largest_numbers_of_all_clients_do_not_overflow(clients):
    below = np.nextafter(LARGEST / clients, 0)
    whole = np.floor(below)
    update = measured(-whole, whole, [whole, -whole, 0.0])
    integers = integers_of(update, STATES, clients)
    assert (abs(int(integers[0])) * clients) < 2**63
    metrics = summed_states(integers, STATES)
    assert metrics["loss"] == Weighted(-whole, whole)
    aggregation = SecureSum(1.0, metrics=("loss", "table"), ring_bits=64)
    too_large = measured(LARGEST / clients, 1.0, [0.0, 0.0, 0.0])
    encoder = Encoder(
        aggregation.layout(Shape(4, 0), {"loss": (), "table": TABLE}), aggregation.encoding(clients, length(STATES))
    )
    decoded = encoder.decode(encoder.encode_or_nothing(too_large, derive(0)), 1)
    assert decoded.weight == 0
    assert decoded.metrics["loss"] == Weighted(0.0, 0.0)


@pytest.mark.parametrize(
    "scheme",
    [BFV(), BFV.for_clients(100, 16, 90), BFV.for_clients(10, bits=2), CKKS(), CKKS.for_clients(8, 20, 50)],
    ids=str,
)
def test_digits_of_numbers_add_up_to_the_numbers(scheme):
    """Each digit is one that may be encrypted, and any sum that stays within 64 bits comes back."""
    gridded = Gridded(scheme, Layout(Shape(2, 0), 1.0, states=(("table", (("sum", 6),)),)), 8)
    generator, largest = np.random.default_rng(2), scheme.levels * scheme.max_weight
    each = [np.append(generator.integers(-1, 2, gridded.narrow), generator.integers(-(2**60), 2**60, 6)) for _ in "123"]
    each[0][-6:] = [0, -1, 1, 2**63 - 1, -(2**63), 12]
    each[1][-6:] = [0, -1, -1, -(2**63) + 1, 2**63 - 1, -12]
    each[2][-2:] = -5
    spread = [gridded.spread(one) for one in each]
    assert all(len(one) == gridded.encrypted_size and np.abs(one).max() <= largest for one in spread)
    np.testing.assert_array_equal(gridded.joined(sum(spread)), sum(each))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("hidden", [SecureSum, Homomorphic])
def test_what_is_not_finite_adds_nothing(bad, hidden):
    aggregation = hidden(1.0)
    updates = {client: measured(1.0 if client else bad, 2.0, [0.0, 0.0, 0.0]) for client in range(4)}
    total, _ = total_of(aggregation, range(4), updates, derive(0))
    assert total.weight == 3
    assert total.metrics["loss"] == Weighted(3.0, 6.0)


def test_wide_integers_carry_over_and_masks_cancel():
    """Where 32 bits are full the next word counts on; masks are bits of the same streams."""
    values = np.zeros(5, "<u4")
    values[-2:] = np.array([2**32 - 1], "<u8").view("<u4")
    total = values.copy()
    add_to(total, values, wide=1)
    assert int(rings_of(total, 1)[1][0]) == 2 * (2**32 - 1)
    masked, seed = values.copy(), bytes(range(32))
    apply_masks(masked, [seed], wide=1)
    stream = keystream(seed, 20)
    np.testing.assert_array_equal(masked[:3], np.frombuffer(stream[:12], "<u4"))
    assert int(rings_of(masked, 1)[1][0]) == (2**32 - 1 + int.from_bytes(stream[12:], "little")) % 2**64
    apply_masks(masked, subtracted=[seed], wide=1)
    np.testing.assert_array_equal(masked, values)


def test_terms_with_other_states_are_others():
    aggregation = SecureSum(1.0)
    assert aggregation.encoding(3, 2).digest != aggregation.encoding(3, 3).digest


@pytest.mark.parametrize("hidden", [SecureSum, Homomorphic])
def test_a_limit_for_means_is_taken_with_a_warning(hidden):
    with pytest.warns(DeprecationWarning, match=rf"metric_limit=8.0 of {hidden.__name__} has no effect") as said:
        hidden(1.0, metric_limit=8.0)
    assert said[0].filename == __file__
    with pytest.raises(ConfigError, match="metric_limit"):
        hidden(1.0, metric_limit=-1.0)


@pytest.mark.parametrize("hidden", [SecureSum, Homomorphic])
@pytest.mark.parametrize(
    ("names", "sentence"),
    [("loss", "tuple of names"), (["loss"], "tuple of names"), (("a", "a"), "distinct"), (("saturated",), "by itself")],
)
def test_names_of_metrics_are_each_there_once(hidden, names, sentence):
    with pytest.raises(ConfigError, match=sentence):
        hidden(1.0, metrics=names)
