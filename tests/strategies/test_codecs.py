"""The contract of every codec, and what each one's paper promises."""

import pickle

import numpy as np
import pytest

from umbel import ConfigError, derive
from umbel.clients.round import coded
from umbel.core.aggregators import WeightedSum, decoded, opened
from umbel.core.errors import ClientError
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import NOTHING, ClientUpdate, Total, Weighted
from umbel.strategies import codecs as package
from umbel.strategies.codecs import ALL_CODECS, Quantised, RandomK, RandomMask, Sign, TopK
from umbel.strategies.codecs.payloads import kept

SIZE = 1003  # odd, of no whole blocks, bytes or rows
SIZES = [1, 2, 7, 8, 9, 127, 128, 129, 1000, SIZE]
UNBIASED = [RandomK(0.3), Quantised(8), Quantised(4), Quantised(4, block=7)]
MORE = [TopK(1.0), TopK(0.02), RandomK(1.0), Quantised(4, block=3), Quantised(8, block=5000)]
every_codec = pytest.mark.parametrize("codec", [*ALL_CODECS, *MORE], ids=repr)


def vector(size=SIZE, seed=0):
    """Numbers over many magnitudes, some of them 0."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=size) * 10.0 ** generator.integers(-4, 2, size)
    return np.where(generator.random(size) < 0.1, 0, numbers).astype(np.float32)


def sent(codec, v, seed=0):
    return codec.decode(codec.encode(v, derive(seed)), len(v))


def energy(v):
    return float(np.square(v.astype(np.float64)).sum())


def test_every_codec_is_in_the_list():
    public = {getattr(package, name) for name in package.__all__ if name[0].isupper()} - {RandomMask}
    assert {type(codec) for codec in ALL_CODECS} == {one for one in public if isinstance(one, type)}


@every_codec
class TestContract:
    @pytest.mark.parametrize("size", SIZES)
    def test_payloads_are_as_long_as_they_say(self, codec, size):
        payload = codec.encode(vector(size), derive(0))
        assert type(payload) is bytes
        assert len(payload) == codec.payload_bytes(size)
        back = codec.decode(payload, size)
        assert (back.dtype, back.shape) == (np.float32, (size,))

    def test_equal_keys_give_equal_bytes(self, codec):
        assert codec.encode(vector(), derive(3)) == codec.encode(vector(), derive(3))

    def test_it_changes_nothing_it_is_given(self, codec):
        v = vector()
        codec.encode(v, derive(0))
        np.testing.assert_array_equal(v, vector())

    def test_nothing_stays_nothing(self, codec):
        assert not sent(codec, np.zeros(SIZE, np.float32)).any()

    def test_what_it_says_of_norms_holds(self, codec):
        """For vectors of all kinds where it shrinks; where it does not say so there is one that it lengthens, or it
        sends everything."""
        kinds = [vector(seed=seed) for seed in range(20)] + [np.full(SIZE, x, np.float32) for x in (0.1, -3.7, 1e-30)]
        longer = [energy(sent(codec, v, seed)) > energy(v) for seed, v in enumerate(kinds)]
        assert not any(longer) if codec.shrinks else any(longer) or codec == RandomK(1.0)

    @pytest.mark.parametrize("length", [-1, 1, None])
    def test_a_payload_of_another_length_is_refused(self, codec, length):
        payload = codec.encode(vector(), derive(0))
        wrong = b"" if length is None else payload[:-1] if length < 0 else payload + b"\0"
        with pytest.raises(ClientError, match=rf"payload of {len(payload)} bytes for {SIZE} numbers, got {len(wrong)}"):
            codec.decode(wrong, SIZE)

    def test_a_payload_for_another_vector_is_refused(self, codec):
        with pytest.raises(ClientError, match="expected a payload"):
            codec.decode(codec.encode(vector(), derive(0)), SIZE + 500)

    @pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf])
    def test_a_number_that_is_not_finite_is_refused(self, codec, worst):
        v = vector()
        v[500] = worst
        with pytest.raises(ClientError, match="finite"):
            codec.encode(v, derive(0))

    def test_other_types_and_shapes_are_refused(self, codec):
        for wrong in (np.zeros(SIZE), np.zeros((2, 3), np.float32)):
            with pytest.raises(ClientError, match="expected a float32 vector"):
                codec.encode(wrong, derive(0))

    def test_whatever_arrives_is_decoded_to_finite_numbers_or_refused(self, codec):
        generator, refused = np.random.default_rng(0), 0
        for _ in range(50):
            noise = generator.bytes(codec.payload_bytes(SIZE))
            try:
                assert np.isfinite(codec.decode(noise, SIZE)).all()
            except ClientError:
                refused += 1
        assert refused or isinstance(codec, Sign | Quantised | RandomK)

    def test_extreme_numbers_survive(self, codec):
        tiny, huge = np.finfo(np.float32).smallest_subnormal, np.float32(1e38)
        for v in (np.array([tiny, 0, -tiny] * 50, np.float32), np.array([huge, -huge, tiny] * 50, np.float32)):
            if v[0] == huge and isinstance(codec, RandomK) and not codec.error_feedback and codec.fraction < 1:
                continue  # scaled, they are beyond float32, and refused
            assert np.isfinite(sent(codec, v)).all()

    def test_it_is_a_value(self, codec):
        assert pickle.loads(pickle.dumps(codec)) == codec == eval(repr(codec))


def test_scaled_beyond_float32_is_refused():
    with pytest.raises(ClientError, match="finite"):
        sent(RandomK(0.1), np.full(SIZE, 3e38, np.float32))


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.05, 0.5, 1.0])
def test_top_k_keeps_the_largest_exactly_and_nothing_else(fraction):
    v = vector()
    back, count = sent(TopK(fraction), v), kept(fraction, SIZE)
    places = np.flatnonzero(back)
    np.testing.assert_array_equal(back[places], v[places])
    largest = np.sort(np.abs(v))[SIZE - count :]
    np.testing.assert_array_equal(np.sort(np.abs(back))[SIZE - count :], largest)
    assert len(places) == np.count_nonzero(largest)


def test_fractions_round_up_but_not_by_rounding():
    assert [kept(fraction, 100) for fraction in (0.07, 0.29, 0.001, 1.0, 0.555)] == [7, 29, 1, 100, 56]


def test_top_k_sends_the_shorter_of_indices_and_bits():
    assert TopK(0.01).payload_bytes(3200) == 8 * 32
    assert TopK(0.1).payload_bytes(3200) == 4 * 320 + 400


@pytest.mark.parametrize("fraction", [0.002, 0.05, 0.3, 1.0])
def test_top_k_contracts(fraction):
    v = vector()
    assert energy(v - sent(TopK(fraction), v)) <= (1 - kept(fraction, SIZE) / SIZE) * energy(v) * (1 + 1e-6)


def test_top_k_contracts_no_more_than_it_says():
    """Equal numbers reach the bound."""
    v = np.full(1000, -0.25, np.float32)
    assert energy(v - sent(TopK(0.1), v)) == pytest.approx(0.9 * energy(v))


def test_sign_loses_what_its_paper_says():
    v = vector()
    expected = energy(v) - float(np.abs(v.astype(np.float64)).sum()) ** 2 / SIZE
    assert energy(v - sent(Sign(), v)) == pytest.approx(expected, rel=1e-5)
    equal = np.where(v >= 0, np.float32(0.3), np.float32(-0.3))
    np.testing.assert_array_equal(sent(Sign(), equal), equal)


def test_random_k_keeps_what_it_draws():
    v, codec = vector() + 1000, RandomK(0.3)
    back = sent(codec, v)
    places = np.flatnonzero(back)
    assert len(places) == kept(0.3, SIZE)
    np.testing.assert_allclose(back[places], v[places] * (SIZE / len(places)), rtol=1e-6)
    plain = sent(RandomK(0.3, error_feedback=True), v)
    np.testing.assert_array_equal(plain[np.flatnonzero(plain)], v[np.flatnonzero(plain)])
    assert set(np.flatnonzero(sent(codec, v, seed=1))) != set(places)


def test_random_k_draws_every_place_equally_often():
    v, draws = np.ones(40, np.float32), 4000
    counts = sum(sent(RandomK(0.25, error_feedback=True), v, seed) for seed in range(draws))
    chi_squared = float(np.square(counts - draws / 4).sum() / (draws / 4 * 0.75)) * 39 / 40
    assert 15 < chi_squared < 75  # 39 degrees of freedom: each tail below 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_becomes_one_of_the_two_levels_around_it(bits):
    codec = Quantised(bits, block=16)
    v = vector()
    back = sent(codec, v)
    scales = np.array([np.abs(v[start : start + 16]).max() for start in range(0, SIZE, 16)]).repeat(16)[:SIZE]
    assert (np.abs(back - v) <= scales / codec.levels * (1 + 1e-5)).all()
    largest = np.abs(v) == scales
    np.testing.assert_array_equal(back[largest], v[largest])


def bias(codec, v, draws=3000):
    """How many standard errors the mean of what arrives is from v, along a direction in which every number counts."""
    direction = np.random.default_rng(1).uniform(0.5, 1.5, len(v)) / v
    seen = np.array([(sent(codec, v, seed) - v.astype(np.float64)) @ direction for seed in range(draws)])
    return abs(seen.mean()) / (seen.std() / np.sqrt(draws))


@pytest.mark.parametrize("codec", UNBIASED, ids=repr)
def test_the_unbiased_are(codec):
    assert bias(codec, vector(100) + np.float32(0.01)) < 4


@pytest.mark.parametrize("codec", [RandomK(0.3, error_feedback=True), RandomK(0.3)], ids=["unscaled", "6 % too much"])
def test_a_biased_one_would_be_noticed(codec):
    v = vector(100) + np.float32(0.01)
    if not codec.error_feedback:

        class TooMuch(RandomK):
            def decode(self, payload, size):
                return super().decode(payload, size) * np.float32(1.06)

        codec = TooMuch(0.3)
    assert bias(codec, v) > 4


@pytest.mark.parametrize("codec", [Quantised(8, block=100), Quantised(4, block=100)], ids=repr)
def test_rounding_to_nearest_would_be_noticed(codec):
    """A third of the way to the next level: the mean is a third, the nearest is none."""
    v = np.full(100, 1 / 3 / codec.levels, np.float32)
    v[0] = 1
    mean = np.mean([sent(codec, v, seed)[1:].mean() for seed in range(200)]) * codec.levels
    assert mean == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / (200 * 99)))


def test_a_block_of_one_number_is_exact():
    np.testing.assert_array_equal(sent(Quantised(4, block=1), vector()), vector())


@pytest.mark.parametrize(("bits", "block"), [(8, 64), (4, 64)])
def test_quantisation_errs_within_its_bound(bits, block):
    v, codec = np.random.default_rng(0).normal(size=6400).astype(np.float32), Quantised(bits, block)
    lost = np.mean([energy(sent(codec, v, seed) - v) for seed in range(20)])
    assert lost <= block / (4 * codec.levels**2) * energy(v)


def fed(codec, deltas):
    """What arrives of a client's updates, one after another, and what it has left."""
    residual, arrived = None, []
    for number, delta in enumerate(deltas):
        update, residual = coded(codec, ClientUpdate(delta, NOTHING, 1.0, {}), residual, derive(number))
        arrived.append(decoded(update, codec, len(delta)).delta)
    return arrived, residual


