"""Flower beyond its public API (flwr.app, flwr.serverapp, flwr.clientapp): the one file that imports it.

Flower brings a release every week or two, and moves what it does not call public. So nothing else in Umbel imports such
a name, and `tests/runtimes/flower/test_compat.py` says of each how Umbel calls it, and what goes over the wire. It runs
against the lowest and the highest release of RELEASES: `make test-flower FLWR=1.41`. A port to another begins here.

What brings a whole server with it is imported when it is asked for, by a function.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from types import ModuleType
from typing import Any

# A message without its content, and the pieces that arrays are cut into.
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk

# `flwr run` builds its app archive with it; there is no public way to build one in memory.
from flwr.cli.build import build_fab_from_files
from flwr.common.config import get_fused_config_from_fab

# How large the pieces are, what a call's headers are called, and how long a signature counts.
from flwr.common.constant import (
    ACCESS_TOKEN_KEY,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    TRANSPORT_TYPE_GRPC_RERE,
    Status,
    SubStatus,
)
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES

# Between Flower's values and its protobuf messages.
from flwr.common.serde import (
    context_from_proto,
    fab_to_proto,
    message_from_proto,
    message_to_proto,
    run_from_proto,
)

# The Control API, the operator's: submit, follow, stop; nodes come and go.
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamRunEventsRequest,
    UnregisterNodeRequest,
)

# The Fleet API, a node's, and what messages and their objects travel in.
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    RegisterNodeFleetResponse,
)
from flwr.proto.heartbeat_pb2 import (
    SendNodeHeartbeatRequest,
    SendNodeHeartbeatResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse

# The Runtime API: a run's process to its SuperLink, a worker to its SuperNode.
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskEventsRequest,
    PushTaskOutputRequest,
)
from flwr.proto.task_pb2 import TaskEvent

# It ends a process whose parent died. Flower starts it below a SuperLink and a SuperNode only.
from flwr.supercore.app_utils import start_parent_process_monitor

# What an authenticator of the Control API says of a caller.
from flwr.supercore.auth.typing import AccountInfo

# What a call's headers are called, and what parts an object's head from its body.
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
    HEAD_BODY_DIVIDER,
    HEAD_VALUE_DIVIDER,
    TASK_TOKEN_HEADER,
    TaskType,
)

# The Control API's client: `flwr run` only prints a run's number. The clock that signatures are held against.
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http

# What a message consists of.
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    inflatable_class_registry,
)

# What every call says of its caller.
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

# Whether and when a failed call is tried again.
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient

# Message() reads from it which run it belongs to.
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.version import package_name, package_version

# What the Control API asks who calls.
from flwr.superlink.auth_plugin import ControlAuthnPlugin

log = logging.getLogger(__name__)

RELEASES = ("1.41", "1.42")  # releases that Umbel was tried with, the lowest first; pyproject.toml takes no others

# What a SuperLink answers at, where Umbel stands before it.
FLEET_PATH, RUNTIME_PATH, CONTROL_PATH = "/v1/fleet/", "/v1/runtime/", "/v1/control/"
PULL_PATH = FLEET_PATH + "pull-messages"  # a node's question
REPLY_PATH, OBJECT_PATH = FLEET_PATH + "push-messages", FLEET_PATH + "push-object"  # its answer, and a piece of that
FETCH_PATH = FLEET_PATH + "pull-object"  # a node's question for a piece
CONFIRM_PATH = FLEET_PATH + "confirm-message-received"
ACTIVATE_PATH, HEARTBEAT_PATH = FLEET_PATH + "activate-node", FLEET_PATH + "send-node-heartbeat"
PUSH_PATH = RUNTIME_PATH + "push-messages"  # a run's messages
ANSWERS_PATH = RUNTIME_PATH + "pull-messages"  # a run's question for replies
RUN_FETCH_PATH, RUN_OBJECT_PATH = RUNTIME_PATH + "pull-object", RUNTIME_PATH + "push-object"
OUTPUT_PATH = RUNTIME_PATH + "push-task-output"  # a run's end


def warn_of_another_release(found: str | None = None) -> None:
    """Say in the log when the Flower that is installed is one that Umbel was not tried with."""
    found = found or version("flwr")
    if ".".join(found.split(".")[:2]) not in RELEASES:
        known = " and ".join(RELEASES)
        log.warning("Flower %s is installed; Umbel was tried with %s: make test-flower FLWR=%s", found, known, found)


def superlink_app(
    host: str,
    port: int,
    database: str | None = None,
    authenticator: ControlAuthnPlugin | None = None,
    secret: bytes | None = None,
    keys_are_registered: bool = False,
) -> Any:
    """Make a SuperLink's ASGI application, whose runs are played by a process that is not its own.

    database: its file; None: it keeps what it knows in memory. authenticator: of its Control API; None lets everybody
    in. secret: what who plays runs proves himself by; None for no proof. keys_are_registered: whether a node is let in
    for a key that the operator registered, or registers itself.
    """
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    # What concerns certificates and addresses is read by servers that Flower starts below its own; none is started.
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=host,
        port=port,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=authenticator or NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=keys_are_registered,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=database or FLWR_IN_MEMORY_DB_NAME,
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


def state_of(app: Any) -> Any:
    """Return what a SuperLink knows."""
    return app.state.linkstate_factory.state()


def transaction(state: Any) -> AbstractContextManager[Any]:
    """Let what is done to a SuperLink's state inside a `with` block be done at once: in one transaction, on a disk."""
    from flwr.supercore.sql_mixin import SqlMixin

    return state.session() if isinstance(state, SqlMixin) else contextlib.nullcontext()


def let_session_go(state: Any, session: str, roots: list[str]) -> None:
    """Let a SuperLink forget an upload, the objects that it has, and the message that they belong to."""
    for root in roots:
        state.object_store.delete(root)
    state._cleanup_push_session(session, cleanup_messages=True)


def log_config() -> dict[str, Any]:
    """Return the settings of uvicorn's log that Flower's servers have: successes on routine paths are not written."""
    from flwr.supercore.http_logging import get_uvicorn_log_config

    return get_uvicorn_log_config(logging.INFO)


def play_as(task: int, run: int, node: int) -> None:
    """Let messages that this process makes be of a run's task.

    A patch: Message() reads it from a class of Flower's, and takes no parameter for it. For 1.41 and 1.42.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task, run, node


def run_config_of(task: Any) -> dict[str, Any]:
    """Return the configuration that a run was submitted with; task: the input of the task that plays it."""
    return dict(get_fused_config_from_fab(task.fab.content, run_from_proto(task.run)))


def let_tasks_last(seconds: float) -> None:
    """Let tasks that are worked on be given up after so many seconds of silence; half of it until they are begun.

    A patch: the interval is a constant of the modules of what a process knows of tasks, and Flower gives it no
    parameter. Flower's own is half a minute, in which a busy machine may not have started a run's process; and a
    SuperLink that was away for a minute ends every run when it is back. For 1.41 and 1.42.
    """
    for tasks in task_states():
        tasks.HEARTBEAT_DEFAULT_INTERVAL = seconds / 2  # type: ignore[attr-defined]


def task_states() -> list[ModuleType]:
    """Return the modules of what a process knows of tasks: in memory, and in a database."""
    return [importlib.import_module(f"flwr.supercore.corestate.{kind}_corestate") for kind in ("in_memory", "sql")]
