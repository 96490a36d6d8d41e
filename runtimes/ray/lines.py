"""Lines of the log that hosts write: they are said in the driver's log, which is the one that is read."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

MOST = 100  # lines that wait for the next answer
UMBEL = __name__.partition(".")[0]


class Line(NamedTuple):
    """A line of a log."""

    logger: str
    level: int
    message: str


class Lines(logging.Handler):
    """Warnings of this process's Umbel, until they are taken along with an answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[Line] = deque(maxlen=MOST)
        logging.getLogger(UMBEL).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(Line(record.name, record.levelno, record.getMessage()))

    def take(self) -> tuple[Line, ...]:
        """Return the lines since the last call."""
        taken: list[Line] = []
        while self._lines:
            taken.append(self._lines.popleft())
        return tuple(taken)


def said(lines: Sequence[Line]) -> None:
    """Log what a host would have logged."""
    for line in lines:
        logging.getLogger(line.logger).log(line.level, "%s", line.message)
