"""A SuperLink in this process: Flower's own application, with or without Umbel's layers, called without a port."""

import asyncio
import base64

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import NOOP_FLWR_AID
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.main import create_app
from starlette.testclient import TestClient

from umbel.runtimes.flower.compat import PROTOBUF_MEDIA_TYPE, TIMESTAMP_HEADER
from umbel.runtimes.flower.link.asgi import ask
from umbel.runtimes.flower.local import app_config, pyproject

SERVER = 1  # number of the node that a run's own process is


class NodeKey:
    """A node's key, and what it proves itself by."""

    def __init__(self):
        self._private = ec.generate_private_key(ec.SECP384R1())
        self.public = public_key_to_bytes(self._private.public_key())

    @property
    def proof(self):
        """A call's headers, as of now."""
        moment = now().isoformat()
        signature = base64.b64encode(sign_message(self._private, moment.encode())).decode()
        key = base64.b64encode(self.public).decode()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: key,
            TIMESTAMP_HEADER: moment,
            FLEET_HTTP_SIGNATURE_HEADER: signature,
        }


def called(app, path, request, headers):
    """Return an application's answer to one call, of a protobuf message."""
    words = {"content-type": PROTOBUF_MEDIA_TYPE, **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
        "headers": [(name.lower().encode(), value.encode()) for name, value in words.items()],
    }
    return asyncio.run(ask(app, scope, request.SerializeToString()))


class SuperLink:
    """Flower's own SuperLink, its database in memory, with a run that is being played.

    layers: what is put around its application, for what calls it. calls: the paths that were called, in order.
    """

    def __init__(self, layers=lambda app: app):
        self.app = create_app()
        self.layered, self.calls = layers(self.app), []
        self.state = self.app.state.linkstate_factory.state()
        self.app.state.enable_supernode_auth = True
        config = app_config("digits_fedavg", ["rounds=3"], 2, None)
        content, _ = build_fab_from_files({"pyproject.toml": pyproject(config).encode()})
        digest = self.state.store_fab(Fab("", content, {}))
        words = "umbel", "0", digest, {"clients": 7}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        self.run = self.state.create_run(*words)
        self.task = self.state.get_run_info(run_ids=[self.run])[0].primary_task_id
        self.token = self.state.claim_task(self.task)  # what the run's own process proves itself by
        self.state.activate_task(self.task)

    def http(self):
        async def noted(scope, receive, send):
            self.calls.append(scope.get("path", "").rpartition("/")[2])
            await self.layered(scope, receive, send)

        return TestClient(noted, base_url="http://link:8443")

    def register(self, key):
        return self.state.create_node(NOOP_FLWR_AID, "", key.public, 0)

    def message(self, content, node, kind="train"):
        """Make a message of the run's."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run, SERVER, 1
        return Message(content, node, kind, ttl=60.0)

    def send(self, node, content, kind="train"):
        """Send a message; return its id."""
        message = self.message(content, node, kind)
        message.metadata.__dict__["_message_id"] = message.object_id
        session = self.state.start_session(self.run)
        self.state.store_message_and_object_tree(
            remove_content_from_message(message), get_object_tree(message), session
        )
        for name, part in get_all_nested_objects(message).items():
            self.state.store_object(self.run, session, name, part.deflate())
        return message.metadata.message_id

    def reply_to(self, message):
        """The reply to a message, and the parts of it that are here."""
        (reply,) = self.state.get_message_res({message}, self.run)
        return reply, self.state.object_store.get(reply.metadata.message_id)

    def statuses(self):
        return [node.status for node in self.state.get_node_info()]