FEEDBACK = [TopK(0.1), TopK(0.02), RandomK(0.1, error_feedback=True), Quantised(4, error_feedback=True), Sign()]


@pytest.mark.parametrize("codec", FEEDBACK, ids=repr)
def test_with_error_feedback_nothing_is_lost(codec):
    """Σ decoded + the last residual = Σ deltas; exactly, where a number travels as it is or not at all."""
    generator = np.random.default_rng(0)
    deltas = [generator.integers(-1000, 1000, SIZE).astype(np.float32) for _ in range(30)]
    arrived, residual = fed(codec, deltas)
    whole, given = np.sum(arrived, axis=0, dtype=np.float64) + residual, np.sum(deltas, axis=0, dtype=np.float64)
    if isinstance(codec, (TopK, RandomK)):
        np.testing.assert_array_equal(whole, given)
    np.testing.assert_allclose(whole, given, atol=1e-2)  # of numbers up to 10⁴, with 30 roundings
    assert np.abs(np.sum(arrived, axis=0) - given).max() > 1


@pytest.mark.parametrize("codec", FEEDBACK, ids=repr)
def test_what_is_left_does_not_grow(codec):
    """‖e‖² ≤ 4(1 − δ)/δ²·max‖Δ‖² for a contraction by 1 − δ (Karimireddy et al. 2019, lemma 3)."""
    generator = np.random.default_rng(0)
    deltas = [generator.normal(size=SIZE).astype(np.float32) for _ in range(300)]
    delta = {TopK: getattr(codec, "fraction", 0), RandomK: 0.1, Quantised: 1 - 128 / 196, Sign: 0.4}[type(codec)]
    _, residual = fed(codec, deltas)
    assert energy(residual) <= 4 * (1 - delta) / delta**2 * max(map(energy, deltas))


