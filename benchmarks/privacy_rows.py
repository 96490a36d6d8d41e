"""Costs of protecting a run: a function for each subject, that gives the rows of the table."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from umbel.benchmarks import privacy_parties
from umbel.core.types import Vector
from umbel.privacy.secagg import FixedPoint, shamir
from umbel.privacy.secagg.masking import BLOCK_BYTES, apply_masks, stream

SIZE = 1_663_370  # number of parameters of the 5×5 CNN
BYTES = 4 * SIZE
PASSES = 7
MASKS = 16


class Row(NamedTuple):
    """One line: what was measured and what it should be."""

    what: str
    measured: float
    target: float | None  # None: nothing was promised
    unit: str  # "×" for a ratio to what `what` names, "ms", "s" or "M/s"
    at_least: bool = False  # whether the target is a floor; else a ceiling

    @property
    def is_met(self) -> bool | None:
        """True where the target is met, False where it is not, None without one."""
        if self.target is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


def medians(*works: Callable[[], Any], passes: int = PASSES) -> list[float]:
    """Measure the median processor seconds that each work takes, all threads together.

    They take turns, so that a machine that slows down slows all alike.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(passes):
        for own, work in zip(seconds, works, strict=True):
            started = time.process_time()
            work()
            own.append(time.process_time() - started)
    return [statistics.median(own) for own in seconds]


@cache
def update() -> Vector:
    """Draw a vector as clients send them."""
    return np.random.default_rng(0).normal(0, 0.1, SIZE).astype(np.float32)


def aes_ctr(masks: int) -> None:
    """Run AES-128-CTR alone, over as many bytes as so many masks of SIZE numbers, into memory that stays cached."""
    zeros, buffer = memoryview(bytes(BLOCK_BYTES)), bytearray(BLOCK_BYTES + 16)
    for _ in range(masks):
        source = stream(bytes(32))
        for start in range(0, BYTES, BLOCK_BYTES):
            source.update_into(zeros[: BYTES - start], buffer)


def masking() -> Iterator[Row]:
    values, seeds = np.zeros(SIZE, "<u4"), [os.urandom(32) for _ in range(MASKS)]
    ours, aes = medians(lambda: apply_masks(values, seeds), lambda: aes_ctr(MASKS))
    yield Row("Mask and add: speed, of AES-128-CTR's", aes / ours, 0.7, "×", at_least=True)
    runs = [(privacy_parties.server_unmask(SIZE, dropped=5), medians(partial(aes_ctr, 95))[0]) for _ in range(3)]
    speeds = [aes * masks / 95 / seconds for (seconds, masks), aes in runs]
    title = "Server unmasks 100 clients, 5 dropped out: speed, of AES-128-CTR's"
    yield Row(title, statistics.median(speeds), 0.6, "×", at_least=True)


def encoding() -> Iterator[Row]:
    vector, encoding = update(), FixedPoint(1.0, clients=100)
    target = np.empty_like(vector)
    ours, copy = medians(lambda: encoding.encode(vector, 1, bytes(32)), lambda: np.copyto(target, vector))
    yield Row("Encoding to fixed point: time, of memcpy's", ours / copy, 8.0, "×")


def client() -> Iterator[Row]:
    vector, passes = update(), 5
    runs = [(privacy_parties.umbel_client(vector), medians(lambda: aes_ctr(100), passes=1)[0]) for _ in range(passes)]
    ours = statistics.median(cost.seconds for cost, _ in runs)
    theirs = [privacy_parties.flower_client(vector) for _ in range(3)]
    flower = statistics.median(cost.seconds for cost in theirs)
    title = "A client among 100, complete graph: processor time"
    yield Row(f"{title}, of AES-128-CTR's for 100 masks", ours / statistics.median(aes for _, aes in runs), 2.0, "×")
    yield Row(f"{title}, of Flower SecAgg+'s ({1e3 * flower:.0f} ms)", ours / flower, 0.1, "×")
    yield Row("The same: bytes sent, of float32's", runs[0][0].sent_bytes / BYTES, 1.02, "×")
    yield Row("Flower's SecAgg+: bytes sent, of float32's", theirs[0].sent_bytes / BYTES, None, "×")


