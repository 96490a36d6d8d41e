"""Parameters of homomorphic encryption, and vectors as the integers that its slots hold.

Sources: Fan, Vercauteren 2012, https://eprint.iacr.org/2012/144 (BFV); Cheon, Kim, Kim, Song 2017,
https://eprint.iacr.org/2016/421 (CKKS); the HomomorphicEncryption.org standard, https://eprint.iacr.org/2019/939 (the
limits for 128 bits of security).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import ConfigError
from ..core.types import Vector
from ..core.validation import require, require_count
from .secagg.masking import keystream

LONGEST_MODULUS = {4096: 109, 8192: 218, 16384: 438}  # log₂ q at 128 bits of security, by degree
NOISE = 22  # largest error of one fresh ciphertext: 21 from SEAL's centered binomial, and rounding
DEVIATION = 3.3  # standard deviation of a fresh ciphertext's error, rounded up
SIGMAS = 10  # deviations of CKKS's noise that fit into a quarter of a step: exceeded with probability 2⁻⁷⁵ a slot
CHUNK = 1 << 15  # numbers rounded at a time: their float64 temporaries stay in the cache
WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # bases of Miller and Rabin's test: exact below 2⁶⁴


@dataclass(frozen=True)
class BFV:
    """Exact arithmetic modulo plain_modulus; as it stands, for 16-bit numbers of 15 clients.

    Parameters
    ----------
    bits
        The bits of a number on the grid.
    max_weight
        The largest weight of a client.
    plain_modulus
        T, a prime ≡ 1 modulo 2·degree.
    values_per_slot
        How many numbers share a slot, each in ⌊log₂ t⌋ / values_per_slot bits: two halve bytes and time.
    degree
        N, the number of slots.
    modulus_bits
        The sizes of q's primes, the last of which only keys use. `for_clients` chooses t and values_per_slot.
        Guarantees: a sum of `capacity` clients overflows nothing, and its noise, at its worst, does not reach a digit.
        Errors: ConfigError for parameters below 128 bits of security, or a capacity of none.
    """

    bits: int = 16
    max_weight: int = 1
    plain_modulus: int = 1032193
    values_per_slot: int = 1
    degree: int = 4096
    modulus_bits: tuple[int, ...] = (54, 55)

    def __post_init__(self) -> None:
        require_ring(self)
        require_count("values_per_slot", self.values_per_slot)
        require_count("plain_modulus", self.plain_modulus, at_least=2)
        t, period = self.plain_modulus, 2 * self.degree
        most = 2 ** (smallest_log(self.modulus_bits) - (2 * NOISE).bit_length())
        require(t <= most, f"expected plain_modulus={t} ≤ {most}: modulus_bits has no more room beside the noise")
        if t % period != 1 or not is_prime(t):
            raise ConfigError(
                f"expected plain_modulus={t} to be a prime ≡ 1 modulo 2·degree = {period}; "
                f"the next is {batching_prime(self.degree, t)}"
            )
        if not self.capacity:
            raise ConfigError(
                f"a number of bits={self.bits} and max_weight={self.max_weight} overflows plain_modulus={t}; "
                "use fewer bits, or a plain_modulus from BFV.for_clients(clients, bits, max_weight)"
            )

    @staticmethod
    def for_clients(clients: int, bits: int = 16, max_weight: int = 1) -> BFV:
        """Find the parameters, of degree 4096, that sum `clients` updates in the fewest bytes.

        Errors: ConfigError where there are none; it names the bits that would do.
        """
        require_count("clients", clients)
        require_numbers(bits, max_weight)
        for fewer in range(bits, 1, -1):
            fitting = [_fit(clients, fewer, max_weight, values) for values in (4, 3, 2, 1)]
            found = next(filter(None, fitting), None)
            if found and fewer == bits:
                return found
            if found:
                raise _too_many("BFV", clients, bits, max_weight, fewer)
        raise _too_many("BFV", clients, bits, max_weight, None)

    @property
    def levels(self) -> int:
        """Integer that stands for limit."""
        return 2 ** (self.bits - 1) - 1

    @property
    def integers_per_ciphertext(self) -> int:
        """Number of integers that one ciphertext holds."""
        return self.degree * self.values_per_slot

    @property
    def capacity(self) -> int:
        """Largest number of clients that a sum may have."""
        largest = (self.plain_modulus - 1) // 2 if self.values_per_slot == 1 else 2 ** (self._field_bits - 1) - 1
        # Noise that reaches q / 2t changes digits.
        by_noise = 2 ** smallest_log(self.modulus_bits) // (2 * self.plain_modulus * NOISE)
        return min(largest // (self.levels * self.max_weight), by_noise)

    def slots_for(self, count: int) -> int:
        """Return the number of slots that `count` integers take."""
        return -(-count // self.values_per_slot)

    def to_slots(self, integers: np.ndarray) -> list[int]:
        """Put integers into the slots of one ciphertext. integers: int64, at most integers_per_ciphertext."""
        fields = np.zeros((self.values_per_slot, self.slots_for(len(integers))), np.int64)
        fields.reshape(-1)[: len(integers)] = integers
        slots = fields[-1]
        for field in fields[-2::-1]:
            slots = (slots << self._field_bits) + field
        return slots.tolist()

    def from_slots(self, slots: Sequence[int], count: int) -> np.ndarray:
        """Read the `count` integers that slots hold: int64."""
        rest, fields, half = np.array(slots, np.int64), [], 1 << (self._field_bits - 1)
        for _ in range(self.values_per_slot - 1):
            fields.append(((rest + half) & (2 * half - 1)) - half)
            rest = (rest - fields[-1]) >> self._field_bits
        return np.concatenate([*fields, rest])[:count]

    @property
    def _field_bits(self) -> int:
        """Bits of a slot for each of the numbers that share it."""
        return (self.plain_modulus.bit_length() - 1) // self.values_per_slot


@dataclass(frozen=True)
class CKKS:
    """Approximate arithmetic, finer than its grid, so that integers come back; as it stands, for 24-bit numbers.

    Parameters
    ----------
    bits
        The bits of a number on the grid.
    max_weight
        The largest weight of a client.
    scale_bits
        The binary logarithm of what stands for limit.
    degree
        N, twice the number of slots.
    modulus_bits
        The sizes of q's primes, the last of which only keys use. Guarantees: a sum of `capacity` clients does not
        overflow, and its noise stays below a quarter of a step, but for a probability of 2⁻⁷⁵ a slot. Errors:
        ConfigError for parameters below 128 bits of security, or a capacity of none.
    """

    bits: int = 24
    max_weight: int = 1
    scale_bits: int = 40
    degree: int = 4096
    modulus_bits: tuple[int, ...] = (54, 55)

    def __post_init__(self) -> None:
        require_ring(self)
        require_count("scale_bits", self.scale_bits)
        if not self.capacity:
            raise ConfigError(
                f"a number of bits={self.bits} and max_weight={self.max_weight} does not fit "
                f"scale_bits={self.scale_bits} and modulus_bits={self.modulus_bits}; use fewer bits, or a larger degree"
            )

    @staticmethod
    def for_clients(clients: int, bits: int = 24, max_weight: int = 1) -> CKKS:
        """Find the parameters, of degree 4096, that sum `clients` updates.

        Errors: ConfigError where there are none; it names the bits that would do.
        """
        require_count("clients", clients)
        require_numbers(bits, max_weight)
        for fewer in range(bits, 1, -1):
            if _ckks_capacity(fewer, max_weight, 40, 4096, (54, 55)) >= clients:
                if fewer == bits:
                    return CKKS(bits, max_weight)
                raise _too_many("CKKS", clients, bits, max_weight, fewer)
        raise _too_many("CKKS", clients, bits, max_weight, None)

    @property
    def levels(self) -> int:
        """Integer that stands for limit."""
        return 2 ** (self.bits - 1) - 1

    @property
    def integers_per_ciphertext(self) -> int:
        """Number of integers that one ciphertext holds."""
        return self.degree // 2

    @property
    def capacity(self) -> int:
        """Largest number of clients that a sum may have."""
        return _ckks_capacity(self.bits, self.max_weight, self.scale_bits, self.degree, self.modulus_bits)

    def slots_for(self, count: int) -> int:
        """Return the number of slots that `count` integers take."""
        return count

    def to_slots(self, integers: np.ndarray) -> list[float]:
        """Put integers into the slots of one ciphertext. integers: int64, at most integers_per_ciphertext."""
        return (integers / self.levels).tolist()

    def from_slots(self, slots: Sequence[float], count: int) -> np.ndarray:
        """Read the `count` integers that slots hold, without their noise: int64.

        Errors: ConfigError for other numbers.
        """
        scaled = np.array(slots[:count]) * self.levels
        integers = np.rint(scaled)
        if not np.abs(scaled - integers).max(initial=0) < 0.25:
            raise ConfigError("a decrypted sum is not on the grid: it is no sum of updates under these parameters")
        return integers.astype(np.int64)


Scheme = BFV | CKKS
SCHEMES: dict[str, type[BFV] | type[CKKS]] = {"bfv": BFV, "ckks": CKKS}


def quantize(scheme: Scheme, vector: Vector, limit: float, weight: int, seed: bytes) -> np.ndarray:
    """Compute weight·round(vector) on the grid, then the weight where max_weight > 1.

    The integers are int64, shape (d,) or (d + 1,). vector: within ±limit. seed: 32 secret bytes that the rounding is
    drawn from. Each number is exact in expectation, and within a step, limit / levels, always.
    """
    integers = np.empty(len(vector) + (scheme.max_weight > 1), np.int64)
    uniform = np.frombuffer(keystream(seed, 4 * len(vector)), "<u4")
    for start in range(0, len(vector), CHUNK):
        part = slice(start, min(start + CHUNK, len(vector)))
        # In float64: beside 2¹⁵ levels and more, float32 would leave the fraction few bits and bias the rounding.
        scaled = vector[part].astype(np.float64)
        scaled *= scheme.levels / limit
        np.clip(scaled, -scheme.levels, scheme.levels, out=scaled)
        scaled += uniform[part] * 2.0**-32
        integers[part] = np.floor(scaled, out=scaled)
    if scheme.max_weight > 1:
        integers[-1] = 1
        integers *= weight
    return integers


def whole_weight(weight: float, max_weight: int) -> int:
    """Return a client's weight as an integer. Errors: ConfigError where it is not one, or larger than max_weight."""
    if max_weight == 1 and weight not in (0, 1):  # 0: it does not count
        raise ConfigError(
            f"a client weighs {weight:g}, and max_weight=1 has all weigh 1; "
            "set weighting='uniform', or the largest client's number of examples as max_weight"
        )
    require(float(weight).is_integer() and weight >= 0, f"expected weight={weight!r} of an update to be an integer ≥ 0")
    require(weight <= max_weight, f"a client weighs {weight:g}, above max_weight={max_weight}; raise max_weight")
    return int(weight)