def test_without_error_feedback_nothing_is_kept():
    v = vector()
    update, residual = coded(TopK(0.1, error_feedback=False), ClientUpdate(v, NOTHING, 1.0, {}), v, derive(0))
    assert residual is None
    np.testing.assert_array_equal(decoded(update, TopK(0.1), SIZE).delta, sent(TopK(0.1), v))


def test_a_residual_of_another_model_is_refused():
    with pytest.raises(ClientError, match=r"residual of 1003 numbers, the client kept 5"):
        coded(Sign(), ClientUpdate(vector(), NOTHING, 1.0, {}), np.zeros(5, np.float32), derive(0))


def test_a_sum_that_overflows_is_refused():
    huge = np.full(8, 3e38, np.float32)
    with pytest.raises(ClientError, match="finite"), np.errstate(over="ignore"):
        coded(TopK(0.5), ClientUpdate(huge, NOTHING, 1.0, {}), huge, derive(0))


def test_bytes_are_counted_and_extra_arrives_as_it_is():
    codec, extra = Sign(), np.array([1.5, 2.25], np.float32)
    update, _ = coded(codec, ClientUpdate(vector(), extra, 3.0, {"loss": Weighted(1.0, 2.0)}), None, derive(0))
    assert update.nbytes == 4 + 126 + 8
    total = WeightedSum().add(WeightedSum().zero(SIZE), opened(update, codec, SIZE))
    np.testing.assert_array_equal(total.extra, extra * 3)
    np.testing.assert_array_equal(total.delta, sent(codec, vector()) * 3)
    assert (total.weight, total.metrics) == (3.0, {"loss": Weighted(1.0, 2.0)})


