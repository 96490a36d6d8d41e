import dataclasses

import numpy as np
import pytest

from umbel.core.errors import ClientError, ConfigError
from umbel.core.types import NOTHING, ClientUpdate, Shape, Weighted
from umbel.privacy.layout import Layout

LAYOUT = Layout(Shape(6, 3), limit=0.5, states=(("loss", ()),))


def update(seed=0, weight=1.0, scale=0.1):
    generator = np.random.default_rng(seed)
    delta, extra = (generator.uniform(-scale, scale, size).astype(np.float32) for size in (6, 3))
    return ClientUpdate(delta, extra, weight, {"loss": Weighted(24.0, 8.0)})


def unpacked(layout, updates):
    total = sum(one.weight * layout.pack(one).astype(np.float64) for one in updates)
    return layout.unpack(total, sum(one.weight for one in updates), len(updates))


def test_what_is_packed_unpacks():
    one = update()
    total = unpacked(LAYOUT, [one])
    np.testing.assert_array_equal(total.delta, one.delta)
    np.testing.assert_array_equal(total.extra, one.extra)
    assert (total.delta.dtype, total.extra.dtype) == (np.float32, np.float32)
    assert (total.weight, total.clients) == (1.0, 1)
    assert total.metrics == {"saturated": Weighted(0.0, 1.0)}  # the states travel beside the vector


def test_a_weighted_sum_of_vectors_is_the_vector_of_the_weighted_sum():
    updates = [update(seed, weight) for seed, weight in enumerate((3.0, 0.0, 40.0))]
    total = unpacked(LAYOUT, updates)
    np.testing.assert_allclose(total.delta, sum(one.weight * one.delta for one in updates), rtol=1e-6)
    np.testing.assert_allclose(total.extra, sum(one.weight * one.extra for one in updates), rtol=1e-6)
    assert total.metrics["saturated"].count == total.weight == 43


def test_every_number_is_within_the_limit_and_what_was_moved_is_counted():
    one = update()
    one.delta[[1, 4]] = [7.0, -0.6]
    one.extra[0] = -9.0
    packed = LAYOUT.pack(one)
    assert np.abs(packed.astype(np.float64)).max() <= LAYOUT.limit
    total = LAYOUT.unpack(packed.astype(np.float64), 1, 1)
    assert total.metrics["saturated"].mean() == pytest.approx(3 / 9)  # delta 2, extra 1; of 6 + 3
    np.testing.assert_array_equal(total.delta, one.delta.clip(-0.5, 0.5))


def test_a_limit_that_is_no_float32_is_kept_all_the_same():
    for limit in (0.1, 0.3, 1e-3):
        layout = dataclasses.replace(LAYOUT, limit=limit)
        largest = np.abs(layout.pack(update(scale=9.0)).astype(np.float64)).max()
        assert limit * (1 - 1e-7) < largest <= limit


def test_without_metrics_and_extra_the_vector_is_delta_itself():
    layout = Layout(Shape(6, 0), 0.5)
    one = update()._replace(extra=NOTHING)
    assert layout.pack(one) is one.delta
    assert unpacked(layout, [one]).metrics == {}
    one.delta[0] = 4.0
    assert layout.pack(one).max() == 0.5
    assert one.delta[0] == 4.0  # the client's own numbers are left as they are


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["delta", "extra"])
def test_what_is_not_finite_is_refused(bad, place):
    one = update()
    getattr(one, place)[1] = bad
    with pytest.raises(ClientError, match="not finite"):
        LAYOUT.pack(one)


@pytest.mark.parametrize("field", ["delta", "extra"])
def test_another_length(field):
    with pytest.raises(ConfigError, match=f"{field}=5"):
        LAYOUT.pack(update()._replace(**{field: np.zeros(5, np.float32)}))
    with pytest.raises(ConfigError, match="shape"):
        LAYOUT.unpack(np.zeros(LAYOUT.size + 1), 1, 1)


def test_bad_settings():
    with pytest.raises(ConfigError, match="limit"):
        dataclasses.replace(LAYOUT, limit=0.0)