def chunks(scheme: Scheme, size: int) -> Iterator[slice]:
    """Return the slice of the integers that each ciphertext holds."""
    step = scheme.integers_per_ciphertext
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def describe(scheme: Scheme) -> bytes:
    """Write the parameters as one line of JSON."""
    return (
        json.dumps({"scheme": type(scheme).__name__.lower()} | dataclasses.asdict(scheme), sort_keys=True).encode()
        + b"\n"
    )


def read_scheme(line: bytes) -> Scheme:
    """Read what `describe` wrote. Errors: ConfigError for anything else, and for parameters out of bounds."""
    try:
        fields = json.loads(line)
        return SCHEMES[fields.pop("scheme")](**fields | {"modulus_bits": tuple(fields["modulus_bits"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            "these parameters of homomorphic encryption cannot be read: they are cut short or changed"
        ) from None


def frame(magic: bytes, scheme: Scheme, identity: bytes) -> bytes:
    """Write the head of a context's bytes."""
    return magic + describe(scheme) + identity


def parse(magic: bytes, blob: bytes, what: str) -> tuple[Scheme, bytes, bytes]:
    """Read scheme, id and the rest of a context's bytes. Errors: ConfigError for bytes of something else."""
    require(blob[: len(magic)] == magic, f"expected the bytes of a {what}; these are cut short, or something else")
    line, _, rest = blob[len(magic) :].partition(b"\n")
    return read_scheme(line), rest[:32], rest[32:]


def require_ring(scheme: Scheme) -> None:
    """Raise ConfigError unless degree and modulus_bits give 128 bits of security and bits, max_weight are in bounds."""
    require_numbers(scheme.bits, scheme.max_weight)
    degree, sizes = scheme.degree, scheme.modulus_bits
    require(
        degree in LONGEST_MODULUS, f"expected degree={degree!r} to be one of {', '.join(map(str, LONGEST_MODULUS))}"
    )
    is_list = isinstance(sizes, tuple) and len(sizes) > 1 and all(isinstance(size, int) for size in sizes)
    require(
        is_list and all(20 <= size <= 60 for size in sizes),
        f"expected modulus_bits={sizes!r} to be a tuple of two or more sizes in 20…60",
    )
    total, most = sum(sizes), LONGEST_MODULUS[degree]
    require(
        total <= most,
        f"modulus_bits={sizes} is {total} bits long: below 128 bits of security; degree={degree} allows {most}",
    )


def require_numbers(bits: int, max_weight: int) -> None:
    """Raise ConfigError unless bits is in 2…32 and max_weight at least 1."""
    require_count("bits", bits, at_least=2)
    require(bits <= 32, f"expected bits={bits} ≤ 32")
    require_count("max_weight", max_weight)


def smallest_log(modulus_bits: tuple[int, ...]) -> int:
    """Bound log₂ q for data from below: primes of b bits are above 2^(b − 1), and the last is for keys."""
    return sum(modulus_bits[:-1]) - len(modulus_bits[:-1])


def batching_prime(degree: int, above: int) -> int:
    """Find the smallest prime ≡ 1 modulo 2·degree that is larger than `above`."""
    candidate = above - (above - 1) % (2 * degree) + 2 * degree
    while not is_prime(candidate):
        candidate += 2 * degree
    return candidate


def is_prime(number: int) -> bool:
    """Return whether a number below 2⁶⁴ is prime."""
    if number < 2 or any(number % witness == 0 for witness in WITNESSES):
        return number in WITNESSES
    twos = ((number - 1) & (1 - number)).bit_length() - 1
    for witness in WITNESSES:
        power = pow(witness, (number - 1) >> twos, number)
        if power == 1:
            continue
        for _ in range(twos):
            if power == number - 1:
                break
            power = power * power % number
        else:
            return False
    return True


def _fit(clients: int, bits: int, max_weight: int, values: int) -> BFV | None:
    """Return the BFV with `values` numbers in each slot, if there is one."""
    largest = clients * (2 ** (bits - 1) - 1) * max_weight
    least = 2 * largest if values == 1 else 2 ** (values * (largest.bit_length() + 1))
    if 2 * clients * NOISE * least >= 2 ** smallest_log(BFV.modulus_bits):
        return None
    fitting = BFV(bits, max_weight, batching_prime(BFV.degree, least), values)
    return fitting if fitting.capacity >= clients else None


def _ckks_capacity(bits: int, max_weight: int, scale_bits: int, degree: int, modulus_bits: tuple[int, ...]) -> int:
    room = (2 ** max(smallest_log(modulus_bits) - 1 - scale_bits, 0) - 1) // max_weight
    # A slot's noise is a sum over N coefficients, of which the real part keeps half the variance.
    deviations = 2**scale_bits / (4 * (2 ** (bits - 1) - 1) * SIGMAS * DEVIATION)
    return min(room, int(deviations**2 / (degree / 2)))


def _too_many(name: str, clients: int, bits: int, max_weight: int, fewer: int | None) -> ConfigError:
    """Make the error for clients that no parameters of degree 4096 sum."""
    remedy = (
        f"bits={fewer} would do, or a {name} of a larger degree" if fewer else "bound clients or weights more tightly"
    )
    return ConfigError(
        f"no {name} of degree 4096 sums clients={clients} of bits={bits} and max_weight={max_weight}; {remedy}"
    )
