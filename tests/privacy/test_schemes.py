"""Parameters of homomorphic encryption: what they hold, what they refuse; the grid and the slots."""

import math

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.privacy.schemes import (
    BFV,
    CKKS,
    LONGEST_MODULUS,
    batching_prime,
    chunks,
    describe,
    is_prime,
    quantize,
    read_scheme,
    smallest_log,
    whole_weight,
)

SCHEMES = (BFV(), BFV.for_clients(15), BFV.for_clients(10, bits=8), BFV.for_clients(40, max_weight=600), CKKS())


def test_the_prime_test_agrees_with_a_sieve_and_is_not_fooled_by_carmichael_numbers():
    sieve = np.ones(5000, bool)
    sieve[:2] = False
    for number in range(2, 71):
        sieve[2 * number :: number] = False
    assert [number for number in range(5000) if is_prime(number)] == np.flatnonzero(sieve).tolist()
    assert not any(is_prime(number) for number in (294409, 56052361, 118901521, 3215031751, 3474749660383))
    assert is_prime(2**61 - 1)
    assert not is_prime((2**31 - 1) * (2**29 - 3))


@pytest.mark.parametrize("above", [1, 8192, 8193, 983011, 2**40])
def test_a_batching_prime_is_the_next_that_is_one_modulo_twice_the_degree(above):
    found = batching_prime(4096, above)
    assert found > above
    assert found % 8192 == 1
    assert is_prime(found)
    assert not any(is_prime(number) for number in range(above + 1, found) if number % 8192 == 1)


def test_the_default_is_the_set_of_privacy_md_and_the_next_client_would_overflow_it():
    scheme = BFV()
    assert (scheme.degree, scheme.modulus_bits, scheme.plain_modulus, scheme.bits) == (4096, (54, 55), 1032193, 16)
    assert scheme.capacity == 15
    assert 15 * scheme.levels <= (scheme.plain_modulus - 1) // 2 < 16 * scheme.levels


@pytest.mark.parametrize("clients", [1, 3, 15, 32, 33, 100, 4096, 50_000])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("max_weight", [1, 600])
def test_parameters_for_clients_hold_them_or_say_which_bits_would(clients, bits, max_weight):
    try:
        scheme = BFV.for_clients(clients, bits, max_weight)
    except ConfigError as refused:
        named = int(str(refused).split("bits=")[-1].split(" ")[0])
        assert named < bits
        assert BFV.for_clients(clients, named, max_weight).capacity >= clients
        return
    assert scheme.capacity >= clients
    assert (scheme.bits, scheme.max_weight) == (bits, max_weight)
    assert sum(scheme.modulus_bits) <= LONGEST_MODULUS[scheme.degree]
    # Noise of at most 22 per ciphertext has to stay below q / 2t.
    assert 2 * clients * 22 * scheme.plain_modulus <= 2 ** smallest_log(scheme.modulus_bits)


