"""A node's channels of steps, each proven to be its own as its calls are."""

from __future__ import annotations

from ..first_half import Opener
from ..link.pairing import NODE_PATH
from ..steps import Channel, open_channel
from .proof import Proof
from .trust import Announced


def crossings(server: str, proof: Proof, trust: Announced | None) -> Opener:
    """Make what opens a node's channels to the server at host:port. trust: None: without TLS."""

    def open_one(run: int, session: str) -> Channel:
        headers = proof.headers() | ({} if trust is None else trust.headers())
        url = f"{'ws' if trust is None else 'wss'}://{server}{NODE_PATH}"
        return open_channel(url, f"{run}-{session}", headers, None if trust is None else trust.context)

    return open_one
