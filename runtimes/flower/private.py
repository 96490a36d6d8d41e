"""Flower's processes and its Control API, as Umbel starts and uses them. Not public in Flower; see `compat`."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from .calls import make_patient
from .compat import (
    ControlHttpClient,
    Fab,
    ListRunsRequest,
    ProtobufRequestContext,
    PushTaskEventsRequest,
    RuntimeVersionHttpInterceptor,
    StartRunRequest,
    StopRunRequest,
    StreamRunEventsRequest,
    TaskEvent,
    build_fab_from_files,
    fab_to_proto,
    let_tasks_last,
    node_connection,
    node_loop,
    start_parent_process_monitor,
    supernode_command,
    warn_of_another_release,
)
from .link.grid import LinkGrid
from .link.patience import PATIENCE_SECONDS
from .private_crashes import miss_workers
from .private_patience import Retried, upload_on
from .private_return import return_at_once
from .private_tls import follow_from_now_on, trusting

LOOPBACK = "127.0.0.1"
WAIT_SECONDS = 0.05  # the wait in place of the SuperNode's own of 3 and 0.5 seconds
LONGEST_WAIT_SECONDS = 0.2  # longest wait for what the server is still uploading; longer ones leave a link idle
KEY_OPTION = "--auth-supernode-private-key"  # without it, a SuperNode has a new key and number each time


class RunStatus(NamedTuple):
    """State of a run at the SuperLink."""

    status: str  # "pending", "starting", "running" or "finished"
    sub_status: str  # how a finished run ended: "completed", "failed" or "stopped"
    details: str  # why a failed run failed


def push_event(grid: Any, name: str, content: Mapping[str, Any]) -> None:
    """Hand an event of this run to whoever submitted it; nothing on a grid that cannot carry events.

    Flower returns no results from a ServerApp: task events are its only way back to the submitter.
    """
    if isinstance(grid, LinkGrid):
        grid.client.PushTaskEvents(PushTaskEventsRequest(events=[TaskEvent(event=name, data=json.dumps(content))]))


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


def nodes_of(grid: Any) -> dict[int, str]:
    """Return {node: when it was last started} of nodes that are online; on a grid that cannot tell, an empty text."""
    if not isinstance(grid, LinkGrid):
        return dict.fromkeys(grid.get_node_ids(), "")
    return {node.node_id: node.last_activated_at for node in grid.get_nodes()}


def names_of(grid: Any) -> dict[int, str]:
    """Return {node: name that its key was registered under at the SuperLink}, of nodes that are online."""
    return {node.node_id: node.name for node in grid.get_nodes()}


def end_with_parent(parent: int) -> None:
    """Let this process be interrupted, as by Ctrl-C, when the process `parent` has ended."""
    start_parent_process_monitor(parent)


def _wait_for_servers(flower: Any, noted: Callable[[], None] | None = None) -> None:
    """Make the calls of one of Flower's modules patient."""
    make = flower.make_simple_http_retry_invoker
    flower.make_simple_http_retry_invoker = lambda: make_patient(make(), noted)


def finish_uploads() -> None:
    """Let a SuperNode's upload go on where its SuperLink died in the middle of it, and is back."""
    fleet = node_connection()
    retried = Retried()
    fleet.make_push_object_fn_protobuf = upload_on(fleet.make_push_object_fn_protobuf, retried)
    _wait_for_servers(fleet, retried.note)


def quicken_supernode() -> None:
    """Shorten a SuperNode's waits: 3 s idle, 0.5 s for a reply or its content, 1 s for what is still being uploaded.

    They are written into its main loop (flwr/supernode/start_client_internal.py), and no option reaches them. The loop
    sees another `time` and another `pull_objects`; nothing else of Flower does. It also leaves a task behind when a run
    ends while a message of it arrives: one that nobody can ever finish, and that would keep a worker waiting.
    """
    loop = node_loop()
    receive = loop._pull_and_store_message

    def receive_or_forget(state: Any, **others: Any) -> int | None:
        received = receive(state=state, **others)
        if received is None and state.msg_store:  # one message at a time: none is being worked on
            for task in state.get_tasks(statuses=["pending", "starting", "running"]):
                state.finish_task(task.task_id, sub_status="failed", details="its message did not arrive")
            state.delete_messages()
        return received

    loop._pull_and_store_message = receive_or_forget

    loop.time = SimpleNamespace(
        sleep=lambda seconds: time.sleep(min(seconds, WAIT_SECONDS)), time=time.time, monotonic=time.monotonic
    )
    loop.pull_objects = functools.partial(
        loop.pull_objects, max_tries_per_object=None, initial_backoff=WAIT_SECONDS, backoff_cap=LONGEST_WAIT_SECONDS
    )


def main() -> None:
    """Run `python -m umbel.runtimes.flower.private supernode PARENT [OPTION …]`, tied to PARENT.

    Flower's own commands outlive whoever started them. Here a parent that was killed, and could clean nothing up,
    leaves nothing behind: each command ends itself, and Flower ends what they had started.
    """
    _, command, parent, *options = sys.argv
    end_with_parent(int(parent))
    warn_of_another_release()
    follow_from_now_on(options)
    sys.argv = [f"flower-{command}", *options]
    run = supernode_command()
    finish_uploads()
    let_tasks_last(PATIENCE_SECONDS)
    quicken_supernode()
    miss_workers()
    if KEY_OPTION in options:
        return_at_once(Path(os.environ["FLWR_HOME"]))
    run()


if __name__ == "__main__":
    main()
