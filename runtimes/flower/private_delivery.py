"""A message whose way to its node was cut is handed out again. Not public in Flower; see `compat`.

Flower's SuperLink hands a message out once. When its answer is lost on the way, the node asks again, and is told that
there is nothing; the server waits for a reply until the round's deadline. A SuperNode confirms what it has received,
and asks for nothing before that: one that asks without having confirmed did not get what it was handed.
"""

from __future__ import annotations

import time
from typing import Any

from .compat import fleet_handlers

MOST_TIMES = 3  # how often one message is handed out: a node that cannot take it is not to ask for ever


class Deliveries:
    """Flower's three handlers of the SuperLink, around which it keeps what each node was handed and has not confirmed.

    A node that is activated was started anew: who plays the run asks it once more, with another message.
    """

    def __init__(self, fleet: Any):
        self._pull, self._confirm = fleet.pull_messages, fleet.confirm_message_received
        self._activate = fleet.activate_node
        self._out: dict[int, tuple[Any, int]] = {}  # {node: (answer, times that it was given)}

    def pull_messages(self, request: Any, state: Any, store: Any) -> Any:
        """Return what the node was handed and has not confirmed, or else what there is for it now."""
        node = request.node.node_id
        answer, times = self._out.pop(node, (None, 0))
        if answer is None or times >= MOST_TIMES or _has_expired(answer):
            answer, times = self._pull(request=request, state=state, store=store), 0
        if answer.messages_list:
            self._out[node] = answer, times + 1
        return answer

    def confirm_message_received(self, request: Any, **others: Any) -> Any:
        """Same as in Flower; the node's message is handed out no more."""
        self._out.pop(request.node.node_id, None)
        return self._confirm(request=request, **others)

    def activate_node(self, request: Any, **others: Any) -> Any:
        """Same as in Flower; the node's message is handed out no more."""
        answer = self._activate(request=request, **others)
        self._out.pop(answer.node_id, None)
        return answer


def _has_expired(answer: Any) -> bool:
    """Whether the round that a message was for is over."""
    about = answer.messages_list[0].metadata
    return bool(about.created_at + about.ttl < time.time())


def hand_out_again() -> None:
    """Let the SuperLink of this process hand a message out, from now on, until it is confirmed."""
    fleet: Any = fleet_handlers()
    deliveries = Deliveries(fleet)
    fleet.pull_messages = deliveries.pull_messages
    fleet.confirm_message_received = deliveries.confirm_message_received
    fleet.activate_node = deliveries.activate_node
