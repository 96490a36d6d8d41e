"""Gaussian noise that nobody can subtract: an AES-CTR keystream, turned normal by Box and Muller's transform.

Sources: Box, Muller 1958: A Note on the Generation of Random Normal Deviates, https://doi.org/10.1214/aoms/1177706645;
counter mode: NIST SP 800-38A.
"""

from __future__ import annotations

import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from ..core.errors import ConfigError
from ..core.random import Key
from ..core.types import Vector
from ..core.validation import require, require_count, require_real

PAIRS = 16384  # pairs of normal numbers per block: its working arrays stay in a core's cache
BYTES_PER_PAIR = 12  # bytes of keystream for each pair: 8 for the radius, 4 for the angle
ZEROS = memoryview(bytes(BYTES_PER_PAIR * PAIRS))  # plaintext that is encrypted to get the keystream
SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30  # beyond, noise would leave the range of float32
GRID_BITS = 20  # bits of a noise scale above the grid's step: far below the noise, far above its own spacing
MAX_RATIO = 2.0**22  # most that a coordinate is of the scale; there, float32's neighbours are half a scale apart


class NoiseStream:
    """Stream of independent draws of N(0, scale²) as float32, built by `live` or `simulated`; `seeded` says which.

    live: every draw has a fresh 128-bit key from the operating system, so nothing repeats, not even after a fork.
    simulated: all draws are one keystream under a derived key, each continuing where the last one ended. Equal keys
    give equal noise: whoever knows the run's seed can subtract it. Such a stream is neither copied nor pickled, since
    the copy would repeat its noise.

    The numbers of `draw` are floating point (Mironov 2012): release what `add_to` makes of them, which lies on a grid.
    For claims to the last bit, noise has to be integers of a distribution of their own, as DistributedPlan's are. They
    lie within 9.4 scales of 0, a probability of 1 − 2⁻⁶⁴.
    """

    def __init__(self, keystream: CipherContext | None):
        self._keystream = keystream

    @staticmethod
    def live() -> NoiseStream:
        """Return a stream of noise from the operating system's entropy, for real devices."""
        return NoiseStream(None)

    @staticmethod
    def simulated(key: Key) -> NoiseStream:
        """Return a stream that repeats with the run's seed, for simulation. key: derived for this purpose alone."""
        return NoiseStream(keystream_of(key.derive("gaussian noise").digest))

    @property
    def seeded(self) -> bool:
        """Return whether the noise follows from a seed; the report of such a run says so."""
        return self._keystream is not None

    def __repr__(self) -> str:
        return f"NoiseStream(seeded={self.seeded})"

    def __reduce__(self) -> tuple:
        if self.seeded:
            raise ConfigError("a simulated noise stream cannot be copied or pickled: the copy would repeat its noise")
        return NoiseStream.live, ()

    def draw(self, size: int, scale: float = 1.0) -> Vector:
        """Draw `size` independent numbers from N(0, scale²): float32, shape (size,). A scale of 0 gives zeros.

        Errors: ConfigError for a negative size, or a scale that is not finite, negative, or outside float32's range.
        """
        require_count("size", size, at_least=0)
        require_scale(scale)
        if not scale:
            return np.zeros(size, np.float32)
        # A live stream never uses a key twice, a simulated one never a byte of its keystream.
        keystream = keystream_of(os.urandom(16)) if self._keystream is None else self._keystream
        noise, work = np.empty(size, np.float32), NoiseWorkspace(min(PAIRS, (size + 1) // 2))
        for start in range(0, size, 2 * PAIRS):
            work.fill(noise[start : start + 2 * PAIRS], scale, keystream)
        return noise

    def add_to(self, vector: Vector, scale: float) -> Vector:
        """Add N(0, scale²) to each coordinate, as a new vector of float32. A scale of 0 returns vector itself.

        The sum is taken in float64 and rounded once, to a grid that depends on the scale alone. A float32 sum would be
        exact where noise and coordinate nearly cancel, and a multiple of the noise's own spacing: its low bits would
        tell whether a coordinate is the one guessed.

        Errors: ConfigError as for `draw`; for a coordinate that is not finite; and for one so large beside scale that
        rounding to float32 would swallow the noise.
        """
        require_scale(scale)
        if not scale:
            return vector
        largest = float(np.abs(vector).max(initial=0.0))
        require(
            largest <= MAX_RATIO * scale,
            f"expected finite coordinates of at most {MAX_RATIO:.0f} noise scales: float32 would round the noise away; "
            "clip before adding noise",
        )
        noisy, step = self.draw(vector.size, scale), grid_step(scale)
        for start in range(0, vector.size, 2 * PAIRS):
            block = slice(start, start + 2 * PAIRS)
            exact = noisy[block].astype(np.float64)
            exact += vector[block]
            exact /= step
            np.rint(exact, out=exact)
            exact *= step
            noisy[block] = exact
        return noisy


def grid_step(scale: float) -> float:
    """Return the step of the grid that noise of this scale is released on.

    The step is a power of two, from 2⁻²⁰ to 2⁻¹⁹ of the scale.
    """
    return 2.0 ** (math.frexp(scale)[1] - GRID_BITS)


def require_scale(scale: float) -> None:
    """Raise unless scale is 0 or within what float32 noise can have."""
    require_real("scale", scale, at_least=0, at_most=LARGEST_SCALE)
    require(not 0 < scale < SMALLEST_SCALE, f"expected scale={scale!r} to be 0 or ≥ {SMALLEST_SCALE:g}")


def keystream_of(secret: bytes) -> CipherContext:
    """Open the AES-128-CTR keystream of a key used once, so that its counter may begin at 0."""
    return Cipher(AES(secret), CTR(bytes(16))).encryptor()


class NoiseWorkspace:
    """Arrays for blocks of up to `pairs` pairs of normal numbers, allocated once per draw."""

    def __init__(self, pairs: int):
        self.words = bytearray(
            BYTES_PER_PAIR * pairs + 15
        )  # update_into asks for up to a cipher block more than it writes
        self.radius = np.empty(pairs, np.float64)
        self.length = np.empty(pairs, np.float32)
        self.angle = np.empty(pairs, np.float32)
        self.wave = np.empty(pairs, np.float32)

    def fill(self, noise: Vector, scale: float, keystream: CipherContext) -> None:
        """Overwrite noise with N(0, scale²), from the next 12 bytes of keystream per pair."""
        pairs = (noise.size + 1) // 2
        keystream.update_into(ZEROS[: BYTES_PER_PAIR * pairs], self.words)
        radius, length, angle, wave = (array[:pairs] for array in (self.radius, self.length, self.angle, self.wave))
        # 63 bits in float64, for the tails: 32 would end them at 6.7 scales. The half keeps the logarithm finite.
        # Not 64: converting unsigned words branches on their top bit, which doubles the time of all this.
        bits = np.frombuffer(self.words, "<u8", pairs)
        bits >>= 1
        radius[:] = bits.view("<i8")
        radius += 0.5
        radius *= 2.0**-63
        np.log(radius, out=radius)
        np.multiply(radius, -2.0, out=length, casting="same_kind")
        np.sqrt(length, out=length)
        length *= np.float32(scale)
        angle[:] = np.frombuffer(self.words, "<i4", pairs, 8 * pairs)
        angle *= np.float32(np.pi / 2**31)
        np.multiply(length, np.cos(angle, out=wave), out=noise[:pairs])
        rest = noise.size - pairs
        np.multiply(length[:rest], np.sin(angle, out=wave)[:rest], out=noise[pairs:])
