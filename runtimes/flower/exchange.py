"""Messages out and replies in, over any Flower Grid; and which node is which client."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ...core.errors import ConfigError, RunStopped
from .check import check_content
from .wire import Malformed, unpack_identity

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # Grid.send_and_receive polls every 3 seconds, longer than many rounds take
TTL_MARGIN_SECONDS = 5.0  # a message outlives the wait for its reply, so that who is late is late, not "unavailable"


def exchange(
    grid: Grid, kind: str, contents: Mapping[int, RecordDict], seconds: float
) -> Iterator[tuple[int, Message | str]]:
    """Send every node its message; yield (node, reply) in the order of contents, each as soon as its turn comes.

    kind: "query", "train" or "evaluate". A reply is a Message, with content or Flower's error; "timeout" when there is
    none within `seconds`, soon after which a node no longer begins either; "unreachable" when Flower did not take the
    message.
    """
    ttl = seconds + TTL_MARGIN_SECONDS
    messages = [Message(content, node, kind, ttl=ttl) for node, content in contents.items()]
    sent = dict(zip(contents, grid.push_messages(messages), strict=True)) if messages else {}
    del messages
    deadline = time.monotonic() + seconds
    waiting = {identifier for identifier in sent.values() if identifier}
    replies: dict[str, Message] = {}
    for node, identifier in sent.items():
        while identifier in waiting and identifier not in replies:
            is_last_look = time.monotonic() >= deadline
            for reply in grid.pull_messages(waiting - set(replies)):
                # Errors made by the SuperLink carry its own node id: only the message replied to says who failed.
                replies[reply.metadata.reply_to_message_id] = reply
            if is_last_look:
                break
            if identifier not in replies:
                time.sleep(POLL_SECONDS)
        waiting.discard(identifier)
        yield node, replies.pop(identifier, "timeout") if identifier else "unreachable"


def find_clients(grid: Grid, count: int, clients: int, join_seconds: float) -> dict[int, int]:
    """{client: node} once `count` of the experiment's `clients` have appeared; each node is asked once which it is.

    Errors: RunStopped when fewer appear in time; ConfigError when two nodes say they are one client.
    """
    deadline = time.monotonic() + join_seconds
    found: dict[int, int] = {}
    asked: set[int] = set()
    while len(found) < count:
        fresh = sorted(set(grid.get_node_ids()) - asked)
        asked.update(fresh)
        seconds = max(0.0, deadline - time.monotonic())
        for node, reply in exchange(grid, "query", {node: RecordDict() for node in fresh}, seconds):
            client = _identity(node, reply, clients)
            if client in found:
                raise ConfigError(
                    f"nodes {found[client]} and {node} both have partition-id={client}; give each SuperNode its own"
                )
            if client is not None:
                found[client] = node
        if len(found) < count and time.monotonic() >= deadline:
            raise RunStopped(
                f"{len(found)} of {count} clients appeared in {join_seconds:g} seconds ({len(asked)} nodes); "
                "start the missing SuperNodes"
            )
        if not fresh:
            time.sleep(POLL_SECONDS)
    return found


def _identity(node: int, reply: Message | str, clients: int) -> int | None:
    """The client a node says it is; None, and a warning, when it says nothing that makes sense."""
    try:
        failure = None if isinstance(reply, str) else check_content(reply, -1)
        if isinstance(reply, str) or failure is not None:
            raise Malformed("schema", failure.detail if failure else str(reply))
        client = unpack_identity(reply.content)
        if not 0 <= client < clients:
            raise Malformed("schema", f"expected partition-id={client} in [0, {clients})")
    except Malformed as malformed:
        log.warning("node %d is left out: %s", node, malformed)
        return None
    return client