def test_ckks_for_more_clients_names_the_bits_that_would_do():
    assert CKKS.for_clients(400) == CKKS()
    with pytest.raises(ConfigError, match="bits=23 would do"):
        CKKS.for_clients(1000)
    assert CKKS.for_clients(1000, bits=23).capacity >= 1000
    with pytest.raises(ConfigError, match="bound clients or weights"):
        CKKS.for_clients(5000)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: BFV(modulus_bits=(55, 55)), "110 bits long: below 128 bits of security; degree=4096 allows 109"),
        (lambda: CKKS(degree=8192, modulus_bits=(60, 60, 60, 40)), "220 bits long.*degree=8192 allows 218"),
        (lambda: BFV(degree=16384, modulus_bits=(55,) * 8, plain_modulus=65537), "440 bits long.*allows 438"),
        (lambda: BFV(degree=2048), "degree=2048 to be one of 4096, 8192, 16384"),
        (lambda: BFV(modulus_bits=(54,)), "two or more sizes"),
        (lambda: BFV(plain_modulus=1032192), "a prime ≡ 1 modulo 2·degree = 8192; the next is 1032193"),
        (lambda: BFV(plain_modulus=1032191), "a prime ≡ 1"),
        (lambda: BFV(plain_modulus=2**50 + 1), "no more room beside the noise"),
        (lambda: BFV(bits=22), "overflows plain_modulus=1032193; use fewer bits"),
        (lambda: BFV(max_weight=16), "overflows plain_modulus=1032193"),
        (lambda: BFV(bits=33), "bits=33 ≤ 32"),
        (lambda: CKKS(bits=32), "use fewer bits"),
        (lambda: CKKS(scale_bits=54), "does not fit scale_bits=54"),
    ],
)
def test_unsafe_or_overflowing_parameters_are_refused_with_a_sentence(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("share", [0.0003, 0.37, 1.0])
def test_sums_of_slots_are_slots_of_sums(scheme, share):
    count = max(1, int(share * scheme.integers_per_ciphertext))
    rng = np.random.default_rng(1)
    clients = min(scheme.capacity, 20)
    largest = scheme.levels * scheme.max_weight
    integers = rng.choice([-largest, -1, 0, 1, largest, 12 % (largest + 1)], (clients, count))
    integers[:, 0] = largest  # the sum at its very limit
    slots = np.sum([scheme.to_slots(one) for one in integers], axis=0)
    if isinstance(scheme, BFV):
        assert np.abs(slots).max() <= (scheme.plain_modulus - 1) // 2
    assert np.array_equal(scheme.from_slots(slots.tolist(), count), integers.sum(axis=0))


def test_ckks_gives_integers_back_through_noise_below_a_quarter_step_and_refuses_more():
    scheme = CKKS()
    integers = np.arange(-1000, 1000)
    slots = np.array(scheme.to_slots(integers))
    assert np.array_equal(scheme.from_slots(slots + 0.24 / scheme.levels, 2000), integers)
    with pytest.raises(ConfigError, match="not on the grid"):
        scheme.from_slots(slots + 0.26 / scheme.levels, 2000)
    with pytest.raises(ConfigError, match="not on the grid"):
        scheme.from_slots([math.nan], 1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounding_is_within_a_step_unbiased_and_keeps_the_limit(scheme):
    rng = np.random.default_rng(2)
    limit, weight = 0.5, scheme.max_weight
    x = rng.uniform(-limit, limit, 70_000).astype(np.float32)
    x[:2] = limit, -limit
    integers = quantize(scheme, x, limit, weight, rng.bytes(32))
    if weight > 1:
        integers, last = integers[:-1], integers[-1]
        assert last == weight
    scaled = integers / weight
    assert scaled[0] == scheme.levels
    assert scaled[1] == -scheme.levels
    error = scaled - x.astype(np.float64) * (scheme.levels / limit)
    assert np.abs(error).max() < 1
    # The error of one number has a standard deviation of at most half a step; always rounding down would give −0.5.
    assert abs(error.mean()) < 5 * 0.5 / np.sqrt(x.size)


def test_rounding_follows_its_seed():
    x = np.full(1000, 0.3, np.float32)
    one, again, other = (quantize(BFV(), x, 1.0, 1, seed) for seed in (bytes(32), bytes(32), bytes(31) + b"\1"))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_weights_are_whole_and_bounded():
    assert [whole_weight(weight, 600) for weight in (0.0, 1, 600.0)] == [0, 1, 600]
    assert [whole_weight(weight, 1) for weight in (0.0, 1.0)] == [0, 1]  # 0: the client does not count
    for weight, max_weight in ((2.0, 1), (0.5, 1), (0.5, 600), (601.0, 600), (-1.0, 600), (math.nan, 600)):
        with pytest.raises(ConfigError, match="weight"):
            whole_weight(weight, max_weight)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_parameters_survive_their_bytes_and_chunks_cover_a_vector_once(scheme):
    assert read_scheme(describe(scheme)) == scheme
    for line in (b"", b"{}", describe(scheme)[:-4], b'{"scheme":"rsa","modulus_bits":[54,55]}', b"\xff", b"[]"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_scheme(line)
    step = scheme.integers_per_ciphertext
    for size in (1, step - 1, step, step + 1, 3 * step):
        assert np.concatenate([np.arange(size)[part] for part in chunks(scheme, size)]).tolist() == list(range(size))
        assert all(part.stop - part.start <= step for part in chunks(scheme, size))
