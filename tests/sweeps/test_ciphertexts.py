"""Mutated ciphertexts, to the server's sum and to who decrypts: refused, or decrypted; no crash and no hang."""

import time

import numpy as np
import pytest

from optional import needs_tenseal
from umbel.core.errors import ClientError, ConfigError
from umbel.privacy.contexts import HEAD, ClientContext
from umbel.privacy.schemes import BFV, CKKS

SECONDS = 5.0


def mutated(content, random):
    """One change of eight kinds: bits, lengths, counts, sizes, garbage at the places where SEAL reads."""
    body, kind = bytearray(content), random.integers(0, 8)
    if kind == 0:
        body[random.integers(len(body))] ^= 1 << random.integers(8)
    elif kind == 1:
        body = body[: random.integers(len(body))]
    elif kind == 2:
        body += random.bytes(9)
    elif kind == 3:
        start = HEAD.size + 4 + int(random.integers(0, 200))
        body[start : start + 4] = random.bytes(4)
    elif kind == 4:
        body[48:56] = random.bytes(8)
    elif kind == 5:
        body[HEAD.size : HEAD.size + 4] = int(random.choice([0, 1, 2**31, 2**32 - 1])).to_bytes(4, "little")
    elif kind == 6:
        start = int(random.integers(HEAD.size, len(body) - 64))
        body[start : start + 64] = random.bytes(64)
    else:
        body[HEAD.size + 4 :] = random.bytes(len(body) - HEAD.size - 4)
    return bytes(body)


@needs_tenseal
@pytest.mark.parametrize("scheme", [BFV(), CKKS.for_clients(8)], ids=["bfv", "ckks"])
@pytest.mark.parametrize("mutations", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_mutated_ciphertext_is_refused_or_decrypted(scheme, mutations):
    random, refused = np.random.default_rng(5), 0
    client = ClientContext.create(scheme)
    server = client.server_context()
    update = client.encrypt(random.integers(-100, 100, 50))
    total = server.zero(50)
    for _ in range(3):
        total.add(update)
    for number in range(mutations):
        began = time.monotonic()
        if number % 2:
            one = server.zero(50)
            try:
                one.add(mutated(update, random), 1)
            except ClientError:
                refused += 1
                assert not one.ciphertexts
                assert one.clients == 0
        else:
            try:
                assert client.decrypt(mutated(total.to_bytes(), random)).shape == (50,)
            except ConfigError:
                refused += 1
        assert time.monotonic() - began < SECONDS
    assert refused > mutations / 2
