"""Contexts of homomorphic encryption, the clients' and the server's: TenSEAL encrypts, adds and decrypts behind them.

A client's context holds parameters and the secret key, the server's the parameters and the key's id. Their bytes, and
those of what is encrypted, are checked before TenSEAL sees them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ClientError, ConfigError
from ..core.validation import require
from .bound import Change, Slots
from .schemes import BFV, Scheme, chunks, describe, frame, parse
from .secagg.session import MINIMUM_CLIENTS

SUM, SECRET, PUBLIC = b"umbel-he-sum-01\0", b"umbel-he-key-01\0", b"umbel-he-pub-01\0"
HEAD = struct.Struct("<16s32sII")  # SUM, context id, updates inside, integers; each ciphertext follows its length
LENGTH = struct.Struct("<I")
FOREIGN = (ValueError, RuntimeError, TypeError, IndexError)  # errors that TenSEAL raises for bytes that it cannot read


def unchanged(number: int, slots: Slots) -> Slots:
    """Return slots as they are."""
    return slots


class ClientContext:
    """A client's context: parameters, secret key, and `id`, which names both and reveals nothing of the key.

    Whoever has one reads every update encrypted under it; hand its bytes to clients alone, in files that others cannot
    read. Build it by `create` or `from_bytes`. Its methods may run on any thread.
    """

    def __init__(self, scheme: Scheme, secret: bytes, context: Any):
        self.scheme, self.id = scheme, _identify(scheme, secret)
        self._secret, self._context = secret, context

    def __repr__(self) -> str:
        return f"ClientContext(id={self.id.hex()[:16]}, scheme={self.scheme!r})"

    def __reduce__(self) -> tuple:
        raise ConfigError("a ClientContext holds a secret key and is not pickled; use to_bytes, and mind where they go")

    @staticmethod
    def create(scheme: Scheme) -> ClientContext:
        """Create a context with a fresh secret key.

        Errors: ConfigError without TenSEAL, or for parameters that it refuses.
        """
        context = _new_context(scheme)
        return ClientContext(scheme, context.serialize(False, True, False, False), context)

    @staticmethod
    def from_bytes(blob: bytes) -> ClientContext:
        """Read what `to_bytes` wrote. Errors: ConfigError for anything else."""
        scheme, identity, secret = parse(SECRET, blob, "client context")
        require(identity == _identify(scheme, secret), "the bytes of this client context were cut short or changed")
        try:
            context = load_tenseal().Context.load(secret, n_threads=1)
            sound = context.has_secret_key() and context.serialize(False, False, False, False) == _public(scheme)
        except FOREIGN:
            sound = False
        require(sound, "expected a client context: its key does not fit its parameters, or this TenSEAL")
        return ClientContext(scheme, secret, context)

    def to_bytes(self) -> bytes:
        """Write parameters and secret key, in the open: 62 kB at degree 4096."""
        return frame(SECRET, self.scheme, self.id) + self._secret

    def server_context(self) -> ServerContext:
        """Return the part that the server may have."""
        return ServerContext(self.scheme, self.id)

    @property
    def shared_secret(self) -> bytes:
        """Secret of all who hold this key, for masks beside it: 32 bytes."""
        return hashlib.sha256(b"umbel homomorphic shared secret 1\0" + self._secret).digest()

    def encrypt(self, integers: np.ndarray, mask: Change = unchanged) -> bytes:
        """Encrypt one update as ciphertexts, in chunks of integers_per_ciphertext.

        integers: int64, shape (size,), each at most levels · max_weight. mask: changes slots before they are encrypted.
        Equal integers encrypt to other bytes each time. Errors: ConfigError for larger integers, whose sum could
        overflow.
        """
        most, largest = self.scheme.levels * self.scheme.max_weight, np.abs(integers).max(initial=0)
        require(largest <= most, f"expected integers of at most {most} to encrypt, got {largest}")
        vector_of = getattr(load_tenseal()._ts_cpp, _vector_name(self.scheme))
        scale = () if isinstance(self.scheme, BFV) else (2.0**self.scheme.scale_bits,)
        parts = [HEAD.pack(SUM, self.id, 1, len(integers))]
        for number, part in enumerate(chunks(self.scheme, len(integers))):
            slots = mask(number, self.scheme.to_slots(integers[part]))
            ciphertext = vector_of(self._context.data, slots, *scale).serialize()
            parts += LENGTH.pack(len(ciphertext)), ciphertext
        return b"".join(parts)

    def decrypt(self, encrypted: bytes, unmask: Change = unchanged) -> np.ndarray:
        """Decrypt the integers of a sum: int64, shape (size,); exactly Σ of what was encrypted.

        unmask: changes slots after they were decrypted.
        Errors: ConfigError for a sum of another context, told by its id before anything is decrypted; of more clients
        than the parameters allow; of fewer than hide one another; and for bytes that are no sum.
        """
        total = EncryptedSum.from_bytes(self.server_context(), encrypted)
        require(
            total.clients >= MINIMUM_CLIENTS,
            f"expected a sum of at least {MINIMUM_CLIENTS} clients, which hide one another, got {total.clients}",
        )
        integers = np.empty(total.size, np.int64)
        for number, part in enumerate(chunks(self.scheme, total.size)):
            ciphertext = total.ciphertexts[number]
            ciphertext.link_context(self._context.data)
            integers[part] = self.scheme.from_slots(unmask(number, ciphertext.decrypt()), part.stop - part.start)
        return integers

    def encrypted_size(self, size: int) -> int:
        """Return the bytes of an encrypted update of `size` integers, to a few: compression makes them vary."""
        return encrypted_size(self.scheme, size)


@dataclass(frozen=True)
class ServerContext:
    """The server's context: the parameters and the id of the clients'. Nothing in it is secret."""

    scheme: Scheme
    id: bytes  # SHA-256 of parameters and key: 32 bytes

    @staticmethod
    def from_bytes(blob: bytes) -> ServerContext:
        """Read what `to_bytes` wrote. Errors: ConfigError for anything else."""
        scheme, identity, checksum = parse(PUBLIC, blob, "server context")
        require(checksum == _identify(scheme, identity), "the bytes of this server context were cut short or changed")
        return ServerContext(scheme, identity)

    def to_bytes(self) -> bytes:
        """Write parameters, id and a checksum."""
        return frame(PUBLIC, self.scheme, self.id) + _identify(self.scheme, self.id)

    def zero(self, size: int) -> EncryptedSum:
        """Return the sum of no updates of `size` integers."""
        return EncryptedSum(self, size)


class EncryptedSum:
    """A sum of encrypted updates, added in place. `clients` is how many are in it."""

    def __init__(self, context: ServerContext, size: int):
        self.context, self.size, self.clients = context, size, 0
        self.ciphertexts: list[Any] = []

    @staticmethod
    def from_bytes(context: ServerContext, encrypted: bytes) -> EncryptedSum:
        """Read what `to_bytes`, or `ClientContext.encrypt`, wrote. Errors: ConfigError for anything else."""
        size = HEAD.unpack_from(encrypted)[3] if len(encrypted) >= HEAD.size else 0
        total = EncryptedSum(context, size)
        total._add(encrypted, ConfigError)
        return total

    def add(self, encrypted: bytes, client: int | None = None) -> None:
        """Add an update, or another sum of updates. Errors: ClientError, naming client; the sum is then unchanged."""
        self._add(encrypted, functools.partial(ClientError, client=client))

    def to_bytes(self) -> bytes:
        """Write the sum, for clients to decrypt or another sum to add."""
        parts = [HEAD.pack(SUM, self.context.id, self.clients, self.size)]
        for ciphertext in self.ciphertexts:
            written = ciphertext.serialize()
            parts += LENGTH.pack(len(written)), written
        return b"".join(parts)

    def _add(self, encrypted: bytes, error: Callable[[str], Exception]) -> None:
        """Add what encrypted holds; raise error(sentence) where it does not belong here."""
        scheme = self.context.scheme
        if len(encrypted) < HEAD.size or encrypted[: len(SUM)] != SUM:
            raise error("expected an encrypted update: the bytes are cut short, or something else")
        _, identity, clients, size = HEAD.unpack_from(encrypted)
        if identity != self.context.id:
            contexts = f"{identity.hex()[:16]}, not {self.context.id.hex()[:16]}"
            raise error(f"encrypted under context {contexts}: clients and server need files of one key")
        if size != self.size or not clients:
            raise error(f"expected an encrypted update of {self.size} integers, got {size} of {clients} clients")
        if self.clients + clients > scheme.capacity:
            raise error(f"{self.clients + clients} clients are more than {scheme!r} sums without overflow")
        try:
            raws = zip(chunks(scheme, size), _split(encrypted), strict=True)
            added = [_load(scheme, part, raw) for part, raw in raws]
        except FOREIGN:
            raise error("expected an encrypted update: a ciphertext is cut short, or not of these parameters") from None
        for own, other in zip(self.ciphertexts, added, strict=False):
            own.add_(other)
        self.ciphertexts = self.ciphertexts or added
        self.clients += clients


def load_tenseal() -> Any:
    """Import TenSEAL. Errors: ConfigError where it is not installed."""
    # Its wheel and TensorFlow's export the same C++ symbols: after TensorFlow's, its own calls would reach those, and
    # crash. Bound deeply, it finds its own first. (Not a flag on macOS, where symbols are bound per library.)
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        import tenseal
    except ImportError:
        raise ConfigError("homomorphic encryption needs tenseal: pip install 'umbel[he]'") from None
    finally:
        sys.setdlopenflags(flags)
    return tenseal


def _vector_name(scheme: Scheme) -> str:
    """Name TenSEAL's class of this scheme's ciphertexts.

    It is the extension's class, whose front would copy each vector twice.
    """
    return "BFVVector" if isinstance(scheme, BFV) else "CKKSVector"


def _new_context(scheme: Scheme) -> Any:
    """Create a TenSEAL context with a fresh secret key, and no pool of threads."""
    tenseal = load_tenseal()
    kind = tenseal.SCHEME_TYPE.BFV if isinstance(scheme, BFV) else tenseal.SCHEME_TYPE.CKKS
    modulus = scheme.plain_modulus if isinstance(scheme, BFV) else None
    symmetric, sizes = tenseal.ENCRYPTION_TYPE.SYMMETRIC, list(scheme.modulus_bits)
    try:
        return tenseal.Context(kind, scheme.degree, modulus, sizes, symmetric, n_threads=1)
    except FOREIGN as error:
        raise ConfigError(f"TenSEAL refuses {scheme!r}: {error}") from None


@functools.lru_cache(16)
def _public(scheme: Scheme) -> bytes:
    """Return the parameters as TenSEAL writes them, without any key."""
    return _new_context(scheme).serialize(False, False, False, False)


@functools.lru_cache(16)
def _keyless(scheme: Scheme) -> Any:
    """Return a TenSEAL context that adds, and can neither encrypt nor decrypt."""
    return load_tenseal().Context.load(_public(scheme), n_threads=1)


def encrypted_size(scheme: Scheme, size: int) -> int:
    """Return the bytes of an encrypted update of `size` integers, to a few."""
    return HEAD.size + len(list(chunks(scheme, size))) * (LENGTH.size + _ciphertext_size(scheme))


@functools.lru_cache(16)
def _ciphertext_size(scheme: Scheme) -> int:
    """Return the bytes of one ciphertext."""
    encrypted = ClientContext.create(scheme).encrypt(np.zeros(1, np.int64))
    return len(encrypted) - HEAD.size - LENGTH.size


def _load(scheme: Scheme, part: slice, raw: bytes) -> Any:
    """Read one ciphertext of the integers in part. Errors: one of FOREIGN for anything else."""
    vector = getattr(load_tenseal()._ts_cpp, _vector_name(scheme))(_keyless(scheme).data, raw)
    found = [(one.size(), one.coeff_modulus_size(), one.is_ntt_form(), one.scale) for one in vector.ciphertext()]
    is_ckks, scale = (False, 1.0) if isinstance(scheme, BFV) else (True, 2.0**scheme.scale_bits)
    # What SEAL would notice only while adding, when the sum is half changed.
    fits = found == [(2, len(scheme.modulus_bits) - 1, is_ckks, scale)]
    if not fits or vector.size() != scheme.slots_for(part.stop - part.start):
        raise ValueError("another number of slots, polynomials or primes, or another scale")
    return vector


def _split(encrypted: bytes) -> Iterator[bytes]:
    """Yield the ciphertexts after the head. Errors: ValueError where a length does not fit."""
    rest = memoryview(encrypted)[HEAD.size :]
    while rest:
        end = LENGTH.size + (LENGTH.unpack_from(rest)[0] if len(rest) >= LENGTH.size else 0)
        if end > len(rest):
            raise ValueError("cut short")
        yield bytes(rest[LENGTH.size : end])
        rest = rest[end:]


def _identify(scheme: Scheme, secret: bytes) -> bytes:
    return hashlib.sha256(b"umbel homomorphic context 1\0" + describe(scheme) + secret).digest()
