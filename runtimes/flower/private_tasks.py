"""A SuperNode's tasks over its Runtime API, from the side that works on them. Not public in Flower; see `compat`.

What `flower-superexec` and one `flwr-clientapp` process per message do: acquire, pull, push. The archive that a run
ships is never installed: which code a client runs is not the submitter's choice.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

# httpx: Flower's clients raise its errors.
import httpx
from flwr.app import Context, Message

from .compat import (
    AcquireTaskRequest,
    HeartbeatSender,
    Node,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushObjectRequest,
    PushTaskOutputRequest,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SendTaskHeartbeatRequest,
    SuperExecAuthHttpInterceptor,
    TaskIdentity,
    TaskType,
    context_from_proto,
    get_all_nested_objects,
    get_object_tree,
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    message_to_proto,
    no_object_id_recompute,
    remove_content_from_message,
)
from .private_objects import ObjectReader, not_stored, upload

log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one SuperNode, on loopback. secret: that of a SuperNode with --superexec-auth-secret-file."""

    def __init__(self, address: str, secret: bytes | None = None):
        self.address = address
        methods = ["/flwr.proto.Runtime/AcquireTask"]
        own = [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods)] if secret else []
        self._client = connect(address, *own)

    def acquire(self) -> Task | None:
        """Acquire the next task, or None when there is none. Errors: httpx's, when the SuperNode is not there."""
        reply = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        return Task(self.address, reply.token) if reply.HasField("task") and reply.token else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Task:
    """One message to work on. A context: inside, the SuperNode hears that it is being worked on."""

    def __init__(self, address: str, token: str):
        self._client = connect(address, RuntimeTokenHttpInterceptor(token))
        self._context: Context | None = None
        self._heart = HeartbeatSender(self._beat)

    def __enter__(self) -> Task:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself
            self._heart.stop()
        self._client.close()

    def pull(self) -> tuple[Message, Context]:
        """Fetch the message, and the node's context. Errors: Flower's and httpx's, as in all that follows."""
        task = self._client.PullTaskInput(PullTaskInputRequest())
        self._context = context = context_from_proto(task.context)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, task.run.run_id, context.node_id
        found = self._client.PullMessages(PullAppMessagesRequest())
        if not found.messages_list:
            raise RuntimeError("the SuperNode has a task without a message")
        tree, node = found.message_object_trees[0], Node(node_id=context.node_id)
        # The SuperNode may still be receiving it; a SuperNode that is gone ends the wait.
        pulled = ObjectReader(make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id)).read(tree)
        make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, context.run_id)(
            tree.object_id
        )
        if not isinstance(pulled, Message):
            raise RuntimeError(f"the SuperNode handed out a {type(pulled).__name__} in place of a message")
        pulled.metadata.__dict__["_message_id"] = tree.object_id  # a message does not contain its own
        return pulled, context

    def push(self, reply: Message, failure: str = "") -> None:
        """Hand in the reply, and be done. failure: what went wrong, where the reply is an error."""
        assert self._context is not None
        self._send(reply, self._context.run_id, self._context.node_id)
        sub_status = "failed" if failure else "completed"
        self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=sub_status, details=failure))

    def _send(self, reply: Message, run: int, node: int) -> None:
        """Hand the SuperNode a reply: what it is, and then what it consists of."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            request = PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)],
                message_object_trees=[get_object_tree(reply)],
            )
            objects = get_all_nested_objects(reply)
        taken = self._client.PushMessages(request)
        asked_for = set(taken.objects_to_push)
        about = PushObjectRequest(node=Node(node_id=node), run_id=run, session_id=taken.session_id)
        wanted = {identifier: one for identifier, one in objects.items() if identifier in asked_for}
        upload(self._client, about, wanted, not_stored(run, taken.session_id))

    def _beat(self) -> bool:
        """Send a sign of life; return False where the SuperNode cannot be reached.

        Flower's own heartbeat interrupts the process once a task is no longer wanted; here its reply is refused.
        """
        try:
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            return False
        except Exception as error:
            log.warning("the SuperNode no longer knows this task: %s", error)
        return True


def connect(address: str, *interceptors: Any) -> RuntimeHttpClient:
    """Make a client of the Runtime API at a loopback address.

    It retries nothing: a SuperNode there answers, or is gone.
    """
    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    return RuntimeHttpClient.from_server_address(
        address, insecure=True, root_certificates=None, interceptors=[version, *interceptors]
    )
