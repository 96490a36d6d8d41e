"""Shamir's secret sharing over the integers modulo 2²⁵⁶ + 297, the least prime above 2²⁵⁶.

Source: Shamir 1979: How to share a secret. https://doi.org/10.1145/359168.359176
Any 256-bit secret is a field element. Shares say only y; x follows from who holds them, so it cannot be forged.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33  # a field element may need 257 bits
MOST_SUBSETS = 1024  # subsets tried before giving up on finding who sent bad shares


class Reconstruction(NamedTuple):
    """Result of `reconstruct`."""

    secret: bytes | None  # 32 bytes; None when no subset of the shares gives a secret that verifies
    bad_points: tuple[int, ...]  # points whose shares do not belong to the secret; empty without one
    is_consistent: bool  # more than threshold shares, all on one polynomial: without a secret, the dealer lied

    def __repr__(self) -> str:
        return f"Reconstruction(secret=hidden, bad_points={self.bad_points}, is_consistent={self.is_consistent})"


def split(secret: bytes, threshold: int, points: Sequence[int], entropy: Callable[[int], bytes]) -> list[int]:
    """Split a 32-byte secret into one share per point: any `threshold` of them give it back, fewer say nothing of it.

    points: distinct integers from 1 up, few enough to be below PRIME.
    """
    # 384 bits reduced modulo a 257-bit prime are uniform to 2⁻¹²⁷.
    noise = entropy(48 * (threshold - 1))
    drawn = [int.from_bytes(noise[start : start + 48], "big") % PRIME for start in range(0, len(noise), 48)]
    coefficients = [int.from_bytes(secret, "big"), *drawn]
    return [evaluate(coefficients, point) for point in points]


def evaluate(coefficients: Sequence[int], point: int, prime: int = PRIME) -> int:
    """Evaluate the polynomial, lowest coefficient first, at point."""
    value = 0
    for coefficient in reversed(coefficients):
        value = value * point + coefficient  # reduced once: points are small, and a division costs more than the digits
    return value % prime


def interpolate(shares: Mapping[int, int], at: int = 0, prime: int = PRIME) -> int:
    """Compute the value at `at` of the polynomial of least degree through shares {point: value}."""
    weights = lagrange(tuple(shares), at, prime)
    return sum(weight * value for weight, value in zip(weights, shares.values(), strict=True)) % prime


@lru_cache(maxsize=1024)  # in one round most secrets are rebuilt from the same holders
def lagrange(points: tuple[int, ...], at: int, prime: int = PRIME) -> tuple[int, ...]:
    """Compute the Lagrange coefficients of points for a value at `at`."""
    weights = []
    for one in points:
        above = math.prod(at - other for other in points if other != one)
        below = math.prod(one - other for other in points if other != one)
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)


def reconstruct(shares: Mapping[int, int], threshold: int, verify: Callable[[bytes], bool]) -> Reconstruction:
    """Find the secret behind shares {point: value}, of which some may be wrong, and whose they are.

    verify: whether 32 bytes are the secret. All shares enter the first try, so that a wrong one among those to spare is
    found as well. Guarantees: never a secret that does not verify; one wrong share among threshold + 1 is found, and
    more where MOST_SUBSETS allows. The points named are right while at most half of the shares to spare are wrong, or a
    single one is; more who collude could make honest ones look wrong. At least threshold shares are needed.
    """
    spare = len(shares) - threshold
    secret = _to_secret(interpolate(shares))
    if secret is not None and verify(secret):
        return Reconstruction(secret, (), spare > 0)
    best = Reconstruction(None, (), False)
    for subset in subsets(tuple(shares), threshold):
        kept = {point: shares[point] for point in subset}
        secret = _to_secret(interpolate(kept))
        if secret is None or not verify(secret):
            continue
        others = strangers(shares, kept)
        if best.secret is None or len(others) < len(best.bad_points):
            best = Reconstruction(secret, others, False)
        if 2 * len(others) <= spare:  # no second polynomial has so few strangers
            break
    if best.secret is not None:
        return best
    first = dict(itertools.islice(shares.items(), threshold))
    return Reconstruction(None, (), spare > 0 and not strangers(shares, first))


def to_bytes(share: int) -> bytes:
    """Write a share as SHARE_BYTES bytes, big-endian."""
    return share.to_bytes(SHARE_BYTES, "big")


def from_bytes(data: bytes) -> int | None:
    """Invert `to_bytes`; None for bytes that are no field element in canonical form."""
    value = int.from_bytes(data, "big")
    return value if len(data) == SHARE_BYTES and value < PRIME else None


def _to_secret(value: int) -> bytes | None:
    """Return a field element as a secret, or None for one of the few above 256 bits."""
    return value.to_bytes(SECRET_BYTES, "big") if value < 2**256 else None


def is_one_polynomial(shares: Mapping[int, int], threshold: int) -> bool:
    """Return whether shares {point: value} are all on one polynomial of a degree below threshold.

    False is certain; True is wrong with a chance of 2⁻²⁵⁶. Such values, times any polynomial of a degree below the
    number of points to spare, sum to 0 with the points' weights. Source: Cascudo, David 2017,
    https://eprint.iacr.org/2017/216.
    """
    points = tuple(shares)
    test = [secrets.randbelow(PRIME) for _ in range(len(points) - threshold)]
    terms = zip(dual_weights(points), shares.items(), strict=True)
    return sum(weight * evaluate(test, point) * value for weight, (point, value) in terms) % PRIME == 0


@lru_cache(maxsize=1024)
def dual_weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Compute for each point the inverse of the product of its distances from the others."""
    distances = (math.prod(one - other for other in points if other != one) for one in points)
    return tuple(pow(distance, -1, PRIME) for distance in distances)


def strangers(shares: Mapping[int, int], kept: Mapping[int, int]) -> tuple[int, ...]:
    """Return the points whose share is not on the polynomial through those kept."""
    others = [point for point in shares if point not in kept]
    return tuple(sorted(point for point in others if interpolate(kept, point) != shares[point]))


def subsets(points: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    """Yield subsets of threshold points such that each e points, e as large as affordable, are all left out of one.

    With the points in groups of ⌊spare / e⌋, leaving out every choice of e groups leaves out every choice of e points.
    """

    def leaving_out() -> Iterator[tuple[int, ...]]:
        spare = len(points) - threshold
        families = []
        for wrong in range(1, spare + 1):
            size = spare // wrong
            groups = [points[start : start + size] for start in range(0, len(points), size)]
            families.append(
                tuple(point for point in points if not any(point in group for group in dropped))[:threshold]
                for dropped in itertools.combinations(groups, wrong)
            )
        return itertools.chain.from_iterable(families)

    return itertools.islice(leaving_out(), MOST_SUBSETS)
