"""The Control API of a SuperLink: runs are submitted, followed and stopped. Not public in Flower; see `compat`."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .certificates import trusting
from .compat import (
    ControlHttpClient,
    Fab,
    ListRunsRequest,
    ProtobufRequestContext,
    RuntimeVersionHttpInterceptor,
    StartRunRequest,
    StopRunRequest,
    StreamRunEventsRequest,
    build_fab_from_files,
    fab_to_proto,
)

LOOPBACK = "127.0.0.1"


class RunStatus(NamedTuple):
    """State of a run at the SuperLink."""

    status: str  # "pending", "starting", "running" or "finished"
    sub_status: str  # how a finished run ended: "completed", "failed" or "stopped"
    details: str  # why a failed run failed


class ControlApi:
    """The Control API of one SuperLink on loopback: submit a run, follow it, stop it.

    certificates: of the authority that signed the SuperLink's, PEM, or a file that may be replaced; None: without TLS.
    interceptors: see `secured`.
    """

    def __init__(self, address: str, certificates: bytes | Path | None = None, interceptors: Sequence[Any] = ()):
        with _no_proxy():
            self._client = ControlHttpClient(
                f"{'http' if certificates is None else 'https'}://{address}",
                interceptors=[RuntimeVersionHttpInterceptor(component_name="umbel"), *interceptors],
                verify=_verified(certificates),
            )

    def start_run(self, pyproject: str) -> int:
        """Submit an app that consists of pyproject.toml alone: its components are installed on the nodes.

        Return its id.
        """
        content, _ = build_fab_from_files({"pyproject.toml": pyproject.encode()})
        archive = Fab(hashlib.sha256(content).hexdigest(), content, {})
        return self._client.StartRun(StartRunRequest(fab=fab_to_proto(archive))).run_id

    def stop_run(self, run_id: int) -> None:
        """Ask the SuperLink to end a run's processes."""
        self._client.StopRun(StopRunRequest(run_id=run_id))

    def events(self, run_id: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a run's events, as they come; ends when the run has finished."""
        for reply in self._client.StreamRunEvents(StreamRunEventsRequest(run_id=run_id)):
            yield reply.task_event.event, json.loads(reply.task_event.data)

    def status(self, run_id: int) -> RunStatus:
        """Return how the run stands."""
        found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunStatus(found.status, found.sub_status, found.details)

    def get_json(self, path: str) -> Any:
        """Get what the SuperLink says at a path that is ours. Errors: httpx's."""
        request = self._client._client.build_request("GET", f"{self._client._base_url}{path}")
        reply = self._client._send(ProtobufRequestContext(path, None, request))
        reply.raise_for_status()
        return reply.json()

    def close(self) -> None:
        """Close the connection; an event stream that is being read ends."""
        self._client.close()


def _verified(certificates: bytes | Path | None) -> ssl.SSLContext | bool:
    """Return how to verify a server by these certificates; without any, nothing is encrypted."""
    if certificates is None:
        return False
    if isinstance(certificates, Path):
        return trusting(certificates)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.decode("ascii"))
    return context


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return environment with loopback exempt from any HTTP proxy: httpx would send even 127.0.0.1 to it."""
    exempt = ",".join(filter(None, [environment.get("NO_PROXY") or environment.get("no_proxy"), LOOPBACK, "localhost"]))
    return {**environment, "NO_PROXY": exempt, "no_proxy": exempt}


@contextmanager
def _no_proxy() -> Iterator[None]:
    """Keep this process's environment inside without a proxy for loopback: httpx reads it when a client is built."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    os.environ.update(without_proxy(os.environ))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
