"""Check of what a client dealt, while nothing is revealed: are its shares points of polynomials of the right degree?

With the shares of its mask key k and its seed s a dealer deals those of a random number r. Each holder tells the server
r + c·k + c²·s of its own three, where c is a hash of all that the dealer sealed and signed: it is known only once that
is fixed, and the same for every holder. If these points are on no polynomial of a degree below the threshold, then the
shares are of no secrets, but for a chance of 2⁻²⁵⁵. r is revealed to nobody, so that what the server is told is a
random polynomial, and says nothing of k and s. Source: Schoenmakers 1999, https://doi.org/10.1007/3-540-48405-1_10, of
which this is the variant whose verifiers are the holders.

Wrong points have two explanations, as wrong shares have: a dealer that lies, or a holder. See `disputes`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping

from . import shamir

Pair = tuple[int, int]  # (holder, dealer), one of whom lies
SUBSETS = 128  # subsets of points tried before a dealer's shares are taken to be of no secret


def challenge(session: bytes, dealer: int, dealing: bytes) -> int:
    """Return c of a dealer in a session. dealing: digest of all that the dealer sealed."""
    text = b"umbel secagg dealing" + session + dealer.to_bytes(8, "little") + dealing
    return int.from_bytes(hashlib.sha256(text).digest(), "big")


def point(c: int, of_key: int, of_seed: int, of_blind: int) -> int:
    """Return what a holder tells of its three shares."""
    return (of_blind + c * (of_key + c * of_seed)) % shamir.PRIME


def strangers(points: Mapping[int, int], threshold: int) -> tuple[int, ...]:
    """Return the points that are on another polynomial than most, where they are too many to be put right; else none.

    As many as half of the points to spare can be wrong without harm. Without any to spare nothing can be told.
    """
    if shamir.is_one_polynomial(points, threshold):
        return ()
    spare = len(points) - threshold
    fewest = tuple(points)
    for subset in itertools.islice(shamir.subsets(tuple(points), threshold), SUBSETS):
        others = shamir.strangers(points, {x: points[x] for x in subset})
        fewest = min(fewest, others, key=len)
        if 2 * len(fewest) <= spare:
            return ()
    return fewest


def culprits(pairs: Iterable[Pair], before: Iterable[Pair] = ()) -> list[int]:
    """Return who goes so that no pair is left, the worst first: who is in most pairs; of two alike, the dealer.

    before: pairs of attempts before, which count as well: whoever lies of one dealer after another is found out.
    """
    left, known = set(pairs), Counter(node for pair in before for node in pair)
    found: list[int] = []
    while left:
        counts = Counter(node for pair in left for node in pair)
        dealers = {dealer for _, dealer in left}
        worst = max(counts, key=lambda node: (counts[node] + known[node], node in dealers, node))
        found.append(worst)
        left = {pair for pair in left if worst not in pair}
    return found
