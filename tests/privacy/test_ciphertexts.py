"""Encrypted sums: exact, unreadable to the server, and closed to bytes of other contexts."""

import pickle

import numpy as np
import pytest

from optional import needs_tenseal
from umbel.core.errors import ClientError, ConfigError
from umbel.privacy.contexts import HEAD, ClientContext, ServerContext
from umbel.privacy.schemes import BFV, CKKS, batching_prime

LARGE = BFV(plain_modulus=batching_prime(8192, 2**50), values_per_slot=2, degree=8192, modulus_bits=(60, 60, 60))
SCHEMES = (BFV(), BFV.for_clients(15), BFV.for_clients(10, bits=8), BFV.for_clients(40, max_weight=600), LARGE, CKKS())


def draw(scheme, size: int, clients: int) -> np.ndarray:
    """Integers up to the largest a client may send, both signs, with the extremes in every position somewhere."""
    largest = scheme.levels * scheme.max_weight
    integers = np.random.default_rng(size).integers(-largest, largest + 1, (clients, size))
    integers[:, 0], integers[:, -1] = largest, -largest
    return integers


@pytest.fixture(scope="module")
def context() -> ClientContext:
    return ClientContext.create(BFV())


@needs_tenseal
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("size", [1, 4097])
def test_a_decrypted_sum_is_the_integer_sum_bit_for_bit(scheme, size):
    client = ClientContext.create(scheme)
    integers = draw(scheme, size, 4)
    total = client.server_context().zero(size)
    for one in integers:
        total.add(client.encrypt(one))
    assert total.clients == 4
    assert np.array_equal(client.decrypt(total.to_bytes()), integers.sum(axis=0))


@needs_tenseal
@pytest.mark.parametrize("scheme", [BFV.for_clients(32), BFV.for_clients(4096), BFV.for_clients(512, 12, 64)], ids=str)
def test_bfv_is_exact_up_to_its_capacity_even_when_all_noise_points_one_way(scheme):
    client, server = ClientContext.create(scheme), ClientContext.server_context
    one = draw(scheme, 2 * 4096, 1)[0]
    one[5:4000] = scheme.levels * scheme.max_weight
    total, clients = server(client).zero(one.size), 1
    total.add(client.encrypt(one))
    while 2 * clients <= scheme.capacity:
        total.add(total.to_bytes())  # the same noise again, which independent clients would never have
        clients *= 2
    assert clients > scheme.capacity / 2
    assert np.array_equal(client.decrypt(total.to_bytes()), clients * one)
    with pytest.raises(ClientError, match="clients are more than"):
        total.add(total.to_bytes())
    assert total.clients == clients


@needs_tenseal
def test_ckks_is_exact_up_to_its_capacity():
    scheme = CKKS()
    client = ClientContext.create(scheme)
    integers = draw(scheme, 300, scheme.capacity)
    total = client.server_context().zero(300)
    for one in integers:
        total.add(client.encrypt(one))
    assert np.array_equal(client.decrypt(total.to_bytes()), integers.sum(axis=0))
    with pytest.raises(ClientError, match="clients are more than"):
        total.add(client.encrypt(integers[0]))


@needs_tenseal
def test_partial_sums_merge_into_the_whole(context):
    integers = draw(context.scheme, 10, 6)
    server = context.server_context()
    parts = [server.zero(10), server.zero(10)]
    for client, one in enumerate(integers):
        parts[client % 2].add(context.encrypt(one))
    parts[0].add(parts[1].to_bytes())
    assert parts[0].clients == 6
    assert np.array_equal(context.decrypt(parts[0].to_bytes()), integers.sum(axis=0))


@needs_tenseal
def test_equal_updates_encrypt_to_other_bytes(context):
    zeros = np.zeros(100, np.int64)
    one, other = context.encrypt(zeros)[HEAD.size :], context.encrypt(zeros)[HEAD.size :]
    assert sum(a == b for a, b in zip(one[200:], other[200:], strict=False)) < 0.15 * len(one)


@needs_tenseal
def test_another_key_is_refused_by_its_id_and_would_decrypt_nothing(context):
    other = ClientContext.create(context.scheme)
    assert other.id != context.id
    integers = draw(context.scheme, 50, 3)
    total = context.server_context().zero(50)
    for one in integers:
        total.add(context.encrypt(one))
    encrypted = total.to_bytes()
    with pytest.raises(ConfigError, match=f"under context {context.id.hex()[:16]}, not {other.id.hex()[:16]}"):
        other.decrypt(encrypted)
    with pytest.raises(ClientError, match="client 4: encrypted under context"):
        other.server_context().zero(50).add(context.encrypt(integers[0]), 4)
    relabelled = encrypted.replace(context.id, other.id)
    assert np.mean(other.decrypt(relabelled) == integers.sum(axis=0)) < 0.1


@needs_tenseal
def test_one_update_is_not_decrypted_as_a_sum(context):
    with pytest.raises(ConfigError, match="at least 3 clients"):
        context.decrypt(context.encrypt(np.zeros(5, np.int64)))


@needs_tenseal
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_that_could_overflow_the_sum_are_not_encrypted(context, sign):
    context.encrypt(np.array([sign * 32767]))
    with pytest.raises(ConfigError, match="at most 32767 to encrypt, got 32768"):
        context.encrypt(np.array([0, sign * 32768]))


