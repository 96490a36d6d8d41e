"""The calls of a SuperLink's Fleet API: protobuf messages over HTTP, each signed, and made again while it is away."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

# httpx: what Flower itself speaks HTTP with.
import httpx

from ....core.errors import UmbelError
from ..compat import (
    FLEET_PATH,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
    PROTOBUF_MEDIA_TYPE,
    ActivateNodeRequest,
    ActivateNodeResponse,
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    GetFabRequest,
    GetFabResponse,
    GetRunRequest,
    GetRunResponse,
    Node,
    ObjectUnavailableError,
    PullMessagesRequest,
    PullMessagesResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushMessagesResponse,
    PushObjectResponse,
    RegisterNodeFleetRequest,
    RegisterNodeFleetResponse,
    SendNodeHeartbeatRequest,
    SendNodeHeartbeatResponse,
    package_name,
    package_version,
)
from ..parcels import HOLD, RECEIVED, TAKES, note
from .proof import Proof
from .trust import Announced

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0  # time for an answer: three times what a SuperLink of ours lets a question wait
OBJECT_SECONDS = b"2"  # time that a SuperLink of ours may wait for an object which it is still sent
KEPT_SECONDS = 60.0  # time for which a connection is kept on which nothing is asked: a handshake costs more than a call
BEAT_TIMEOUT_SECONDS = 5.0  # time for the answer to a sign of life, and to a goodbye
FIRST_RETRY_SECONDS, RETRY_SECONDS = 0.1, 1.0  # shortest and longest time between two tries to reach a server
BUSY = frozenset({429, 502, 503, 504})  # answers of a proxy, or a server, that has no time now
CUT = ("eof", "reset", "closed", "broken pipe")  # words in the error of a handshake that was cut
SECURITY = ("certificate", "ssl", "tls")  # words in the error of one that was refused
LONGEST_TEXT = 300
LIMITS = httpx.Limits(keepalive_expiry=KEPT_SECONDS)
# Headers in which a SuperNode says which Flower it has.
VERSION = {
    FLWR_PACKAGE_NAME_METADATA_KEY: package_name,
    FLWR_PACKAGE_VERSION_METADATA_KEY: package_version,
    FLWR_COMPONENT_NAME_METADATA_KEY: "SuperNode",
}
UNKNOWN = (
    "does not let this node in: it does not know its key (on its host, put node's .pub into KIT/clients and restart "
    "it), or another process that has this key is connected"
)
Answer = TypeVar("Answer")


class NotLetIn(UmbelError):
    """The SuperLink does not take this node's calls."""


class Rejected(UmbelError):
    """The SuperLink answers one call with an error."""


class RunOver(UmbelError):
    """The run that a call is about is not being played, or no longer."""


class Leaving(Exception):
    """This process was asked to end."""


class Answered(NamedTuple):
    """An answer, and how it came."""

    content: bytes
    headers: httpx.Headers
    was_retried: bool  # whether the call was made more than once: an earlier one may have been done


