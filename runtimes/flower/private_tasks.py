"""A SuperNode's tasks over its Runtime API, from the side that works on them. Not public in Flower; see `private`.

What `flower-superexec` and one `flwr-clientapp` process per message do: acquire, pull, push. The archive that a run
ships is never installed: which code a client runs is not the submitter's choice.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# httpx: Flower's clients raise its errors.
import httpx
from flwr.app import Context, Error, Message

# flwr.app.message: a message without its content, which is all that a reply needs of it.
from flwr.app.message import remove_content_from_message
from flwr.common.serde import context_from_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

# flwr.supercore.task_identity: Message() reads from it which run it belongs to.
from flwr.supercore.task_identity import TaskIdentity

from .private_objects import Reader, not_stored, upload

log = logging.getLogger(__name__)

RAISED, CRASHED = 2, 8  # Flower's codes: the client's code raised; its process died


class Tasks:
    """The tasks of one SuperNode, on loopback; the one being worked on is noted in `folder`.

    secret: of a SuperNode with --superexec-auth-secret-file.
    """

    def __init__(self, address: str, folder: Path, secret: bytes | None = None):
        # By port, too: one client may take part in two federations, each beside a SuperNode of its own.
        self.address, self._journal = address, folder / f"task-{address.rpartition(':')[2]}.json"
        methods = ["/flwr.proto.Runtime/AcquireTask"]
        own = [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods)] if secret else []
        self._client = connect(address, *own)

    def acquire(self) -> Task | None:
        """The next task, now ours; None when there is none. Errors: httpx's, when the SuperNode is not there."""
        reply = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        return Task(self.address, self._journal, reply.token) if reply.HasField("task") and reply.token else None

    def interrupted(self) -> Task | None:
        """The task that a process which died had not finished, from its note; None where there is none."""
        try:
            noted = json.loads(self._journal.read_text())
            message = noted.get("message")
            original = (
                None if message is None else message_from_proto(MessageProto.FromString(base64.b64decode(message)))
            )
            return Task(self.address, self._journal, str(noted["token"]), original)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError):  # cut short by the same crash
            self._journal.unlink(missing_ok=True)
            return None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Task:
    """One message to work on. A context: inside, the SuperNode hears that it is being worked on."""

    def __init__(self, address: str, journal: Path, token: str, message: Message | None = None):
        self._client = connect(address, RuntimeTokenHttpInterceptor(token))
        self._journal, self._token, self._message = journal, token, message
        self._context: Context | None = None
        self._heart = HeartbeatSender(self._beat)

    def __enter__(self) -> Task:
        self._note()
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself
            self._heart.stop()
        self._client.close()
        if kind is None or issubclass(kind, Exception):  # not when the process ends: a successor has to know
            self._journal.unlink(missing_ok=True)

    def pull(self) -> tuple[Message, Context]:
        """The message, and the node's context. Errors: Flower's and httpx's, as in all that follows."""
        task = self._client.PullTaskInput(PullTaskInputRequest())
        self._context = context = context_from_proto(task.context)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, task.run.run_id, context.node_id
        found = self._client.PullMessages(PullAppMessagesRequest())
        if not found.messages_list:
            raise RuntimeError("the SuperNode has a task without a message")
        message = message_from_proto(found.messages_list[0])
        self._note(message)
        tree, node = found.message_object_trees[0], Node(node_id=context.node_id)
        # The SuperNode may still be receiving it; a SuperNode that is gone ends the wait.
        pulled = Reader(make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id)).read(tree)
        make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, context.run_id)(
            tree.object_id
        )
        if not isinstance(pulled, Message):
            raise RuntimeError(f"the SuperNode handed out a {type(pulled).__name__} in place of a message")
        pulled.metadata.__dict__["_message_id"] = tree.object_id  # a message does not contain its own
        return pulled, context

    def push(self, reply: Message) -> None:
        """Hand in the reply, and be done."""
        assert self._context is not None
        self._send(reply, self._context.run_id, self._context.node_id)
        self._client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed"))

    def fail(self, code: int, reason: str) -> None:
        """Hand in an error in place of a reply. Without a message there is nothing to reply to, and the SuperNode finds
        out by itself, within a minute."""
        if self._message is None:
            return
        about = self._message.metadata
        TaskIdentity.run_id, TaskIdentity.node_id = about.run_id, about.dst_node_id
        TaskIdentity.task_id = 1  # Flower only wants there to be one
        self._send(Message(Error(code, reason), reply_to=self._message), about.run_id, about.dst_node_id)
        self._client.PushTaskOutput(PushTaskOutputRequest(sub_status="failed", details=reason))

    @property
    def is_begun(self) -> bool:
        """Whether its message was taken: it cannot be taken again."""
        return self._message is not None

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

    def _note(self, message: Message | None = None) -> None:
        """Keep on disk what a successor needs in order to say that this process died."""
        noted: dict[str, Any] = {"token": self._token}
        self._message = message if message is not None else self._message
        if self._message is not None:
            bare = remove_content_from_message(self._message) if self._message.has_content() else self._message
            noted["message"] = base64.b64encode(message_to_proto(bare).SerializeToString()).decode()
        with _private(self._journal) as file:
            file.write(json.dumps(noted))

    def _beat(self) -> bool:
        """Flower's own heartbeat interrupts the process once a task is no longer wanted; here its reply is refused."""
        try:
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            return False
        except Exception as error:
            log.warning("the SuperNode no longer knows this task: %s", error)
        return True


def connect(address: str, *interceptors: Any) -> RuntimeHttpClient:
    """A client of the Runtime API at a loopback address. It retries nothing: a SuperNode there answers, or is gone."""
    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    return RuntimeHttpClient.from_server_address(
        address, insecure=True, root_certificates=None, interceptors=[version, *interceptors]
    )


@contextlib.contextmanager
def _private(path: Path) -> Iterator[Any]:
    """A file that only this user may read: a token is in it."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        yield file
