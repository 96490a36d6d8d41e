import copy
import math
import pickle

import numpy as np
import pytest

from umbel import ConfigError
from umbel.core.random import derive
from umbel.privacy import noise as noise_module
from umbel.privacy.noise import PAIRS, NoiseStream, grid_step

BLOCK = 2 * PAIRS
SIZE = 6 * BLOCK + 7  # more than 10⁵, and no whole number of blocks


def cdf(x):
    return 0.5 * (1 + np.vectorize(math.erf)(np.asarray(x) / math.sqrt(2)))


def simulated(seed=0):
    return NoiseStream.simulated(derive(seed, "test"))


def kolmogorov_smirnov(values):
    """√n times the largest distance from the normal law; above 1.95 with probability 0.001 when the law holds."""
    ranks = np.arange(len(values) + 1) / len(values)
    law = cdf(np.sort(values))
    return math.sqrt(len(values)) * max((ranks[1:] - law).max(), (law - ranks[:-1]).max())


def chi_square(values):
    """Pearson's statistic over 64 cells of equal probability, in standard deviations of its law."""
    # Probabilities, not edges, are binned: the normal law has no closed inverse.
    counts = np.bincount((cdf(values) * 64).astype(int).clip(0, 63), minlength=64)
    expected = len(values) / 64
    return (((counts - expected) ** 2 / expected).sum() - 63) / math.sqrt(2 * 63)


def correlation(one, other):
    """In standard deviations of its law under independence."""
    return abs(np.mean(one.astype(np.float64) * other)) * math.sqrt(len(one))


STREAMS = [pytest.param(simulated, id="simulated"), pytest.param(NoiseStream.live, id="live")]


@pytest.mark.parametrize("stream", STREAMS)
def test_the_law_is_normal_with_this_scale_and_no_other(stream):
    scale = 3.7
    values = stream().draw(SIZE, scale)
    assert values.dtype == np.float32
    assert values.shape == (SIZE,)
    # Live noise has no seed: bounds that a right law exceeds once in 10⁹ draws.
    assert kolmogorov_smirnov(values / scale) < 3.3
    assert chi_square(values / scale) < 8
    for wrong in (2 / 3, 3 / 2, 0.95, 1.05):
        assert kolmogorov_smirnov(values / (scale * wrong)) > 3.3
        assert chi_square(values / (scale * wrong)) > 8


def test_moments():
    values = simulated().draw(10**6).astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(values**power) - moment) < 4 * math.sqrt(variance / len(values))


def test_tails():
    values = np.abs(simulated().draw(4 * 10**6))
    for bound in (3.0, 4.0, 5.0):
        expected = len(values) * math.erfc(bound / math.sqrt(2))
        assert abs((values > bound).sum() - expected) < 4 * math.sqrt(expected) + 1
    assert not (values == 0).sum() > 1


