"""Calls: a job, as it is asked for, is under way at a host, and is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ...core.runtime import Arrival
from .lines import Line


class Job(NamedTuple):
    """A call that any host can be given: each would answer the same."""

    method: str
    arguments: Callable[[], tuple]  # made when the call is: what clients keep at home is read then


class Head(NamedTuple):
    """An answer, besides its content: small, so that the driver waits for nothing else."""

    lines: Sequence[Line] = ()  # what was logged on the way
    arrival: Arrival | None = None  # of a run that was added up: all but its sum


class Asker(Protocol):
    """An asker: a party that asks for calls, and is told what becomes of them."""

    def wants(self, call: Call) -> bool:
        """Return whether the call's answer is still to come."""

    def take(self, call: Call, head: Head) -> None:
        """Take the head of a call's answer."""

    def again(self, call: Call) -> None:
        """Have a call made again, whose host is gone."""


@dataclass(eq=False)
class Call:
    """A job that is under way at a host."""

    job: Job
    number: int  # place of the job among the asker's
    asker: Asker
    head: Any  # reference of the Head
    body: Any  # reference of the content, which may be large, and stays where it is until its turn comes
    began: float
