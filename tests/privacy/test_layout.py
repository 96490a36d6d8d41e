import dataclasses

import numpy as np
import pytest

from umbel.core.errors import ClientError, ConfigError
from umbel.core.types import NOTHING, ClientUpdate, Shape, Weighted
from umbel.privacy.layout import Layout

LAYOUT = Layout(Shape(6, 3), ("loss", "accuracy"), limit=0.5, metric_limit=10.0)


def update(seed=0, weight=1.0, scale=0.1, **metrics):
    generator = np.random.default_rng(seed)
    delta, extra = (generator.uniform(-scale, scale, size).astype(np.float32) for size in (6, 3))
    reported = {"loss": Weighted(24.0, 8.0), "accuracy": Weighted(6.0, 8.0), "auc": Weighted(1.0, 8.0)}
    return ClientUpdate(delta, extra, weight, reported | metrics)


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
    assert set(total.metrics) == {"loss", "accuracy", "saturated"}
    assert total.metrics["loss"].mean() == pytest.approx(3.0)
    assert total.metrics["accuracy"].mean() == pytest.approx(0.75)
    assert total.metrics["saturated"] == Weighted(0.0, 1.0)


def test_a_weighted_sum_of_vectors_is_the_vector_of_the_weighted_sum():
    updates = [update(seed, weight, loss=Weighted(seed * 8.0, 8.0)) for seed, weight in enumerate((3.0, 0.0, 40.0))]
    total = unpacked(LAYOUT, updates)
    np.testing.assert_allclose(total.delta, sum(one.weight * one.delta for one in updates), rtol=1e-6)
    np.testing.assert_allclose(total.extra, sum(one.weight * one.extra for one in updates), rtol=1e-6)
    assert total.metrics["loss"].count == total.weight == 43
    assert total.metrics["loss"].mean() == pytest.approx(80 / 43)


def test_every_number_is_within_the_limit_and_what_was_moved_is_counted():
    one = update(loss=Weighted(800.0, 8.0))
    one.delta[[1, 4]] = [7.0, -0.6]
    one.extra[0] = -9.0
    packed = LAYOUT.pack(one)
    assert np.abs(packed.astype(np.float64)).max() <= LAYOUT.limit
    total = LAYOUT.unpack(packed.astype(np.float64), 1, 1)
    assert total.metrics["saturated"].mean() == pytest.approx(4 / 11)  # delta 2, extra 1, loss 1; of 6 + 3 + 2
    assert total.metrics["loss"].mean() == pytest.approx(LAYOUT.metric_limit)
    np.testing.assert_array_equal(total.delta, one.delta.clip(-0.5, 0.5))


def test_a_limit_that_is_no_float32_is_kept_all_the_same():
    for limit in (0.1, 0.3, 1e-3):
        layout = dataclasses.replace(LAYOUT, limit=limit)
        largest = np.abs(layout.pack(update(scale=9.0)).astype(np.float64)).max()
        assert limit * (1 - 1e-7) < largest <= limit


def test_without_metrics_and_extra_the_vector_is_delta_itself():
    layout = Layout(Shape(6, 0), (), 0.5, 1.0)
    one = update()._replace(extra=NOTHING)
    assert layout.pack(one) is one.delta
    assert unpacked(layout, [one]).metrics == {}
    one.delta[0] = 4.0
    assert layout.pack(one).max() == 0.5
    assert one.delta[0] == 4.0  # the client's own numbers are left as they are


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["delta", "extra", "metric"])
def test_what_is_not_finite_is_refused(bad, place):
    one = update(loss=Weighted(bad, 1.0)) if place == "metric" else update()
    if place != "metric":
        getattr(one, place)[1] = bad
    with pytest.raises(ClientError, match="not finite"):
        LAYOUT.pack(one)


def test_a_client_without_examples_says_nothing():
    total = unpacked(LAYOUT, [update(), update(weight=0.0, loss=Weighted(0.0, 0.0))])
    assert total.metrics["loss"].mean() == pytest.approx(3.0)
    with pytest.raises(ClientError):
        LAYOUT.pack(update(weight=1.0, loss=Weighted(0.0, 0.0)))


def test_a_metric_that_the_model_does_not_report():
    one = update()._replace(metrics={"loss": Weighted(1.0, 1.0), "mae": Weighted(1.0, 1.0)})
    with pytest.raises(ConfigError, match="'accuracy', which the model does not report; it reports: loss, mae"):
        LAYOUT.pack(one)
    with pytest.raises(ConfigError, match=r"under a privacy plan clients report none; use metrics=\(\)"):
        LAYOUT.pack(one._replace(metrics={}))


@pytest.mark.parametrize("field", ["delta", "extra"])
def test_another_length(field):
    with pytest.raises(ConfigError, match=f"{field}=5"):
        LAYOUT.pack(update()._replace(**{field: np.zeros(5, np.float32)}))
    with pytest.raises(ConfigError, match="shape"):
        LAYOUT.unpack(np.zeros(LAYOUT.size + 1), 1, 1)


@pytest.mark.parametrize(
    "bad", [{"limit": 0.0}, {"metric_limit": -1.0}, {"metrics": ["loss"]}, {"metrics": ("a", "a")}]
)
def test_bad_settings(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        dataclasses.replace(LAYOUT, **bad)


def test_saturated_is_a_name_of_its_own():
    with pytest.raises(ConfigError, match="saturated"):
        dataclasses.replace(LAYOUT, metrics=("saturated",))
