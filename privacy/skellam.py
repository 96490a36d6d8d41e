"""Skellam noise: the difference of two Poisson numbers. Sums of Skellam numbers are Skellam numbers again.

    P(k) = e^(−v)·I_|k|(v), of variance v, with the modified Bessel function I

It is drawn exactly, to 2⁻¹²⁸: from the table of its distribution function, in whole numbers, and the bits of an AES-CTR
keystream. No floating-point number is involved that an attacker could tell the draw by.

Source of the ratios I_k/I_(k−1): Olver et al., NIST Digital Library of Mathematical Functions, §10.33,
https://dlmf.nist.gov/10.33.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np

from ..core.random import Key
from ..core.validation import require
from .noise import keystream_of

BITS = 128  # bits of the distribution function
POINT = 192  # bits after the point of the whole numbers that it is computed with
LARGEST_VARIANCE = 2.0**31  # largest variance of a draw: its table has 1.2 million entries
CHUNK = 1 << 16  # numbers drawn at a time
GUIDE_BITS = 20  # leading bits of a word by which it is looked up first


def tail(variance: float) -> int:
    """Compute the largest magnitude of a draw; a Skellam number's exceeds it with probability below 2⁻¹²⁸.

    By Bernstein's inequality, P(|k| ≥ t) ≤ 2·exp(−t²/(2(v + t/3))).
    """
    exponent = 2 * (BITS + 1) * math.log(2)
    return math.ceil(exponent / 6 + math.sqrt((exponent / 6) ** 2 + exponent * variance))


def draw(size: int, variance: float, key: Key) -> np.ndarray:
    """Draw `size` independent Skellam numbers of this variance: int64, shape (size,).

    key: derived for this purpose alone. Errors: ConfigError for a variance that is not within 0…LARGEST_VARIANCE.
    """
    require(0 < variance <= LARGEST_VARIANCE, f"expected 0 < variance={variance!r} ≤ {LARGEST_VARIANCE:.0f}")
    high, low = table(variance)
    guide = guide_of(variance)
    stream, found = keystream_of(key.derive("skellam noise").digest), np.empty(size, np.int64)
    for start in range(0, size, CHUNK):
        part = found[start : start + CHUNK]
        words = np.frombuffer(stream.update(bytes(16 * len(part))), "<u8").reshape(2, -1)
        leading = (words[0] >> np.uint64(64 - GUIDE_BITS)).astype(np.intp)
        part[:] = guide[leading]
        # Most words lie between the same two entries as all others that begin alike; the few others are looked up.
        unsure = np.flatnonzero(guide[leading + 1] != part)
        part[unsure] = np.searchsorted(high, words[0, unsure], side="left")
        # Only where the first word meets an entry's does the second decide: hardly ever.
        for place in unsure[high[np.minimum(part[unsure], len(high) - 1)] == words[0, unsure]]:
            while part[place] < len(high) and (high[part[place]], low[part[place]]) <= tuple(words[:, place]):
                part[place] += 1
    return found - len(high) // 2


@lru_cache(maxsize=4)
def table(variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate ⌊2¹²⁸·P(number ≤ k)⌋ for k = −t … t−1, as two words, the higher first: uint64, shape (2t,) each.

    A number of 128 random bits lies below as many entries as make k: those at most it, less t.
    """
    weights = bessel(variance, tail(variance))
    total, word = 2 * sum(weights) - weights[0], 2**64 - 1
    below = accumulate(weights[:0:-1] + weights[:-1])
    entries = [min((part << BITS) // total, 2**BITS - 1) for part in below]
    return np.array([one >> 64 for one in entries], np.uint64), np.array([one & word for one in entries], np.uint64)


@lru_cache(maxsize=4)
def guide_of(variance: float) -> np.ndarray:
    """Count the entries of `table` below each word that has its GUIDE_BITS first bits alone: int32."""
    firsts = np.arange(1 << GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - GUIDE_BITS)
    high, _ = table(variance)
    return np.append(np.searchsorted(high, firsts, side="left"), len(high)).astype(np.int32)


def bessel(variance: float, last: int) -> list[int]:
    """Compute whole numbers in proportion to I_0(v) … I_last(v), to a relative last·2^−POINT of the first."""
    exact = Fraction(variance)
    double, one = (2 * exact.denominator << POINT) // exact.numerator, 1 << 2 * POINT
    # I_k/I_(k−1) = 1/(2k/v + I_(k+1)/I_k), downwards from so far beyond `last` that it may begin with anything.
    ratio, ratios = 0, []
    for order in range(last + last // 3 + 64, 0, -1):
        ratio = one // (order * double + ratio)
        if order <= last:
            ratios.append(ratio)
    return list(accumulate(reversed(ratios), lambda weight, step: weight * step >> POINT, initial=1 << POINT))