def test_a_payload_without_a_codec_is_refused():
    update, _ = coded(Sign(), ClientUpdate(vector(), NOTHING, 1.0, {}), None, derive(0))
    with pytest.raises(ClientError, match="no codec"):
        opened(update, None, SIZE)


class TestForgedPayloads:
    @pytest.mark.parametrize("indices", [[3, 3], [5, 2], [0, SIZE]])
    def test_indices(self, indices):
        forged = np.array(indices, "<u4").tobytes() + np.ones(2, "<f4").tobytes()
        with pytest.raises(ClientError, match=f"ascending indices below {SIZE}"):
            TopK(0.0015).decode(forged, SIZE)

    @pytest.mark.parametrize("marks", [[], [0, 1, 2], [0, 15]])
    def test_marks(self, marks):
        bits = np.zeros(16, np.uint8)
        bits[marks] = 1
        with pytest.raises(ClientError, match="marks 2 of 10 numbers"):
            TopK(0.2).decode(np.packbits(bits).tobytes() + np.ones(2, "<f4").tobytes(), 10)

    def test_values(self):
        with pytest.raises(ClientError, match="finite"):
            TopK(0.2).decode(b"\xc0\x00" + np.array([1, np.nan], "<f4").tobytes(), 10)

    @pytest.mark.parametrize("codec", [Sign(), Quantised(8), Quantised(4)], ids=repr)
    def test_scales(self, codec):
        rest = bytes(codec.payload_bytes(10) - 4)
        for wrong in (-1.0, np.inf, np.nan):
            with pytest.raises(ClientError, match="scale"):
                codec.decode(np.float32(wrong).tobytes() + rest, 10)

    def test_levels(self):
        scale = np.float32(1).tobytes()
        for codec, levels in ((Quantised(8), b"\x80"), (Quantised(4), b"\xf0"), (Quantised(4), b"\x71")):
            with pytest.raises(ClientError, match=r"levels from|half byte"):
                codec.decode(scale + levels, 1)

    def test_spare_bits(self):
        with pytest.raises(ClientError, match="no bits beyond the 10 numbers"):
            Sign().decode(np.float32(1).tobytes() + b"\xff\xff", 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(0), r"fraction=0 to be a finite number > 0 and ≤ 1"),
        (lambda: TopK(1.1), r"fraction=1.1 .*≤ 1"),
        (lambda: RandomK(-0.1), r"fraction=-0.1"),
        (lambda: RandomK(float("nan")), r"fraction=nan"),
        (lambda: RandomMask(2), r"fraction=2"),
        (lambda: RandomMask(0.1, seed=-1), r"seed=-1"),
        (lambda: Quantised(bits=3), r"bits=3 to be 8 or 4"),
        (lambda: Quantised(block=0), r"block=0"),
        (lambda: Quantised(bits=4, block=196, error_feedback=True), r"block=196 < 196 with error feedback on 4 bits"),
        (lambda: Sign(error_feedback=1), r"error_feedback=1 to be True or False"),
    ],
)
def test_bad_numbers_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


