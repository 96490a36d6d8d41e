"""A node's replies: announced, and sent object by object, as far as the SuperLink does not have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flwr.app import Message

from ..compat import (
    Node,
    PushMessagesRequest,
    PushObjectRequest,
    get_all_nested_objects,
    get_object_tree,
    message_to_proto,
    no_object_id_recompute,
    remove_content_from_message,
)
from ..mail import return_memory
from ..objects import small, upload
from ..parcels import load
from .fleet import FleetApi, Rejected


class Outbox:
    """The replies of one node."""

    def __init__(self, fleet: FleetApi, node: int):
        self._fleet, self._node = fleet, Node(node_id=node)

    def send(self, reply: Message, seconds: float, in_parcel: bool = False) -> None:
        """Send a reply. seconds: time that the work took. Errors: Rejected, and those of FleetApi.

        in_parcel: whether small objects go with it; a SuperLink that does not know of that asks for them all the same.
        """
        request, objects = _announced(reply)
        request.node.CopyFrom(self._node)
        request.clientapp_runtime_list.append(seconds)
        run = reply.metadata.run_id
        if in_parcel:
            load(request, small(objects))
        taken = self._fleet.push(request)
        asked_for = set(taken.objects_to_push)
        about = PushObjectRequest(node=self._node, run_id=run, session_id=taken.session_id)
        wanted = {identifier: one for identifier, one in objects.items() if identifier in asked_for}
        if wanted:
            upload(self, about, wanted, _refuse)
            return_memory()

    def PushObject(self, request: Any) -> Any:
        """Send an object as Flower's clients do; see `upload`."""
        return SimpleNamespace(stored=self._fleet.put(request))


def _refuse(identifier: str) -> None:
    raise Rejected(f"the server does not take the object {identifier[:12]}")


def _announced(message: Message) -> tuple[PushMessagesRequest, dict[str, Any]]:
    """Return the request that announces a reply, without its node, and the objects that it consists of, by id."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        head = remove_content_from_message(message) if message.has_content() else message
        request = PushMessagesRequest(
            messages_list=[message_to_proto(head)], message_object_trees=[get_object_tree(message)]
        )
        return request, get_all_nested_objects(message)
