"""A Grid inside this process whose nodes train a model's first half, over channels that are queues."""

from __future__ import annotations

import collections
import queue

from grids import ProcessGrid
from umbel.runtimes.flower import client
from umbel.runtimes.flower.link.pairing import OVER, REFUSED
from umbel.runtimes.flower.steps import Broken, Channel, Crosses, StepsOver, Unwanted, frames, joined


class QueueChannel(Channel):
    """One end of two queues of frames. breaks: number of its message, from 1, before which it breaks; once."""

    def __init__(self, sent, received, breaks=None):
        self._sent, self._received, self._breaks, self.messages = sent, received, breaks, 0

    def send(self, message):
        self.messages += 1
        if self.messages == self._breaks:
            self.close(1006)
            raise Broken("broken off")
        for frame in frames(message):
            self._sent.put(frame)

    def receive(self, most):
        return joined(iter(self._frame, None), most)

    def _frame(self):
        frame = self._received.get()
        if isinstance(frame, bytes):
            return frame
        self._received.put(frame)
        code, reason = frame
        raise {OVER: StepsOver(reason), REFUSED: Unwanted(reason)}.get(code, Broken(reason))

    def close(self, code, reason=""):
        self._sent.put((code, reason))
        self._received.put((code, reason))


def pair():
    """Return the two ends of a connection."""
    up, down = queue.SimpleQueue(), queue.SimpleQueue()
    return QueueChannel(up, down), QueueChannel(down, up)


class CrossingGrid(ProcessGrid, Crosses):
    """A ProcessGrid whose nodes and player meet by their session.

    breaks: numbers of messages of clients before which their connections break, a connection each; answers_lost: the
    same, for what the server answers.
    """

    def __init__(self, path, clients, breaks=(), answers_lost=(), **settings):
        super().__init__(path, clients, **settings)
        self._breaks, self._lost = list(breaks), list(answers_lost)
        self._meetings = collections.defaultdict(queue.SimpleQueue)
        self.opened = 0
        client.cross_by(self._open)

    def _open(self, run, session):
        up, down = queue.SimpleQueue(), queue.SimpleQueue()
        self.opened += 1
        lost = self._lost.pop(0) if self._lost else None
        self._meetings[session].put(QueueChannel(down, up, lost))
        return QueueChannel(up, down, self._breaks.pop(0) if self._breaks else None)

    def crossing(self, node, session):
        try:
            return self._meetings[session].get(timeout=0.5)
        except queue.Empty:
            raise Broken("nobody came") from None