class FleetApi:
    """The Fleet API of one SuperLink. Its calls may be made by several threads.

    http: see `connection`. trust: whose header goes with each call; None: without TLS. stop: set when this process is
    to end; calls that wait for a server then raise Leaving. Errors of its calls: NotLetIn, Rejected, RunOver, Leaving;
    httpx.TransportError where TLS is refused.
    """

    def __init__(self, http: httpx.Client, proof: Proof, trust: Announced | None, stop: threading.Event):
        self.server = http.base_url.netloc.decode()
        self._http, self._proof, self._trust, self._stop = http, proof, trust, stop
        self._same = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            **VERSION,
        }
        self._away_since: float | None = None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def register(self, public: bytes) -> None:
        """Make this node's key known to a SuperLink that takes nodes which nobody vouches for; it may know it."""
        request = RegisterNodeFleetRequest(public_key=public)
        with contextlib.suppress(Rejected):
            self._call("register-node", request, RegisterNodeFleetResponse)

    def activate(self, public: bytes, interval: float) -> int:
        """Come online; return the node's number. interval: time in seconds within which the node is heard again."""
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=interval)
        return self._call("activate-node", request, ActivateNodeResponse).node_id

    def deactivate(self, node: int) -> None:
        """Go offline. One try."""
        request = DeactivateNodeRequest(node_id=node)
        self._parsed(self._once("deactivate-node", request, BEAT_TIMEOUT_SECONDS), DeactivateNodeResponse)

    def beat(self, node: int, interval: float) -> bool:
        """Send a sign of life; return whether the SuperLink knows the node. One try."""
        request = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=interval)
        reply = self._once("send-node-heartbeat", request, BEAT_TIMEOUT_SECONDS)
        return bool(self._parsed(reply, SendNodeHeartbeatResponse).success)

    def pull(self, node: int, received: str = "") -> tuple[Any, httpx.Headers]:
        """Ask for a message; return Flower's PullMessagesResponse, and what came with it.

        received: id of the message before, where that came whole in its parcel, and was not confirmed.
        """
        request = PullMessagesRequest(node=Node(node_id=node))
        note(request, TAKES)
        if received:
            note(request, RECEIVED, received.encode())
        reply = self._post("pull-messages", request)
        return self._parsed(reply, PullMessagesResponse), reply.headers

    def run(self, node: int, run: int) -> Any:
        """Return Flower's Run of this number."""
        request = GetRunRequest(node=Node(node_id=node), run_id=run)
        return self._call("get-run", request, GetRunResponse).run

    def archive(self, node: int, run: int, digest: str) -> bytes:
        """Return the archive that a run ships."""
        request = GetFabRequest(node=Node(node_id=node), run_id=run, hash_str=digest)
        return self._call("get-fab", request, GetFabResponse).fab.content

    def get(self, node: int, run: int, identifier: str) -> bytes:
        """Fetch an object. Errors: Flower's ObjectUnavailableError for one that the SuperLink is still sent."""
        request = PullObjectRequest(node=Node(node_id=node), run_id=run, object_id=identifier)
        note(request, HOLD, OBJECT_SECONDS)
        found = self._call("pull-object", request, PullObjectResponse)
        if not found.object_found:
            raise Rejected(f"the server has no object {identifier[:12]}")
        if not found.object_available:
            raise ObjectUnavailableError(identifier)
        return found.object_content

    def confirm(self, node: int, run: int, identifier: str) -> None:
        """Say that a message has been received whole."""
        request = ConfirmMessageReceivedRequest(node=Node(node_id=node), run_id=run, message_object_id=identifier)
        self._call("confirm-message-received", request, ConfirmMessageReceivedResponse)

    def push(self, request: Any) -> Any:
        """Announce a reply, by Flower's PushMessagesRequest; return its PushMessagesResponse."""
        return self._call("push-messages", request, PushMessagesResponse)

    def put(self, request: Any) -> bool:
        """Send an object, by Flower's PushObjectRequest; return whether the SuperLink has it.

        One that it had stored, and died before it said so, it refuses when the call is made again.
        """
        reply = self._post("push-object", request)
        return bool(self._parsed(reply, PushObjectResponse).stored) or reply.was_retried

    def _call(self, name: str, request: Any, answer: type[Answer]) -> Answer:
        return self._parsed(self._post(name, request), answer)

    def _parsed(self, reply: Answered, answer: Any) -> Any:
        try:
            return answer.FromString(reply.content)
        except ValueError as error:  # protobuf's DecodeError
            raise Rejected(f"the server at {self.server} does not answer as a SuperLink does: {error}") from error

    def _post(self, name: str, request: Any) -> Answered:
        """Make a call until it is answered."""
        content, was_retried = request.SerializeToString(deterministic=True), False
        for pause in _pauses():
            try:
                response = self._sent(name, content, TIMEOUT_SECONDS)
            except httpx.TransportError as error:
                if is_final(error):
                    raise
                self._note_away(f"{type(error).__name__}: {error}")
            else:
                if response.status_code not in BUSY:
                    self._note_back()
                    return Answered(self._checked(name, response), response.headers, was_retried)
                self._note_away(f"it answers {response.status_code}")
            was_retried = True
            if self._stop.wait(pause):
                break
        raise Leaving

    def _once(self, name: str, request: Any, seconds: float) -> Answered:
        response = self._sent(name, request.SerializeToString(deterministic=True), seconds)
        return Answered(self._checked(name, response), response.headers, False)

    def _sent(self, name: str, content: bytes, seconds: float) -> httpx.Response:
        """Send a request; a second time where this host's clock was the reason that the first was refused."""
        response = self._signed(name, content, seconds)
        if response.status_code == 401 and self._proof.follow(response.headers.get("date")):
            response = self._signed(name, content, seconds)
        return response

    def _signed(self, name: str, content: bytes, seconds: float) -> httpx.Response:
        headers = self._same | self._proof.headers()
        if self._trust is not None:
            headers |= self._trust.headers()
        return self._http.post(f"{FLEET_PATH}{name}", content=content, headers=headers, timeout=seconds)

    def _checked(self, name: str, response: httpx.Response) -> bytes:
        status = response.status_code
        if status == 401:
            raise NotLetIn(f"the server at {self.server} {UNKNOWN}")
        if status == 403:
            raise RunOver(f"{name}: the run is not being played")
        if status >= 300:
            raise Rejected(f"{name}: the server at {self.server} answers {status}: {response.text[:LONGEST_TEXT]}")
        return response.content

    def _note_away(self, why: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("the server at %s is away: %s; trying again", self.server, why)

    def _note_back(self) -> None:
        since, self._away_since = self._away_since, None
        if since is not None:
            log.info("the server at %s is back after %.1f seconds", self.server, time.monotonic() - since)


def connection(server: str, trust: Announced | None) -> httpx.Client:
    """Make a client for the server at host:port: over TLS, where somebody is trusted; by a proxy, if there is one."""
    if trust is None:
        return httpx.Client(base_url=f"http://{server}", limits=LIMITS)
    return httpx.Client(base_url=f"https://{server}", verify=trust.context, limits=LIMITS)


def is_final(error: httpx.TransportError) -> bool:
    """Return whether a call fails for good: its handshake was refused, and not only cut."""
    text = str(error).lower()
    is_refused = isinstance(error, httpx.ConnectError) and any(word in text for word in SECURITY)
    return is_refused and not any(word in text for word in CUT)


def _pauses() -> Iterator[float]:
    """Yield the seconds between one try and the next: at random, so that not all come back at once."""
    longest = FIRST_RETRY_SECONDS
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(2 * longest, RETRY_SECONDS)
