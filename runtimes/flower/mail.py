"""Replies of a SuperLink, looked at before their content is fetched. Not public in Flower; see `compat`.

Flower's own `pull_messages` brings all replies that have arrived into memory at once, several times over. Here the
SuperLink keeps them until each is wanted, and one is then read chunk by chunk into one buffer.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from flwr.app import Error, Message

from .compat import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    ObjectUnavailableError,
    PullAppMessagesRequest,
    PullObjectRequest,
    PushAppMessagesRequest,
    PushObjectRequest,
    get_all_nested_objects,
    get_object_tree,
    make_message,
    message_from_proto,
    message_to_proto,
    no_object_id_recompute,
    remove_content_from_message,
)
from .link.grid import LinkGrid
from .malformed import Malformed
from .objects import ObjectReader, Wait, small, upload
from .parcels import HOLD, RECEIVED, TAKES, carried, load, note, object_ids

POLL_SECONDS = 0.05  # time between two looks into a Grid; its own send_and_receive looks every 3 seconds
OBJECT_SECONDS = b"1"  # time that a SuperLink may wait for an object which it is still sent


class Superseded(Exception):
    """Nobody waits any longer for the rest of a reply: what has arrived of it stays where it is."""


def _nothing() -> None:
    """Do nothing: nothing is kept anywhere."""


class Envelope(NamedTuple):
    """A reply that has arrived, or whose content is still being uploaded."""

    reply_to: str  # id of the message that it answers
    error: Error | None  # Flower's error, in place of content
    # (most bytes of its arrays, how to wait for what is not there yet) → the reply. Errors: Malformed; what wait raises
    open: Callable[[int, Wait], Message]
    drop: Callable[[], None] = _nothing  # let the SuperLink forget a reply that is not opened


class Mail(Protocol):
    """The way of a server's messages to nodes, and of their replies back."""

    def push(self, messages: Sequence[Message]) -> list[str]: ...
    def look(self, identifiers: Collection[str], seconds: float = 0.0) -> list[Envelope]: ...
    def was_cut(self) -> bool: ...
    def refuse(self, identifiers: Collection[str]) -> list[str]: ...


class GridMail:
    """Mail through Flower's public API: any Grid."""

    def __init__(self, grid: Any):
        self._grid = grid

    def push(self, messages: Sequence[Message]) -> list[str]:
        """Push messages; return their ids, empty for one that was not taken."""
        return [identifier or "" for identifier in self._grid.push_messages(messages)] if messages else []

    def look(self, identifiers: Collection[str], seconds: float = 0.0) -> list[Envelope]:
        """Return the replies that have arrived since the last look; wait up to `seconds` where there are none."""
        found = [_opened(message) for message in self._grid.pull_messages(set(identifiers))] if identifiers else []
        if not found and seconds > 0:
            time.sleep(min(seconds, POLL_SECONDS))  # a Grid cannot be waited for
        return found

    def was_cut(self) -> bool:
        """Return False: nothing gets lost on the way to nodes of this process."""
        return False

    def refuse(self, identifiers: Collection[str]) -> list[str]:
        """Throw away what has arrived for these; return the ids of the messages that it answered."""
        return [envelope.reply_to for envelope in self.look(identifiers)]


