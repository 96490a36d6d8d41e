"""Hidden sum of a round in one process, each of its steps by hand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from umbel.core.random import Key
from umbel.core.sums import Meeting
from umbel.core.types import ClientUpdate, Failure, Shape, Total, Weighted


class Rehearsal:
    """Rehearsal of both halves of `settings`' sum.

    halves: the clients' halves, by number. sent: what each client replied, at each stage. failures: the server's
    half's.
    """

    def __init__(self, settings: Any, shape: Shape, cohort: Sequence[int], is_real: bool = False, joins: Any = None):
        meeting = Meeting("rehearsal", 1, len(cohort), shape, bytes(32), joins=joins)
        self.server, self._half = settings.rehearse(meeting, cohort, is_real)
        self.halves, self.failures = {}, []
        self.sent: list[dict[int, bytes]] = [{}]
        self._opening = self.server.advance()

    def contribute(self, client: int, update: ClientUpdate, key: Key) -> bytes | Failure:
        """Return the client's answer to the first message."""
        half = self.halves[client] = self._half(client)
        refused = half.check(self._opening[client]) or half.provide(update, key)
        return half.answer(self._opening[client]) if refused is None else refused

    def add(self, client: int, reply: bytes | Failure) -> None:
        """Hand the answer to the server's half, unless there is none."""
        if isinstance(reply, Failure):
            self.failures.append(reply)
            return
        self.sent[-1][client] = reply
        failure = self.server.receive(client, reply)
        self.failures += [] if failure is None else [failure]

    def total(self, silent: Collection[int] = ()) -> Total:
        """Return the sum, after all later stages. silent: who says nothing more."""
        while messages := self.server.advance():
            self.sent.append({})
            for client, message in messages.items():
                if client not in silent:
                    self.add(client, self.halves[client].answer(message))
        return self.server.total()

    @property
    def bytes_up(self) -> int:
        """Bytes that clients have sent, as a run counts them."""
        return self.server.stands_for(sum(len(reply) for stage in self.sent for reply in stage.values()))


def total_of(settings: Any, cohort: Sequence[int], updates: Any, key: Key, is_real: bool = False, dropped=()):
    """Return the sum of the cohort's updates, but for those who never answer; and the rehearsal."""
    shape = Shape(*(len(vector) for vector in updates[cohort[0]][:2]))
    metrics = updates[cohort[0]].metrics
    joins = {name: () if isinstance(one, Weighted) else one.joins for name, one in metrics.items()}
    rehearsal = Rehearsal(settings, shape, cohort, is_real, joins)
    for client in cohort:
        if client not in dropped:
            rehearsal.add(client, rehearsal.contribute(client, updates[client], key.derive("client", client)))
    return rehearsal.total(), rehearsal
