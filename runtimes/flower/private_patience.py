"""Patience of Flower's servers with whoever is silent, before they give him up, and what an upload outlives.

Not public in Flower; see `compat`.

Its own give up after a minute: a SuperLink that comes back after an outage of that length ends every run, and finds
every node offline, so that a round goes on without them. Here an outage may last for minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from .compat import ObjectPushError, link_states, task_states

BEAT_SECONDS = 30.0  # longest time between two signs of life; Flower's own
RESTART_SECONDS = 30.0  # silence after which a node may be started anew: its process has ended, or it would be heard
PATIENCE_SECONDS = 240.0  # silence after which a node or a run's process is given up


def be_patient() -> None:
    """Let the SuperLink or SuperNode of this process give nobody up before PATIENCE_SECONDS have passed."""
    for tasks in task_states():
        # Claimed for one interval until it is begun, which takes long where many runs begin at once; then for two.
        tasks.HEARTBEAT_DEFAULT_INTERVAL = PATIENCE_SECONDS / 2  # type: ignore[attr-defined]
        tasks.HEARTBEAT_PATIENCE = 2  # type: ignore[attr-defined]
    for nodes, states in link_states():
        nodes.HEARTBEAT_PATIENCE = PATIENCE_SECONDS / BEAT_SECONDS  # type: ignore[attr-defined]
        _let_nodes_return(states)


def _let_nodes_return(states: Any) -> None:
    """Let a node that is online, but was silent, be activated: its process has ended."""
    if hasattr(states.activate_node, "first"):
        return
    first = states.activate_node

    def activate_node(self: Any, node_id: int, heartbeat_interval: float) -> bool:
        for node in self.get_node_info(node_ids=[node_id], statuses=["online"]):
            if node.online_until - time.time() < PATIENCE_SECONDS - RESTART_SECONDS:
                self.deactivate_node(node_id)
        return bool(first(self, node_id, heartbeat_interval))

    activate_node.first = first  # type: ignore[attr-defined]
    states.activate_node = activate_node


class Retried(threading.local):
    """Note of whether this thread's last call had to be made again."""

    was = False

    def note(self) -> None:
        """Note that it had to."""
        self.was = True


def upload_on(make: Callable[..., Callable[[str, bytes], None]], retried: Retried) -> Callable[..., Any]:
    """Wrap Flower's maker of what uploads an object, for uploads that go on where a SuperLink died and came back.

    It takes an object once. One that it had stored, and died before it said so, it refuses when the call is made again;
    Flower then gives up the reply, for whose other objects the server waits in vain. retried: noted by every call.
    """

    def make_patient_upload(*arguments: Any) -> Callable[[str, bytes], None]:
        upload = make(*arguments)

        def upload_or_pass(identifier: str, content: bytes) -> None:
            retried.was = False
            try:
                upload(identifier, content)
            except ObjectPushError:
                if not retried.was:
                    raise

        return upload_or_pass

    return make_patient_upload
