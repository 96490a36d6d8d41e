"""The operator's side of a SuperLink that asks for a token (see `link.tokens`). Not public in Flower; see `compat`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# httpx: Flower's clients raise its errors.
import httpx

from ...core.errors import ConfigError, UmbelError
from .compat import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StopRunRequest,
    StreamRunEventsRequest,
    UnregisterNodeRequest,
)
from .control import ControlApi
from .link.patience import PATIENCE_SECONDS
from .link.trust import TRUSTS_PATH

RETRY_SECONDS = 0.5  # time between two calls to a SuperLink that is gone


class Node(NamedTuple):
    """A node that is registered at the SuperLink."""

    node: int
    name: str
    public_key: bytes  # PEM
    status: str  # "registered", "online", "offline"
    since: str  # when it was last activated, or deactivated where it is offline; ISO 8601, empty for never


class RunInfo(NamedTuple):
    """A run at the SuperLink."""

    run: int
    status: str
    started: str


class Bearer:
    """An interceptor that adds the token to every call."""

    def __init__(self, token: str):
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Add the token to a call; see Flower's ProtobufClientInterceptor."""
        context.request.headers["Authorization"] = f"Bearer {self._token}"
        return call_next(context)


class Operator:
    """The Control API of a SuperLink, as its operator: over TLS, with a token. A context that closes the connection.

    certificates: of the authorities that are trusted, PEM; a file counts as it is when a connection is made.
    Errors of its calls: ConfigError when the token is refused; UmbelError when the SuperLink cannot be reached.
    """

    def __init__(self, address: str, certificates: bytes | Path, token: str):
        self.address = address
        self.control = ControlApi(address, certificates, [Bearer(token)])

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()

    def nodes(self) -> list[Node]:
        """List every node that is registered."""
        reply = self.call("ListNodes", ListNodesRequest())
        return [
            Node(
                info.node_id,
                info.name,
                info.public_key,
                info.status,
                info.last_deactivated_at if info.status == "offline" else info.last_activated_at,
            )
            for info in reply.nodes_info
            if info.status != "unregistered"
        ]

    def register(self, name: str, public_key: bytes) -> None:
        """Let the holder of a key connect."""
        self.call("RegisterNode", RegisterNodeRequest(public_key=public_key, name=name))

    def unregister(self, node: int) -> None:
        """Let a node connect no longer; its next call is refused."""
        self.call("UnregisterNode", UnregisterNodeRequest(node_id=node))

    def trusts(self) -> dict[bytes, frozenset[str]]:
        """Return {public key, PEM: SHA-256 of each authority that the node trusts, hex}.

        It holds the nodes that were heard since the SuperLink was started. Nodes and SuperLinks of an older Umbel do
        not say.
        """
        try:
            found = self.control.get_json(TRUSTS_PATH)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 404:
                return {}
            raise explained(error, self.address) from error
        return {key.encode(): frozenset(trusted) for key, trusted in found.items()}

    def runs(self) -> list[RunInfo]:
        """List every run that has not finished."""
        found = self.call("ListRuns", ListRunsRequest()).run_dict.values()
        return [
            RunInfo(one.run_id, one.status.status, one.running_at) for one in found if one.status.status != "finished"
        ]

    def end_orphans(self) -> None:
        """End the runs that were being played, for a server that begins: whoever played them is gone.

        Clients would wait for the rest of their messages, and with them whatever is played next.
        """
        for run in self._played():
            try:
                self.call("StopRun", StopRunRequest(run_id=run))
            except UmbelError:
                if run in self._played():  # it did not end by itself meanwhile
                    raise

    def _played(self) -> list[int]:
        return [one.run for one in self.runs() if one.status in ("starting", "running")]

    def events(self, run: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a run's events as they come, each once, though the SuperLink is started again meanwhile."""
        last: int | None = None
        lost: float | None = None
        while True:
            try:
                request = StreamRunEventsRequest(run_id=run, after_task_event_id=last)
                for reply in self.control._client.StreamRunEvents(request):
                    last, lost = reply.task_event.id, None
                    yield reply.task_event.event, json.loads(reply.task_event.data)
                return
            except httpx.TransportError as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > PATIENCE_SECONDS:
                    raise explained(error, self.address) from error
                time.sleep(RETRY_SECONDS)
            except httpx.HTTPError as error:
                raise explained(error, self.address) from error

    def call(self, method: str, request: Any) -> Any:
        """Make one call, with what can go wrong in words."""
        try:
            return getattr(self.control._client, method)(request)
        except Exception as error:
            raise explained(error, self.address) from error


def explained(error: Exception, address: str) -> UmbelError:
    """Say in words what a call to a SuperLink raised."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401:
        return ConfigError(f"the server at {address} refuses this operator's token; use the kit that it was made with")
    if isinstance(error, httpx.ConnectError) and "CERTIFICATE" in str(error).upper():
        return ConfigError(f"the server at {address} is refused: {error}")
    if isinstance(error, httpx.TransportError):
        return UmbelError(f"the server at {address} does not answer ({error}); start it: umbel server start KIT")
    return UmbelError(f"the server at {address} failed: {type(error).__name__}: {error}")
