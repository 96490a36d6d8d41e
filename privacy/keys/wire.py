"""Binary encoding with one form for each value: fixed sizes, little-endian, every length checked, nothing left over."""

from __future__ import annotations

from .errors import MalformedMessage

TEXT_BYTES = 255


class Writer:
    """Writer that collects fields; each method returns the writer."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []

    def raw(self, data: bytes | memoryview) -> Writer:
        """Append bytes whose length the reader knows."""
        self._parts.append(data)
        return self

    def number(self, value: int, size: int) -> Writer:
        """Append an unsigned integer in `size` bytes."""
        return self.raw(value.to_bytes(size, "little"))

    def text(self, value: str) -> Writer:
        """Append at most 255 bytes of UTF-8, after their number."""
        data = value.encode()
        if len(data) > TEXT_BYTES:
            raise MalformedMessage("malformed", f"a text of {len(data)} bytes is longer than {TEXT_BYTES}")
        return self.number(len(data), 1).raw(data)

    def bytes(self) -> bytes:
        """Join all fields."""
        return b"".join(self._parts)


class Reader:
    """Reader of what a Writer wrote. Errors: MalformedMessage for anything else."""

    def __init__(self, data: bytes | memoryview):
        self._rest = memoryview(data)

    def take(self, size: int) -> bytes:
        """Read the next `size` bytes."""
        return bytes(self.view(size))

    def view(self, size: int) -> memoryview:
        """Read the next `size` bytes, not copied."""
        if len(self._rest) < size:
            raise MalformedMessage(
                "malformed", f"a message is cut short: {size} more bytes expected, {len(self._rest)} left"
            )
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def number(self, size: int) -> int:
        """Read an unsigned integer of `size` bytes."""
        return int.from_bytes(self.view(size), "little")

    def text(self) -> str:
        """Read a text of at most 255 bytes."""
        try:
            return self.take(self.number(1)).decode()
        except UnicodeDecodeError as error:
            raise MalformedMessage("malformed", "a text in a message is not UTF-8") from error

    @property
    def is_at_end(self) -> bool:
        """Return whether nothing is left."""
        return not len(self._rest)

    def finish(self) -> None:
        """Refuse anything left over."""
        if len(self._rest):
            raise MalformedMessage("malformed", f"a message is {len(self._rest)} bytes too long")