class SuperLinkMail:
    """Mail through the Runtime API of a SuperLink."""

    def __init__(self, grid: LinkGrid):
        self._client, self._node, self._run = grid.client, grid.node, grid.run
        self._outages = grid.outages
        self._received: list[str] = []  # ids of small replies that were read, until the next call says so

    def push(self, messages: Sequence[Message]) -> list[str]:
        """Push messages; return their ids, empty for one that was not taken.

        What messages share is sent once, and never copied whole.
        """
        if not messages:
            return []
        with no_object_id_recompute():
            objects: dict[str, Any] = {}
            for message in messages:
                objects.update(get_all_nested_objects(message))
            request = PushAppMessagesRequest(
                messages_list=[_announced(one) for one in messages],
                message_object_trees=[get_object_tree(one) for one in messages],
            )
            load(request, small(objects))
        reply = self._client.PushMessages(request)
        asked_for = set(reply.objects_to_push)
        wanted = {identifier: one for identifier, one in objects.items() if identifier in asked_for}
        # What is not taken was stored before, and the SuperLink died before it said so; or it comes too late. The two
        # look alike.
        about = PushObjectRequest(node=self._node, run_id=self._run, session_id=reply.session_id)
        if wanted:
            upload(self._client, about, wanted, lambda identifier: self._outages.set())
            return_memory()
        return list(reply.message_ids)

    def look(self, identifiers: Collection[str], seconds: float = 0.0) -> list[Envelope]:
        """Return the replies that have arrived since the last look; wait up to `seconds` where there are none.

        The SuperLink hands out each once.
        """
        if not identifiers:
            time.sleep(min(seconds, POLL_SECONDS))
            return []
        request = PullAppMessagesRequest(message_ids=list(identifiers))
        note(request, TAKES)
        note(request, HOLD, f"{seconds:.3f}".encode())
        received, self._received = self._received, []
        for identifier in received:
            note(request, RECEIVED, identifier.encode())
        found = self._client.PullMessages(request)
        objects, envelopes = carried(found), []
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            message = message_from_proto(proto)
            error = message.error if message.has_error() else None
            open_it = _fixed(message) if error else self._opener(message, tree, objects)
            drop = partial(self._confirm, tree)
            envelopes.append(Envelope(message.metadata.reply_to_message_id, error, open_it, drop))
            if error:
                self._confirm(tree)
        return envelopes

    def was_cut(self) -> bool:
        """Say whether the SuperLink was out of reach since the last question: what it was handing over may be lost."""
        was_cut = self._outages.is_set()
        self._outages.clear()
        return was_cut

    def refuse(self, identifiers: Collection[str]) -> list[str]:
        """Throw away what has arrived for these, unread; return the ids of the messages that it answered."""
        if not identifiers:
            return []
        found = self._client.PullMessages(PullAppMessagesRequest(message_ids=list(identifiers)))
        for tree in found.message_object_trees:
            self._confirm(tree)
        return [proto.metadata.reply_to_message_id for proto in found.messages_list]

    def _opener(
        self, message: Message, tree: ObjectTree, objects: Mapping[str, bytes]
    ) -> Callable[[int, Wait], Message]:
        def open_it(max_bytes: int, wait: Wait) -> Message:
            try:
                content = self._read(tree, objects, max_bytes, wait)
            except Malformed:
                self._confirm(tree)
                raise
            if set(object_ids([tree])) <= objects.keys():
                self._received.append(tree.object_id)
            else:
                self._confirm(tree)
            return make_message(message.metadata, content.content)

        return open_it

    def _read(self, tree: ObjectTree, objects: Mapping[str, bytes], max_bytes: int, wait: Wait) -> Message:
        """Read a reply's content. Errors: the same as of Envelope.open."""
        try:
            content = ObjectReader(lambda name: objects.get(name) or self._get(name), max_bytes, wait).read(tree)
        except (Malformed, Superseded):
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise Malformed("schema", f"its reply does not have Flower's form: {error}") from error
        except Exception as error:  # whatever Flower's clients raise: one client's reply does not end a round
            raise Malformed("timeout", f"its reply did not arrive whole: {error}") from error
        finally:
            if any(name not in objects for name in object_ids([tree])):
                return_memory()
        if not isinstance(content, Message):
            raise Malformed("schema", f"its reply is a {type(content).__name__}, no message")
        return content

    def _get(self, identifier: str) -> bytes:
        """Fetch an object. Errors: Malformed for one that the SuperLink lost; Flower's ObjectUnavailableError."""
        request = PullObjectRequest(node=self._node, run_id=self._run, object_id=identifier)
        note(request, HOLD, OBJECT_SECONDS)
        found = self._client.PullObject(request)
        if not found.object_found:
            raise Malformed("timeout", "its reply did not arrive whole: the SuperLink let go of it")
        if not found.object_available:
            raise ObjectUnavailableError(identifier)
        return found.object_content

    def _confirm(self, tree: ObjectTree) -> None:
        """Let the SuperLink forget a reply's content."""
        request = ConfirmMessageReceivedRequest(node=self._node, run_id=self._run, message_object_id=tree.object_id)
        self._client.ConfirmMessageReceived(request)


def mail_of(grid: Any) -> Mail:
    """Return the mail that sends and receives over grid."""
    return SuperLinkMail(grid) if isinstance(grid, LinkGrid) else GridMail(grid)


def _announced(message: Message) -> Any:
    """Return a message without its content, which goes by its name."""
    proto = message_to_proto(remove_content_from_message(message))
    proto.metadata.message_id = message.object_id
    return proto


def return_memory() -> None:
    """Let the C library give back what pieces of a model took; glibc keeps it, in a pool per thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _opened(message: Message) -> Envelope:
    error = message.error if message.has_error() else None
    return Envelope(message.metadata.reply_to_message_id, error, _fixed(message))


def _fixed(message: Message) -> Callable[[int, Wait], Message]:
    return lambda max_bytes, wait: message
