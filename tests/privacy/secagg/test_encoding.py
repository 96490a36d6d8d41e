import dataclasses

import numpy as np
import pytest

from umbel.core.errors import ClientError, ConfigError
from umbel.privacy import Homomorphic, SecureSum
from umbel.privacy.distributed import DistributedSkellam
from umbel.privacy.secagg import FixedPoint

SEED = bytes(range(32))
ENCODINGS = [
    FixedPoint(1.0, clients=4096),
    FixedPoint(0.25, clients=10, max_weight=400),
    FixedPoint(3.0, clients=1000, max_weight=10**6, ring_bits=64),
]


def vector(size=50_000, scale=0.2):
    return np.random.default_rng(1).normal(0, scale, size).astype(np.float32)


@pytest.mark.parametrize("limit", [1e-310, 1e-40, 1e31, 1e300, float("inf"), 0.0])
def test_a_limit_whose_grid_float32_cannot_hold_is_refused(limit):
    """1e-310 encoded a vector of zeros as saturated numbers, in silence."""
    for build in (
        lambda: FixedPoint(limit, clients=3),
        lambda: SecureSum(limit=limit),
        lambda: SecureSum(limit=1.0, metric_limit=limit),
        lambda: Homomorphic(limit=limit),
        lambda: DistributedSkellam(1.0, 1.0, 3, limit),
    ):
        with pytest.raises(ConfigError, match="limit="):
            build()


def test_a_sum_that_is_no_float32_is_refused():
    with pytest.raises(ConfigError, match=r"limit=1e\+30 times clients=100 of max_weight=10000000"):
        FixedPoint(1e30, clients=100, max_weight=10**7, ring_bits=64)
    largest = FixedPoint(1e30, clients=4096)
    encoded = largest.encode(np.array([1e30, -3e38, 0.0], np.float32), 1, SEED)
    decoded = largest.decode((encoded.values.astype(np.uint64) * 4096 % 2**32).astype("<u4"), 4096).vector
    assert np.isfinite(decoded.astype(np.float32)).all()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_a_number_decodes_to_within_a_step(encoding):
    x = np.clip(vector(), -encoding.limit, encoding.limit)
    encoded = encoding.encode(x, 1, SEED)
    decoded = encoding.decode(encoded.values, 1)
    assert encoded.saturated == 0
    assert decoded.weight == 1
    assert np.abs(decoded.vector - x).max() <= encoding.step * (1 + 1e-6)


def test_rounding_is_unbiased_and_to_nearest_would_not_be():
    encoding = FixedPoint(1.0, clients=1)
    for fraction in (0.05, 0.3, 0.5, 0.8):
        for whole in (-300_000, -7, 0, 7, 300_000):
            x = np.full(40_000, (whole + fraction) * encoding.step)
            levels = encoding.decode(encoding.encode(x, 1, SEED).values, 1).vector / encoding.step
            assert abs(levels.mean() - (whole + fraction)) < 5 * np.sqrt(fraction * (1 - fraction) / len(x))
            assert set(np.round(levels).astype(int)) == {whole, whole + 1}


def test_zero_and_the_limits_are_exact():
    encoding = FixedPoint(0.5, clients=2)
    decoded = encoding.decode(encoding.encode(np.array([0, 0.5, -0.5], np.float32), 1, SEED).values, 1)
    np.testing.assert_allclose(decoded.vector, [0, 0.5, -0.5], rtol=1e-15)


def test_saturation_is_counted():
    x = np.array([0.5, 1.0, 1.1, -3.0, -1.0, 0], np.float32)
    encoding = FixedPoint(1.0, clients=2)
    encoded = encoding.encode(x, 1, SEED)
    assert encoded.saturated == 2
    np.testing.assert_allclose(encoding.decode(encoded.values, 1).vector, np.clip(x, -1, 1), atol=encoding.step)


def test_rounding_differs_with_the_seed_alone():
    encoding, x = FixedPoint(1.0, clients=2), vector()
    one, same, other = (encoding.encode(x, 1, seed).values for seed in (SEED, SEED, bytes(32)))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    x = vector()
    x[40_000] = bad
    with pytest.raises(ClientError, match="not finite"):
        FixedPoint(1.0, clients=2).encode(x, 1, SEED)


def test_a_weighted_sum_is_the_integer_sum():
    encoding = ENCODINGS[2]
    weights = [1, 0, 999_999, 10**6, 17]
    rounded = [encoding.encode(vector(100), 1, bytes([i]) * 32).values[:-1].view("<i8") for i in range(5)]
    encoded = [encoding.encode(vector(100), w, bytes([i]) * 32).values for i, w in enumerate(weights)]
    decoded = encoding.decode(np.sum(encoded, axis=0, dtype="<u8"), 5)
    expected = [sum(w * int(row[i]) for w, row in zip(weights, rounded, strict=True)) for i in range(100)]
    assert decoded.weight == sum(weights)
    np.testing.assert_array_equal(decoded.vector, np.array(expected) * encoding.step)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_the_largest_sum_does_not_overflow(encoding):
    largest = encoding.encode(np.array([9.0, -9.0], np.float32), encoding.max_weight, SEED).values
    total = (largest.astype(object) * encoding.clients) % 2**encoding.ring_bits
    decoded = encoding.decode(np.array(total.tolist(), encoding.dtype), encoding.clients)
    say = encoding.clients * encoding.max_weight
    np.testing.assert_allclose(decoded.vector, [say * encoding.limit, -say * encoding.limit])
    assert decoded.weight == say


def test_one_client_more_than_fits_is_refused_when_built():
    FixedPoint(1.0, clients=4096)
    with pytest.raises(ConfigError, match="clients=4097"):
        FixedPoint(1.0, clients=4097)
    with pytest.raises(ConfigError, match="ring_bits=64"):
        FixedPoint(1.0, clients=4096, max_weight=2)
    with pytest.raises(ConfigError, match="weight"):
        FixedPoint(1.0, clients=2**20, max_weight=2**25, ring_bits=64)


@pytest.mark.parametrize(
    "bad", [{"limit": 0}, {"limit": float("nan")}, {"clients": 0}, {"max_weight": 1.5}, {"ring_bits": 16}]
)
def test_bad_settings(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        dataclasses.replace(ENCODINGS[0], **bad)


@pytest.mark.parametrize(("encoding", "weight"), [(0, 2), (0, 0), (1, 401), (1, -1), (1, 2.0)])
def test_bad_weights(encoding, weight):
    with pytest.raises(ConfigError, match="weight"):
        ENCODINGS[encoding].encode(vector(5), weight, SEED)


def test_every_setting_is_in_the_digest():
    base = ENCODINGS[1]
    changes = [{}, {"limit": 0.5}, {"clients": 9}, {"max_weight": 399}, {"ring_bits": 64}]
    assert len({dataclasses.replace(base, **change).digest for change in changes}) == len(changes)