@pytest.mark.parametrize("word", [0, 1, 2**63, 2**64 - 1])
def test_the_extreme_words_of_a_keystream_give_finite_numbers(word, monkeypatch):
    class Constant:
        def update_into(self, zeros, out):
            out[: len(zeros)] = (word.to_bytes(8, "little") * len(zeros))[: len(zeros)]

    values = NoiseStream(Constant()).draw(8)
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 9.5
    assert np.hypot(values[:4], values[4:]) == pytest.approx(math.sqrt(-2 * math.log((word // 2 + 0.5) / 2**63)))


def test_pairs_blocks_and_draws_are_independent():
    stream = simulated()
    one, other = stream.draw(4 * BLOCK), stream.draw(4 * BLOCK)
    for left, right in (
        (one[:PAIRS], one[PAIRS:BLOCK]),  # the two numbers of a pair
        (one[:BLOCK], one[BLOCK : 2 * BLOCK]),
        (one[:-1], one[1:]),
        (one, other),
    ):
        assert correlation(left, right) < 4
        assert correlation(left**2 - 1, right**2 - 1) < 4 * 2  # the squares' standard deviation is √2 each
    assert correlation(one, one) > 100  # what would be found if they repeated


@pytest.mark.parametrize("stream", STREAMS)
def test_no_keystream_is_used_twice(stream):
    stream = stream()
    draws = [stream.draw(size) for size in (3 * BLOCK + 5, 1, BLOCK, 3 * BLOCK + 5)]
    values = np.concatenate(draws).astype(np.float64)
    # Float32 numbers meet by chance, but not two in a row.
    pairs = values[:-1] + 1j * values[1:]
    assert len(np.unique(pairs)) == len(pairs)


def test_every_byte_of_keystream_is_new(monkeypatch):
    read = []

    class Recorded:
        def __init__(self, keystream):
            self.keystream = keystream

        def update_into(self, zeros, out):
            self.keystream.update_into(zeros, out)
            read.append(bytes(out[: len(zeros)]))

    keystream_of = noise_module.keystream_of
    monkeypatch.setattr(noise_module, "keystream_of", lambda secret: Recorded(keystream_of(secret)))
    stream = simulated()
    for size in (BLOCK + 3, 1, 0, 2 * BLOCK):
        stream.draw(size)
    whole = b"".join(read)
    expected = bytearray(len(whole) + 15)
    key = derive(0, "test").derive("gaussian noise").digest
    keystream_of(key).update_into(bytes(len(whole)), expected)
    assert whole == expected[:-15]
    assert len(whole) == 12 * (PAIRS + 2 + 1 + 2 * PAIRS)


def test_equal_keys_give_equal_noise_and_other_keys_other_noise():
    vector = np.arange(BLOCK + 1, dtype=np.float32)
    np.testing.assert_array_equal(simulated(1).add_to(vector, 0.5), simulated(1).add_to(vector, 0.5))
    assert correlation(simulated(1).draw(BLOCK), simulated(2).draw(BLOCK)) < 4


def test_live_streams_differ():
    assert correlation(NoiseStream.live().draw(BLOCK), NoiseStream.live().draw(BLOCK)) < 6


def test_a_live_stream_reads_the_operating_systems_entropy_for_each_draw(monkeypatch):
    """So a process that forks does not share its noise."""
    asked = []
    monkeypatch.setattr(noise_module.os, "urandom", lambda count: asked.append(count) or bytes(count))
    stream = NoiseStream.live()
    assert (stream.draw(9) == stream.draw(9)).all()
    assert asked == [16, 16]


def test_what_is_seeded_says_so_and_shows_no_key():
    assert simulated().seeded
    assert not NoiseStream.live().seeded
    assert (repr(simulated()), repr(NoiseStream.live())) == ("NoiseStream(seeded=True)", "NoiseStream(seeded=False)")


def test_a_copy_cannot_repeat_noise():
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match="repeat its noise"):
            duplicate(simulated())
    assert not pickle.loads(pickle.dumps(NoiseStream.live())).seeded


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 101, BLOCK - 1, BLOCK, BLOCK + 1])
def test_every_length_is_filled(stream, size):
    values = stream().draw(size, 1e-3)
    assert values.shape == (size,)
    assert np.isfinite(values).all()
    assert (values != 0).all()
    assert np.abs(values).max(initial=0.0) < 1e-2
    assert NoiseStream.live().add_to(np.zeros(size, np.float32), 1.0).shape == (size,)


def test_adding_is_the_vector_plus_the_draw():
    vector = np.linspace(-5, 5, 1001, dtype=np.float32)
    before = vector.copy()
    exact = vector.astype(np.float64) + simulated().draw(1001, 2.0)
    np.testing.assert_array_equal(simulated().add_to(vector, 2.0), on_grid(exact, 2.0))
    np.testing.assert_array_equal(simulated().add_to(vector.astype(np.float64), 2.0), on_grid(exact, 2.0))
    np.testing.assert_array_equal(vector, before)
    np.testing.assert_allclose(simulated().draw(1001, 2.0), 2 * simulated().draw(1001), rtol=1e-6)


def test_a_scale_of_zero_adds_nothing():
    vector = np.array([1.0, -2.0, 1e30], np.float32)
    assert NoiseStream.live().add_to(vector, 0.0) is vector
    assert not NoiseStream.live().draw(5, 0).any()


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), True, None, 1e-40, 1e31])
def test_bad_scales(scale):
    for act in (lambda: NoiseStream.live().draw(3, scale), lambda: simulated().add_to(np.zeros(3, np.float32), scale)):
        with pytest.raises(ConfigError, match="scale"):
            act()


@pytest.mark.parametrize("coordinate", [np.nan, np.inf, -np.inf, 1e8, -1e8])
def test_noise_that_rounding_would_swallow_is_refused(coordinate):
    with pytest.raises(ConfigError, match="finite coordinates"):
        simulated().add_to(np.array([0.0, coordinate], np.float32), 1.0)
    large = np.full(BLOCK, 2.0**21, np.float32)
    assert kolmogorov_smirnov(simulated().add_to(large, 16.0) / 16.0 - large / 16.0) < 3.3


def test_bad_sizes():
    for size in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="size"):
            NoiseStream.live().draw(size)


def on_grid(values, scale):
    step = grid_step(scale)
    return (np.rint(values / step) * step).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-3, 0.7, 1.0, 73.0])
def test_what_is_released_lies_on_a_grid_that_no_coordinate_moves(scale):
    step = grid_step(scale)
    assert 2.0**-20 * scale <= step <= 2.0**-19 * scale
    assert math.log2(step).is_integer()
    guessed = np.full(70_000, scale * (1 / 300 + 2.0**-40), np.float32)
    for vector in (np.zeros_like(guessed), guessed):
        out = NoiseStream.live().add_to(vector, scale)
        np.testing.assert_array_equal(out, on_grid(out.astype(np.float64), scale))


def test_low_bits_do_not_tell_the_vector_that_was_guessed():
    """Added in float32, a sum is exact where noise and coordinate nearly cancel: some sums could not be x + noise."""
    x = np.full(100_000, np.float32(0.003162) * (1 - 2.0**-14), np.float32)

    def impossible(out):
        rest = out.astype(np.float64) - x
        near = np.abs(out) < np.abs(x) / 2
        return bool((near & (rest.astype(np.float32) != rest)).any())

    def said(add):
        return [sum(impossible(add(vector)) for _ in range(15)) for vector in (np.zeros_like(x), x)]

    naive = said(lambda vector: vector + NoiseStream.live().draw(len(vector), 20.0))
    assert naive[0] > 10 * naive[1] + 5  # the attack works where noise is added in float32
    assert abs(np.subtract(*said(lambda vector: NoiseStream.live().add_to(vector, 20.0)))) <= 3
