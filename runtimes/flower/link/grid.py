"""A run's way to its nodes over a SuperLink, for the process that plays it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context

from ..calls import runtime_client
from ..certificates import trusting
from ..compat import (
    SUPERLINK_NODE_ID,
    TASK_TOKEN_HEADER,
    GetNodesRequest,
    HeartbeatSender,
    Node,
    PullTaskInputRequest,
    PushTaskEventsRequest,
    PushTaskOutputRequest,
    RuntimeTokenHttpInterceptor,
    TaskEvent,
    context_from_proto,
    make_task_heartbeat_fn_http,
    play_as,
    run_config_of,
)
from ..steps import Channel, Crosses, open_channel
from .pairing import PLAYER_PATH

NAME = "flwr-serverapp"  # what Flower calls a process that plays a run


class LinkGrid(Crosses):
    """The Runtime API of a SuperLink, as the one task that a token is for.

    client: its calls wait for a SuperLink that is away. outages: set whenever it could not be reached. node: the
    SuperLink, as a node. run: the run's number, once it has begun.
    """

    def __init__(self, address: str, token: str, authority: Path | None = None):
        self.outages, self.node, self.run = threading.Event(), Node(node_id=SUPERLINK_NODE_ID), 0
        self._token = token
        self._place = address, authority, NAME, [RuntimeTokenHttpInterceptor(token)]
        self.client = runtime_client(*self._place, self.outages.set)

    def begin(self) -> Context:
        """Take the task on; return what the run was submitted with."""
        HeartbeatSender(make_task_heartbeat_fn_http(self.client)).start()  # a thread that ends with the process
        task = self.client.PullTaskInput(PullTaskInputRequest())
        context = context_from_proto(task.context)
        self.run = task.run.run_id
        play_as(task.task_id, self.run, context.node_id)
        return Context(self.run, context.node_id, context.node_config, context.state, run_config_of(task))

    def end(self, sub_status: str, details: str, is_patient: bool = True) -> None:
        """Say how the task ended. is_patient: whether to wait for a SuperLink that is away. Errors: httpx's."""
        client = self.client if is_patient else runtime_client(*self._place, is_patient=False)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=sub_status, details=details))

    def crossing(self, node: int, session: str) -> Channel:
        """Open a channel to a node; see `Crosses`."""
        address, authority, *_ = self._place
        context = None if authority is None else trusting(authority)
        url = f"{'ws' if context is None else 'wss'}://{address}{PLAYER_PATH}"
        return open_channel(url, f"{node}-{session}", {TASK_TOKEN_HEADER: self._token}, context)

    def get_node_ids(self) -> list[int]:
        """List the nodes that are online, by number."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> list[Any]:
        """List the nodes that are online, as Flower describes them: node_id, name, last_activated_at."""
        return list(self.client.GetNodes(GetNodesRequest()).nodes)


def push_event(grid: Any, name: str, content: Mapping[str, Any]) -> None:
    """Hand an event of this run to whoever submitted it; nothing on a grid that cannot carry events.

    Flower returns no results from a ServerApp: task events are its only way back to the submitter.
    """
    if isinstance(grid, LinkGrid):
        grid.client.PushTaskEvents(PushTaskEventsRequest(events=[TaskEvent(event=name, data=json.dumps(content))]))


def nodes_of(grid: Any) -> dict[int, str]:
    """Return {node: when it was last started} of nodes that are online; on a grid that cannot tell, an empty text."""
    if not isinstance(grid, LinkGrid):
        return dict.fromkeys(grid.get_node_ids(), "")
    return {node.node_id: node.last_activated_at for node in grid.get_nodes()}


def names_of(grid: Any) -> dict[int, str]:
    """Return {node: name that its key was registered under at the SuperLink}, of nodes that are online."""
    return {node.node_id: node.name for node in grid.get_nodes()}
