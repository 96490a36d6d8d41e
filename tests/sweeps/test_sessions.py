"""Secure sums in which a message, to a client or from one, is mutated: a refusal or the right sum, nothing else."""

import collections
import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from umbel.privacy.keys.errors import SecAggAbort
from umbel.privacy.secagg import Client, FixedPoint, Member, Roster, RoundLog, Server, Terms

STAGES, SIZE, SECONDS = 5, 6, 5.0
HEAD = 40  # bytes of a message's head: kind and session


def mutated(message, pool, random):
    """One change of ten kinds: bits, lengths, counts, pieces swapped, another message, garbage."""
    body, kind = bytearray(message), random.integers(0, 10)
    if kind == 0 and body:
        body[random.integers(len(body))] ^= 1 << random.integers(8)
    elif kind == 1:
        body = body[: random.integers(0, len(body) + 1)]
    elif kind == 2:
        body += random.bytes(int(random.integers(1, 50)))
    elif kind == 3:
        body = bytearray(pool[random.integers(len(pool))])
    elif kind == 4 and len(body) > HEAD + 4:
        body[HEAD : HEAD + 4] = int(random.choice([0, 1, 2, 2**31, 2**32 - 1])).to_bytes(4, "little")
    elif kind == 5 and len(body) > 2 * HEAD:
        start = random.integers(HEAD, len(body) - 8)
        body[start : start + 8] = random.bytes(8)
    elif kind == 6:
        body = bytearray(random.bytes(int(random.integers(0, 200))))
    elif kind == 7 and len(body) > HEAD + 20:
        one, other = (int(random.integers(HEAD, len(body) - 20)) for _ in range(2))
        body[one : one + 16], body[other : other + 16] = body[other : other + 16], body[one : one + 16]
    elif kind == 8 and len(body) > 8:
        body[random.integers(8)] = random.integers(256)
    elif kind == 9 and len(body) > HEAD + 8:
        del body[HEAD + int(random.integers(len(body) - HEAD))]
    return bytes(body)


def play(number, identities, roster, pool, random):
    """One session; what became of it."""
    clients, is_weighted = int(random.integers(3, 8)), bool(random.integers(2))
    encoding = FixedPoint(2.0, 8, 50 if is_weighted else 1, 64 if is_weighted else 32)
    terms = Terms(roster, encoding, SIZE, bytes(32), 3)
    values = {}
    for client in range(clients):
        vector = random.uniform(-2, 2, SIZE).astype("f4")
        weight = int(random.integers(0, 51)) if is_weighted else 1
        values[client] = encoding.encode(vector, weight, random.bytes(32)).values
    parties = {
        client: Client(client, identities[client], terms, values[client].copy(), 0, RoundLog()) for client in values
    }
    server = Server(terms, list(values), f"r{number}", 1, 1, 0)
    stage, victim, is_upwards = int(random.integers(STAGES)), int(random.integers(clients)), bool(random.integers(2))
    is_everybody = random.random() < 0.3
    try:
        for step in range(STAGES):
            for client, message in server.advance().items():
                pool.append(bytes(message))
                is_hit = step == stage and (client == victim or is_everybody)
                sent = mutated(message, pool, random) if is_hit and not is_upwards else message
                try:
                    reply = parties[client].answer(sent)
                except SecAggAbort:
                    continue
                pool.append(bytes(reply))
                try:
                    server.receive(client, mutated(reply, pool, random) if is_hit and is_upwards else reply)
                except SecAggAbort:
                    continue
            del pool[:-400]
        outcome = server.finish()
    except SecAggAbort:
        return "refused"
    wanted = np.zeros(encoding.ring_length(SIZE), encoding.dtype)
    for client in outcome.survivors:
        wanted += values[client]
    if (outcome.total == wanted).all():
        return "right"
    # A masked vector that was changed is another one of that client's own.
    assert (is_upwards, stage) == (True, 2), number
    return "own vector"


@pytest.mark.parametrize("sessions", [80, pytest.param(2500, marks=pytest.mark.slow)])
def test_a_mutated_message_ends_in_a_refusal_or_the_right_sum(sessions):
    random, pool, ends = np.random.default_rng(7), [b""], collections.Counter()
    identities = {client: Ed25519PrivateKey.generate() for client in range(8)}
    members = (Member(client, key.public_key().public_bytes_raw(), "", 10) for client, key in identities.items())
    roster = Roster(tuple(members))
    for number in range(sessions):
        began = time.monotonic()
        ends[play(number, identities, roster, pool, random)] += 1
        assert time.monotonic() - began < SECONDS
    assert ends["right"] > sessions / 10
    assert ends["refused"] > sessions / 20
