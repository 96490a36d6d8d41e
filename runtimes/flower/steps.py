"""Steps across a model's cut as they travel: messages over one kept connection between a client and the server.

    the client begins     see `greeting`
    in each step          number, count, activations, penalties, labels, weights  ─►  number, the gradient

A message is a tree of numbers and arrays (`core/serial`), in frames of a bounded size; the last of a message says so.
What is read has a most, and its form is checked before anything computes with it.
"""

from __future__ import annotations

import abc
import contextlib
import math
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

# websockets: uvicorn's own library for them, which flwr brings.
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from ...core.errors import StoreError, UmbelError
from ...core.serial import DTYPES, dumps, loads
from .link.pairing import CROSSING_HEADER, FRAME_BYTES, NOBODY, OVER, REFUSED
from .malformed import Malformed

MORE, LAST = b"\1", b"\0"  # first byte of a frame
OPEN_SECONDS = 10.0  # time for a connection to be made
SLACK_BYTES = 1 << 16  # bytes that a message may have besides its arrays
LONGEST_REASON = 100  # most characters of the reason that a connection is closed for: 123 bytes are allowed


class Broken(Exception):
    """The connection is gone; another may be made."""


class Nobody(Broken):
    """The other side is not there, or not yet."""


class StepsOver(UmbelError):
    """The other side needs no more steps: the round has ended."""


class Unwanted(UmbelError):
    """The other side does not take a step, and says why."""


class Channel(abc.ABC):
    """A kept connection, whole messages each way. Errors of its calls: Broken, StepsOver, Unwanted."""

    @abc.abstractmethod
    def send(self, message: bytes) -> None:
        """Send a message."""

    @abc.abstractmethod
    def receive(self, most: int) -> bytes:
        """Wait for a message. Errors: Malformed for one of more than `most` bytes, of which no more is read."""

    @abc.abstractmethod
    def close(self, code: int, reason: str = "") -> None:
        """Close the connection: OVER, REFUSED, or 1000 for nothing in particular. Any thread may."""


class Crosses(abc.ABC):
    """A grid whose nodes can train a model's first half: it opens channels to them."""

    @abc.abstractmethod
    def crossing(self, node: int, session: str) -> Channel:
        """Open a channel to a node, for one session. Errors: Broken."""


class SocketChannel(Channel):
    """A channel over a WebSocket."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection

    def send(self, message: bytes) -> None:
        """Send a message, in frames."""
        with _told():
            for frame in frames(message):
                self._connection.send(frame)

    def receive(self, most: int) -> bytes:
        """Wait for a message; see `Channel`."""
        with _told():
            return joined((self._connection.recv(decode=False) for _ in iter(int, 1)), most)

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, ConnectionClosed):
            self._connection.close(code, reason[:LONGEST_REASON])


def open_channel(url: str, said: str, headers: dict[str, str], context: Any) -> Channel:
    """Open a channel at a WebSocket's address. said: which, as CROSSING_HEADER has it. context: of TLS, None without.

    By a proxy, where this process's environment names one. Errors: Broken.
    """
    own = {**headers, CROSSING_HEADER: said}
    try:
        connection = connect(
            url,
            ssl=context,
            additional_headers=own,
            compression=None,
            max_size=FRAME_BYTES,
            open_timeout=OPEN_SECONDS,
            close_timeout=1.0,
        )
    except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    return SocketChannel(connection)


def frames(message: bytes) -> Iterator[bytes]:
    """Cut a message into frames."""
    size, view = FRAME_BYTES - 1, memoryview(message)
    for start in range(0, max(len(view), 1), size):
        yield (LAST if start + size >= len(view) else MORE) + view[start : start + size]


def joined(received: Iterator[bytes | str], most: int) -> bytes:
    """Join a message's frames. Errors: Malformed for more than `most` bytes."""
    whole = bytearray()
    for frame in received:
        if not isinstance(frame, bytes) or frame[:1] not in (MORE, LAST):
            raise Malformed("schema", "expected a frame of a message")
        whole += memoryview(frame)[1:]
        if len(whole) > most:
            raise Malformed("shape", f"expected a message of at most {most} bytes")
        if frame[:1] == LAST:
            break
    return bytes(whole)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise what a connection was closed for."""
    try:
        yield
    except ConnectionClosed as closed:
        code = None if closed.rcvd is None else closed.rcvd.code
        reason = "" if closed.rcvd is None else closed.rcvd.reason
        kinds = {OVER: StepsOver(reason or "the round has ended"), REFUSED: Unwanted(reason), NOBODY: Nobody(reason)}
        raise kinds.get(code or 0, Broken(str(closed))) from closed
    except OSError as error:
        raise Broken(str(error)) from error


class SentStep(NamedTuple):
    """A step of a client's, as it arrived."""

    number: int  # from 1
    examples: int
    arrays: list[np.ndarray]  # see SecondProgram.sent