def secret_sharing() -> Iterator[Row]:
    points = range(1, 101)

    def deal() -> None:
        for _ in range(2):
            shamir.split(bytes(32), 67, points, os.urandom)

    yield Row("Shamir, two secrets to 100, threshold 67", 1e3 * medians(deal, passes=51)[0], 1.5, "ms")


def noise() -> Iterator[Row]:
    from umbel.privacy.noise import NoiseStream

    ours, numpy = medians(lambda: NoiseStream.live().draw(SIZE), lambda: np.random.normal(size=SIZE))
    yield Row(f"Gaussian noise ({1e3 * ours:.1f} ms): time, of np.random.normal's", ours / numpy, 0.33, "×")


def clipping() -> Iterator[Row]:
    from umbel.privacy.clipping import clip

    vector, target = update(), np.empty(SIZE, np.float32)
    ours, copy = medians(lambda: clip(vector, 1.0), lambda: np.copyto(target, vector))
    yield Row("Clipping: time, of memcpy's", ours / copy, None, "×")


def accounting() -> Iterator[Row]:
    from umbel.privacy.accounting import pld_epsilon, rdp_epsilon
    from umbel.privacy.events import Gaussian

    counts = iter(range(10_000, 11_000))  # nothing of an earlier pass can be used again
    pld_epsilon({Gaussian(1.0, 0.01): 10}, 1e-6, 1.0)  # dp_accounting is imported

    def by_pld() -> None:
        count = next(counts)
        pld_epsilon({Gaussian(1 + count / 1e5, 0.01): count}, 1e-6, estimate=8.0)

    def by_rdp() -> None:
        count = next(counts)
        rdp_epsilon({Gaussian(1 + count / 1e5, 0.01): count}, 1e-6)

    pld, rdp = medians(by_pld, by_rdp, passes=5)
    yield Row("ε of 10,000 rounds by PLD", pld, 1.2, "s")
    yield Row("ε of 10,000 rounds by RDP", rdp, 0.1, "s")


def homomorphic() -> Iterator[Row]:
    from umbel.privacy.contexts import ClientContext
    from umbel.privacy.schemes import BFV, CKKS, quantize

    bounds: Sequence[tuple[Any, float, float]] = ((BFV, 4.0, 3.5), (CKKS, 7.6, 2.0))
    for scheme, most_bytes, least_speed in bounds:
        chosen = scheme.for_clients(3)
        context, vector = ClientContext.create(chosen), update()
        sent: list[bytes] = []

        def encrypt(context: Any = context, chosen: Any = chosen, sent: list = sent) -> None:
            sent[:] = [context.encrypt(quantize(chosen, update(), 1.0, 1, bytes(32)))]

        seconds = medians(encrypt, passes=3)[0]
        name = f"{scheme.__name__}, {chosen.bits} bits"
        yield Row(f"{name}: bytes sent, of float32's", len(sent[0]) / vector.nbytes, most_bytes, "×")
        yield Row(f"{name}: parameters encoded and encrypted", SIZE / seconds / 1e6, least_speed, "M/s", at_least=True)


def envelopes() -> Iterator[Row]:
    from umbel.privacy.keys import KeyFile, frames
    from umbel.privacy.keys.envelopes import Binding, seal

    recipient, sender, binding = (
        KeyFile.generate("recipient", 1).public,
        KeyFile.generate("node", 1),
        Binding("run", 1, 1),
    )
    body, key = update().tobytes(), os.urandom(32)
    ours, raw = medians(
        lambda: seal(body, recipient, sender, binding), lambda: AESGCM(key).encrypt(bytes(12), body, None)
    )
    yield Row("Sealing an update: time, of AES-256-GCM's in one call", ours / raw, 1.3, "×")
    large = np.zeros(100_000_000, np.uint8)
    ours, raw = medians(
        lambda: frames.seal(key, large.data), lambda: AESGCM(key).encrypt(bytes(12), large.data, None), passes=3
    )
    yield Row("Sealing 100 MB in frames: time, of AES-256-GCM's in one call", ours / raw, 1.0, "×")


ROWS = (
    masking,
    client,
    secret_sharing,
    encoding,
    clipping,
    noise,
    accounting,
    homomorphic,
    envelopes,
)
