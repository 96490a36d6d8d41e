"""One client among a hundred, played message by message: Umbel's secure aggregation, and Flower's SecAgg+."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from umbel.privacy.secagg import Client, FixedPoint, Member, Roster, RoundLog, Server, Stage, Terms
from umbel.privacy.secagg.messages import (
    Advert,
    Consent,
    Kind,
    Roll,
    decode_list,
    encode_list,
    encode_survivors,
    peek,
)
from umbel.privacy.secagg.session import Session

T = TypeVar("T")
CLIENTS = 100
THRESHOLD = 67  # two thirds of the clients
OWN = 0  # number of the client that is timed


class Cost(NamedTuple):
    """Cost of one client in one session."""

    seconds: float  # processor time, all threads
    sent_bytes: int


class Clock:
    """A clock that adds up the processor time of what it runs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, work: Callable[..., T], *arguments: object) -> T:
        """Call work(*arguments), on the clock."""
        started = time.process_time()
        result = work(*arguments)
        self.seconds += time.process_time() - started
        return result


def parties(size: int) -> tuple[Terms, dict[int, Ed25519PrivateKey]]:
    """Make terms for a vector of `size` numbers, and each client's identity."""
    identities = {node: Ed25519PrivateKey.generate() for node in range(CLIENTS)}
    members = (Member(node, key.public_key().public_bytes_raw(), "", 1) for node, key in identities.items())
    return Terms(Roster(tuple(members)), FixedPoint(1.0, CLIENTS), size, model=bytes(32)), identities


def umbel_client(vector: np.ndarray) -> Cost:
    """Play one of Umbel's clients, masking with all others: every stage, and the encoding of its vector.

    It comes first at each stage, so that nothing was computed before by the others, who share its process.
    """
    terms, identities = parties(len(vector))
    clients = {node: Client(node, key, terms, None, 0, RoundLog()) for node, key in identities.items()}
    own, clock = clients[OWN], Clock()
    offer = terms.offer("benchmark", 1, 1)
    sent = [clock.time(own.answer, offer.encode())]
    adverts = [sent[0], *(client.answer(offer.encode()) for node, client in clients.items() if node != OWN)]
    roll = Roll(CLIENTS - 1, THRESHOLD, tuple(Advert.decode(advert, offer.digest) for advert in adverts))
    message = roll.encode(offer.digest)
    sent.append(clock.time(own.answer, message))
    bound = peek(sent[1])[1]
    received = []
    for node, client in clients.items():
        if node != OWN:
            shares = decode_list(Kind.SHARES, client.answer(message), bound)
            received += [sealed._replace(node=node) for sealed in shares if sealed.node == OWN]
    encoded = clock.time(terms.encoding.encode, vector, 1, bytes(32))
    own.provide(encoded.values)
    sent.append(clock.time(own.answer, encode_list(Kind.DELIVERY, bound, received)))
    flags = [True] * CLIENTS
    sent.append(clock.time(own.answer, encode_survivors(bound, flags)))
    text = Session.establish(terms, offer, roll).survivors_text(flags)
    consents = [Consent(node, key.sign(text)) for node, key in identities.items()]
    sent.append(clock.time(own.answer, encode_list(Kind.CONSENTS, bound, consents)))
    return Cost(clock.seconds, sum(map(len, sent)))


def flower_client(vector: np.ndarray) -> Cost:
    """Play the same client of Flower's SecAgg+, by its own functions, with its default ranges."""
    from flwr.common import ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
    from flwr.supercore.primitives import asymmetric

    # By name: its package hides the module behind a function of the same name.
    flower = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    key = flower.Key
    state, clock = flower.SecAggPlusState(nid=OWN), Clock()
    settings = {key.SAMPLE_NUMBER: CLIENTS, key.SHARE_NUMBER: CLIENTS, key.THRESHOLD: THRESHOLD}
    ranges = {key.CLIPPING_RANGE: 8.0, key.TARGET_RANGE: 1 << 22, key.MOD_RANGE: 1 << 32, key.MAX_WEIGHT: 1000.0}
    own = clock.time(flower._setup, state, settings | ranges)
    pairs = {node: (asymmetric.generate_key_pairs(), asymmetric.generate_key_pairs()) for node in range(1, CLIENTS)}
    public = {str(node): [asymmetric.public_key_to_bytes(one[1]) for one in pair] for node, pair in pairs.items()}
    shared = clock.time(flower._share_keys, state, {str(OWN): list(own.values())} | public)
    ciphertexts, own_key = [], asymmetric.bytes_to_public_key(state.pk2)
    for node, pair in pairs.items():
        plain = share_keys_plaintext_concat(node, OWN, state.rd_seed_share_dict[OWN], state.sk1_share_dict[OWN])
        ciphertexts.append(encrypt(generate_shared_key(pair[1][0], own_key), plain))
    parameters = ndarrays_to_parameters([vector])
    sources = {key.CIPHERTEXT_LIST: ciphertexts, key.SOURCE_LIST: list(pairs)}
    masked = clock.time(flower._collect_masked_vectors, state, sources, 600, parameters)
    everyone = {key.ACTIVE_NODE_ID_LIST: list(range(CLIENTS)), key.DEAD_NODE_ID_LIST: []}
    revealed = clock.time(flower._unmask, state, everyone)
    parts = [*own.values(), *shared[key.CIPHERTEXT_LIST], *masked[key.MASKED_PARAMETERS], *revealed[key.SHARE_LIST]]
    return Cost(clock.seconds, sum(map(len, parts)))


def server_unmask(size: int, dropped: int) -> tuple[float, int]:
    """Return the processor seconds in which the server unmasks a sum of a hundred clients, and the number of masks.

    dropped: clients that share their secrets and send no vector.
    """
    terms, identities = parties(size)
    values = np.zeros(size, terms.encoding.dtype)
    clients = {node: Client(node, key, terms, values, 0, RoundLog()) for node, key in identities.items()}
    server, gone = Server(terms, list(clients), "benchmark", 1, 1, 0), set(range(dropped))
    for stage in range(Stage.DONE):
        for node, message in server.advance().items():
            if stage < Stage.MASK or node not in gone:
                server.receive(node, clients[node].answer(message))
    session = server._session
    masks = CLIENTS - dropped + sum(len(set(session.neighbours(node)) - gone) for node in gone)
    clock = Clock()
    total = clock.time(server.finish).total
    if total.any():
        raise AssertionError("masks are left in the sum")
    return clock.seconds, masks