class Form(NamedTuple):
    """The form of an array: None in the shape for any length."""

    shape: tuple[int | None, ...]
    dtype: np.dtype

    def bytes_at(self, count: int) -> int | None:
        """Return the most bytes of such an array of `count` examples; None where a length is not known."""
        rest = self.shape[1:]
        size = self.shape[0] if self.shape and self.shape[0] is not None else count
        known = [length for length in rest if length is not None]
        return math.prod([size, *known]) * self.dtype.itemsize if len(known) == len(rest) else None


def new_session() -> str:
    """Return a session's name, which nobody guesses."""
    return secrets.token_hex(16)


def pack_step(number: int, count: int, arrays: Sequence[np.ndarray]) -> bytes:
    """Pack a step."""
    return dumps((number, count, [_plain(array) for array in arrays]))


def unpack_step(message: bytes, forms: Sequence[Form]) -> SentStep:
    """Invert `pack_step`. Errors: Malformed for arrays of other forms than these."""
    match read_tree(message):
        case (int(number), int(count), list(arrays)) if len(arrays) == len(forms) and count > 0:
            named = [_formed(array, form, count) for array, form in zip(arrays, forms, strict=True)]
            return SentStep(number, count, named)
    raise Malformed("schema", f"expected a step with {len(forms)} arrays")


def pack_gradient(number: int, gradient: np.ndarray) -> bytes:
    """Pack the answer to a step."""
    return dumps((number, _plain(gradient)))


def unpack_gradient(message: bytes, like: np.ndarray) -> tuple[int, np.ndarray]:
    """Invert `pack_gradient`. like: the activations. Errors: Malformed."""
    match read_tree(message):
        case (int(number), np.ndarray() as array):
            return number, _formed(array, Form(like.shape, like.dtype), len(like))
    raise Malformed("schema", "expected the answer to a step")


def read_tree(message: bytes) -> Any:
    """Read a message. Errors: Malformed."""
    try:
        return loads(message)
    except StoreError as error:
        raise Malformed("schema", f"a step does not read back: {error}") from error


def _plain(array: np.ndarray) -> np.ndarray:
    """Return an array of a type that `serial` knows; bfloat16 as the numbers of its bits."""
    array = np.asarray(array)
    return array if array.dtype.char in DTYPES else array.view(f"u{array.dtype.itemsize}")


def _formed(array: Any, form: Form, count: int) -> np.ndarray:
    plain = form.dtype if form.dtype.char in DTYPES else np.dtype(f"u{form.dtype.itemsize}")
    if not isinstance(array, np.ndarray) or array.dtype != plain:
        found = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
        raise Malformed("dtype", f"expected an array of {form.dtype.name} across the cut, got {found}")
    expected = tuple(count if at == 0 and one is None else one for at, one in enumerate(form.shape))
    fits = len(array.shape) == len(expected) and all(
        one in (None, got) for one, got in zip(expected, array.shape, strict=True)
    )
    if not fits:
        raise Malformed(
            "shape",
            f"expected an array of {form.dtype.name}{list(expected)} across the cut, got {list(array.shape)[:8]}",
        )
    return array if plain == form.dtype else array.view(form.dtype)