@needs_tenseal
@pytest.mark.parametrize("scheme", [BFV(), CKKS()], ids=str)
def test_truncated_and_foreign_bytes_are_refused(scheme):
    client = ClientContext.create(scheme)
    size = scheme.integers_per_ciphertext + 5
    good = client.encrypt(np.ones(size, np.int64))
    chunk = int.from_bytes(good[HEAD.size : HEAD.size + 4], "little")
    cut = HEAD.size + 4 + chunk
    foreign = [
        *(good[:end] for end in (0, 10, HEAD.size - 1, HEAD.size, HEAD.size + 2, HEAD.size + 100, cut, cut + 3)),
        good[:-1],
        good + b"\0",
        good + good[cut:],
        good[: HEAD.size] + 2 * good[HEAD.size : cut],  # the full chunk where the short one belongs
        good[: HEAD.size] + good[cut:] + good[HEAD.size : cut],
        good[: HEAD.size] + good[HEAD.size : HEAD.size + 4] + bytes(chunk) + good[cut:],
        good[: HEAD.size] + 2 * (4).to_bytes(4, "little") + 2 * b"\0\0\0\0",
        b"x" * len(good),
    ]
    total = client.server_context().zero(size)
    for bad in foreign:
        with pytest.raises(ClientError):
            total.add(bad)
    assert total.clients == 0
    total.add(good)
    nobody = good[: HEAD.size - 8] + bytes(4) + good[HEAD.size - 4 :]
    with pytest.raises(ClientError, match="of 0 clients"):
        total.add(nobody)
    for bad in (b"", total.to_bytes()[:-1], b"x" * 200):
        with pytest.raises(ConfigError):
            client.decrypt(bad)
    with pytest.raises(ClientError, match=f"of {size + 1} integers, got {size}"):
        client.server_context().zero(size + 1).add(good)


@needs_tenseal
@pytest.mark.parametrize(
    ("scheme", "other"),
    [(BFV(), LARGE), (BFV(), CKKS()), (CKKS(), BFV()), (CKKS(), CKKS(bits=22, scale_bits=39))],
    ids=str,
)
def test_ciphertexts_of_other_parameters_are_refused(scheme, other):
    client, stranger = ClientContext.create(scheme), ClientContext.create(other)
    encrypted = stranger.encrypt(np.ones(3, np.int64)).replace(stranger.id, client.id)
    total = client.server_context().zero(3)
    with pytest.raises(ClientError, match="not of these parameters"):
        total.add(encrypted)
    assert total.clients == 0


@needs_tenseal
def test_a_key_file_that_names_other_parameters_is_refused(context):
    renamed = BFV(bits=14, plain_modulus=batching_prime(4096, 1032193))
    with pytest.raises(ConfigError, match="does not fit its parameters"):
        ClientContext.from_bytes(ClientContext(renamed, context._secret, None).to_bytes())


@needs_tenseal
@pytest.mark.parametrize("scheme", [BFV.for_clients(15), LARGE, CKKS()], ids=str)
def test_contexts_survive_their_bytes(scheme):
    client = ClientContext.create(scheme)
    again, server = ClientContext.from_bytes(client.to_bytes()), client.server_context()
    assert again.id == client.id
    assert again.scheme == scheme
    assert ServerContext.from_bytes(server.to_bytes()) == server
    integers = draw(scheme, 20, 3)
    total = ServerContext.from_bytes(server.to_bytes()).zero(20)
    for one in integers:
        total.add(client.encrypt(one))
    assert np.array_equal(again.decrypt(total.to_bytes()), integers.sum(axis=0))


@needs_tenseal
def test_changed_context_bytes_are_refused(context):
    for kind, good in ((ClientContext, context.to_bytes()), (ServerContext, context.server_context().to_bytes())):
        for end in (0, 8, 20, 60, len(good) // 2, len(good) - 1):
            with pytest.raises(ConfigError):
                kind.from_bytes(good[:end])
        for place in (3, 40, len(good) // 2, len(good) - 1):
            changed = bytearray(good)
            changed[place] ^= 1
            with pytest.raises(ConfigError):
                kind.from_bytes(bytes(changed))
    with pytest.raises(ConfigError, match="expected the bytes of a client context"):
        ClientContext.from_bytes(context.server_context().to_bytes())


@needs_tenseal
def test_the_server_has_no_key_and_the_clients_key_is_not_shown(context):
    server = context.server_context()
    assert len(server.to_bytes()) < 300
    total = server.zero(4)
    total.add(context.encrypt(np.ones(4, np.int64)))
    with pytest.raises(ValueError, match="secret_key"):
        total.ciphertexts[0].decrypt()
    assert not total.ciphertexts[0].context().has_secret_key()
    assert len(repr(context)) < 250
    assert context.to_bytes()[-64:].hex() not in repr(context)
    with pytest.raises(ConfigError, match="not pickled"):
        pickle.dumps(context)


@needs_tenseal
@pytest.mark.parametrize(
    ("scheme", "ratio"),
    [(BFV(), 4.0), (BFV.for_clients(32), 2.0), (BFV.for_clients(10, 8), 1.3), (CKKS(), 7.6)],
    ids=str,
)
def test_an_update_takes_few_bytes(scheme, ratio):
    client, size = ClientContext.create(scheme), 10 * scheme.integers_per_ciphertext
    integers = draw(scheme, size, 1)[0]
    encrypted = client.encrypt(integers)
    assert len(encrypted) <= ratio * 4 * size
    assert abs(client.encrypted_size(size) / len(encrypted) - 1) < 0.005