SPEC = ModelSpec((VariableSpec("w", (SIZE,), "float32", True, 0),))


def total_of(transform, state, deltas):
    updates = [transform.encode(state, ClientUpdate(delta, NOTHING, 1.0, {}), derive(0)) for delta in deltas]
    return Total(sum(update.delta for update in updates), NOTHING, float(len(deltas)), len(deltas), {})


class TestRandomMask:
    def test_the_sum_of_the_masked_is_the_mask_of_the_sum(self):
        transform, deltas = RandomMask(0.2), [np.round(vector(seed=seed) * 64) for seed in range(3)]
        state = transform.init(SPEC)
        total = total_of(transform, state, deltas)
        assert len(total.delta) == kept(0.2, SIZE)
        after, back = transform.decode(state, total, derive(0))
        places = transform.mask(state)
        expected = np.zeros(SIZE, np.float32)
        expected[places] = sum(deltas)[places] * np.float32(SIZE / len(places))
        np.testing.assert_array_equal(back.delta, expected)
        assert (back.weight, back.clients, after.rounds) == (3.0, 3, 1)

    def test_each_round_has_another_mask_and_all_have_their_turn(self):
        transform = RandomMask(0.2)
        state, seen = transform.init(SPEC), []
        for _ in range(40):
            seen.append(frozenset(transform.mask(state)))
            state, _ = transform.decode(state, total_of(transform, state, [vector()]), derive(0))
        assert len(set(seen)) == 40
        assert frozenset().union(*seen) == set(range(SIZE))
        assert frozenset(RandomMask(0.2, seed=1).mask(transform.init(SPEC))) != seen[0]

    def test_wrong_lengths_are_refused(self):
        transform = RandomMask(0.2)
        state = transform.init(SPEC)
        with pytest.raises(ConfigError, match="a delta of 1003 numbers, got 7"):
            transform.encode(state, ClientUpdate(vector(7), NOTHING, 1.0, {}), derive(0))
        with pytest.raises(ConfigError, match="a sum of 201 numbers, got 7"):
            transform.decode(state, Total(vector(7), NOTHING, 1.0, 1, {}), derive(0))
