"""Flower beyond its public API (flwr.app, flwr.serverapp, flwr.clientapp): the one file that imports it.

Flower brings a release every week or two, and moves what it does not call public. So nothing else in Umbel imports such
a name, and `tests/runtimes/flower/test_compat.py` says of each how Umbel calls it, and what goes over the wire. It runs
against the lowest and the highest release of RELEASES: `make test-flower FLWR=1.41`. A port to another begins here.

What brings a whole server with it is imported when it is asked for, by a function.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any

# A message without its content, and the pieces that arrays are cut into.
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk

# `flwr run` builds its app archive with it; there is no public way to build one in memory.
from flwr.cli.build import build_fab_from_files

# How large the pieces are, what a call's headers are called, and how long a signature counts.
from flwr.common.constant import (
    ACCESS_TOKEN_KEY,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    Status,
)
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES

# Between Flower's values and its protobuf messages.
from flwr.common.serde import context_from_proto, fab_to_proto, message_from_proto, message_to_proto

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
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node

# The Runtime API: a run's process to its SuperLink, a worker to its SuperNode.
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskEventsRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
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
    HEAD_BODY_DIVIDER,
    HEAD_VALUE_DIVIDER,
    TASK_TOKEN_HEADER,
    TaskType,
)

# The Control API's client: `flwr run` only prints a run's number. The clock that signatures are held against.
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender

# What a message consists of.
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
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
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext

# Whether and when a failed call is tried again.
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime import RuntimeHttpClient

# Message() reads from it which run it belongs to.
from flwr.supercore.task_identity import TaskIdentity

# What the Control API asks who calls.
from flwr.superlink.auth_plugin import ControlAuthnPlugin

log = logging.getLogger(__name__)

RELEASES = ("1.41", "1.42")  # releases that Umbel was tried with, the lowest first; pyproject.toml takes no others

# What a SuperLink answers at, where Umbel stands before it.
FLEET_PATH, RUNTIME_PATH, CONTROL_PATH = "/v1/fleet/", "/v1/runtime/", "/v1/control/"
PULL_PATH = FLEET_PATH + "pull-messages"  # a node's question
PUSH_PATH = RUNTIME_PATH + "push-messages"  # a run's messages
REPLY_PATH = FLEET_PATH + "push-messages"
OBJECT_PATH = FLEET_PATH + "push-object"


def warn_of_another_release(found: str | None = None) -> None:
    """Say in the log when the Flower that is installed is one that Umbel was not tried with."""
    found = found or version("flwr")
    if ".".join(found.split(".")[:2]) not in RELEASES:
        known = " and ".join(RELEASES)
        log.warning("Flower %s is installed; Umbel was tried with %s: make test-flower FLWR=%s", found, known, found)


def fleet_handlers() -> ModuleType:
    """Return the module of a SuperLink's answers to its nodes."""
    return importlib.import_module("flwr.superlink.servicer.fleet.fleet_handlers")


def runtime_handlers() -> ModuleType:
    """Return the module of a SuperLink's answers to the processes of its runs."""
    return importlib.import_module("flwr.superlink.servicer.runtime.runtime_handlers")


def node_handlers() -> ModuleType:
    """Return the module of a SuperNode's answers to its worker."""
    return importlib.import_module("flwr.supernode.servicer.runtime.runtime_handlers")


def databases() -> ModuleType:
    """Return the module that opens Flower's databases."""
    return importlib.import_module("flwr.supercore.sql_mixin")


def task_states() -> list[ModuleType]:
    """Return the modules of what a process knows of tasks: in memory, and in a database."""
    return [importlib.import_module(f"flwr.supercore.corestate.{kind}_corestate") for kind in ("in_memory", "sql")]


def link_states() -> list[tuple[ModuleType, type]]:
    """Return the modules of what a SuperLink knows of nodes, each with its class: in memory, and in a database."""
    from flwr.server.superlink.linkstate import in_memory_linkstate, sql_linkstate

    return [(in_memory_linkstate, in_memory_linkstate.InMemoryLinkState), (sql_linkstate, sql_linkstate.SqlLinkState)]


def superlink_command() -> Any:
    """Return the module behind `flower-superlink`, whose package exports the function under the module's own name."""
    return importlib.import_module("flwr.superlink.cli.flower_superlink")


def superexec_module() -> ModuleType:
    """Return the module of a SuperExec's main loop."""
    return importlib.import_module("flwr.supercore.superexec.run_superexec")


def superexec_command() -> Callable[[], None]:
    """Return the function behind `flower-superexec`."""
    from flwr.supercore.cli import flower_superexec

    return flower_superexec


def supernode_command() -> Callable[[], None]:
    """Return the function behind `flower-supernode`."""
    from flwr.supernode.cli import flower_supernode

    return flower_supernode


def node_loop() -> Any:
    """Return the module of a SuperNode's main loop."""
    return importlib.import_module("flwr.supernode.start_client_internal")


def node_connection() -> Any:
    """Return the module of how a SuperNode calls its SuperLink."""
    return importlib.import_module("flwr.supernode.fleet_http_connection")


def node_client() -> Any:
    """Return the class of a SuperNode's client of the Fleet API."""
    from flwr.supernode.fleet_http_client import FleetHttpClient

    return FleetHttpClient
