"""Composition: ε of a ledger that grows by one event a round, in less than a millisecond a round.

All counts of an event share here what `accounting.epsilon` computes from scratch: the event's privacy loss
distribution P, rounded up to a grid, and the Fourier transform φ of P. n releases have the transform φⁿ, and

    δ(ε) = Σ_l P*ⁿ(l)·(1 − e^(ε − l))₊

is a correlation, so a product of transforms. φⁿ is all but 0 beyond a few frequencies, hence a short inverse
transform, which gives δ at every 2^k-th point of the grid. Between them the line in e^ε lies above δ, which is convex
in e^ε; so ε stays an upper bound, and meets `accounting.epsilon` to 4 digits.

A transform rounds: each frequency of φ is off by up to 2⁻⁵³·log₂(length)·‖P‖₂, that of φⁿ by n times as much, and δ by
no more than the sum over all frequencies that are kept, in L2 norm. That is counted into δ. Where δ is no larger than
it, there is no such bound, and RDP's stands.

Source: Koskela, Jälkö, Honkela 2020: Computing tight differential privacy guarantees using FFT,
https://arxiv.org/abs/1906.03049; bounds of the tails as in Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from . import accounting
from .events import Event, Ledger, SkellamSum, parse_event

TAIL = 1e-15  # probability beyond the window, counted into δ
NEGLIGIBLE = math.log(1e-18)  # logarithm of the magnitude below which a frequency of φⁿ is left out
SHORTEST = 1 << 16  # length of the shortest inverse transform
SLOW = 1 << 15  # frequencies that take longer than a round may wait: such counts, the first few, are computed at once


def spent(ledger: Ledger, delta: float, rounds: int) -> float:
    """Return `accounting.epsilon(ledger, delta).pld`, or up to 1e-4 of it more.

    rounds: how far the ledger may be expected to grow; the first call prepares for as many. It takes up to a second or
    two, and every later one a millisecond, where the ledger has one event.
    """
    counted = [(parse_event(text), count) for text, count in ledger.items() if count]
    if len(counted) != 1:
        return accounting.epsilon(ledger, delta).pld
    ((event, count),) = counted
    if isinstance(event, SkellamSum) or accounting.is_plain(event):
        return accounting.epsilon(ledger, delta).pld
    most = rounds if count <= rounds else 1 << (count - 1).bit_length()
    if most > accounting.LARGEST_COUNT or not largest_loss(event, delta, most) <= accounting.LARGEST_EPSILON:
        return accounting.epsilon(ledger, delta).pld
    return growing(event, delta, most).epsilon(count)


def largest_loss(event: Event, delta: float, most: int) -> float:
    """Return about the largest loss that `most` releases may have: it decides the interval of the grid."""
    return max(accounting.rdp_epsilon({event: most}, delta), accounting.largest_loss(event))


@lru_cache(maxsize=2)
def growing(event: Event, delta: float, most: int) -> Growing:
    """Return the one Growing of these numbers."""
    return Growing(event, delta, most)


class Growing:
    """ε at delta of up to `most` releases of one event. Every value is kept, since a round asks more than once."""

    def __init__(self, event: Event, delta: float, most: int):
        self.event, self.delta, self.most = event, delta, most
        interval = accounting.grid_interval(largest_loss(event, delta, most))
        once = accounting.loss_distribution(event, 1, interval)
        self.directions = [LossTransform(pmf, interval, most) for pmf in directions_of(once)]
        self.known: dict[int, float] = {}

    def epsilon(self, count: int) -> float:
        """Return ε of `count` releases."""
        if count not in self.known:
            first = not self.known
            self.known[count] = self._compute(count)
            if first:
                self._prepare(count)
        return self.known[count]

    def _prepare(self, count: int) -> None:
        """Compute the counts to come that take long: few releases keep many frequencies."""
        while count < self.most and any(one.frequencies(count + 1) > SLOW for one in self.directions):
            count += 1
            self.known[count] = self._compute(count)

    def _compute(self, count: int) -> float:
        largest = 0.0
        for direction in self.directions:
            found = direction.epsilon(count, self.delta)
            if found is None:
                return accounting.epsilon_of({self.event: count}, self.delta).pld
            largest = max(largest, found)
        events = {self.event: count}
        return min(largest, accounting.rdp_epsilon(events, self.delta)) if accounting.has_rdp_bound(events) else largest


def directions_of(once: Any) -> list[Any]:
    """Return the distributions for removing and for adding a client; one where they are the same."""
    both = [once._pmf_remove, once._pmf_add]
    return [one.to_dense_pmf() for one in (both[:1] if both[0] is both[1] else both)]


class LossTransform:
    """The transform of one release's privacy losses: ε of up to `most` releases, in one direction."""

    def __init__(self, pmf: Any, interval: float, most: int):
        from scipy.special import logsumexp

        self.interval, self.lowest = interval, pmf._lower_loss
        self.without_infinity = math.log1p(-pmf._infinity_mass)
        probabilities = np.asarray(pmf._probs)
        self.last = len(probabilities) - 1
        self.orders = np.concatenate([np.arange(-20, 0), np.arange(1, 21)]) / len(probabilities)
        places = np.arange(len(probabilities))
        self.moments = np.array([logsumexp(places * order, b=probabilities) for order in self.orders])
        low, high = self.window(most)
        # Twice the window: no loss may wrap around into a difference that counts.
        self.length = max(SHORTEST, 1 << (2 * (high - low + 1) - 1).bit_length())
        self.rounding_once = 2.0**-53 * math.log2(self.length) * float(np.linalg.norm(probabilities))
        with np.errstate(divide="ignore"):
            self.logarithms = np.log(np.fft.rfft(probabilities, self.length))
        self.decay = np.maximum.accumulate(self.logarithms.real[::-1])[::-1]
        counted = np.zeros(self.length)
        counted[: self.length // 2] = -np.expm1(-np.arange(self.length // 2) * interval)
        self.counted = np.conj(np.fft.rfft(counted))

    def window(self, count: int) -> tuple[int, int]:
        """Return the places between which the sum of `count` losses lies, but for a probability of at most TAIL.

        The bound is Chernoff's.
        """
        bounds = (count * self.moments + math.log(2 / TAIL)) / self.orders
        low, high = bounds[self.orders < 0].max(), bounds[self.orders > 0].min()
        return max(0, math.floor(low)), min(self.last * count, math.ceil(high))

    def rounding(self, count: int) -> float:
        """Return how far the transforms' rounding may move a δ of `count` releases."""
        return count * self.rounding_once * math.sqrt(self.frequencies(count))

    def frequencies(self, count: int) -> int:
        """Return the number of frequencies of `count` releases that are not negligible."""
        return max(2, int(np.searchsorted(-self.decay, -NEGLIGIBLE / count, side="right")))

    def epsilon(self, count: int, delta: float) -> float | None:
        """Return ε of `count` releases; None where it lies outside the window."""
        low, high = self.window(count)
        points, stride = self.deltas(count, low)
        points = points[: (high - low) // stride + 1]
        points += 2 * TAIL - math.expm1(count * self.without_infinity) + self.rounding(count)
        start = count * self.lowest + low
        after = int(np.argmax(points <= delta))
        if not points[after] <= delta:
            return None
        if after == 0:
            return None if start > 0 else 0.0
        before, above, below = start + (after - 1) * stride, points[after - 1], points[after]
        part = (above - delta) / (above - below)
        return float(self.interval * before + math.log1p(math.expm1(self.interval * stride) * part))

    def deltas(self, count: int, low: int) -> tuple[np.ndarray, int]:
        """Return δ at ε = (count·lowest + low + stride·place)·interval, at each place; and the stride."""
        kept = self.frequencies(count)
        size = min(self.length, max(SHORTEST, 1 << (2 * kept - 1).bit_length()))
        turns = (np.arange(kept) * low) % self.length
        spectrum = np.exp(count * self.logarithms[:kept] + 2j * math.pi / self.length * turns) * self.counted[:kept]
        return np.fft.irfft(spectrum, size) * (size / self.length), self.length // size
