"""The command of a client's process; see the package.

It says goodbye on SIGTERM and Ctrl-C, and when the process PARENT has ended. It ends with status 1, and says why, when
the server lets it in no longer.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

# httpx: what a call fails with whose TLS is refused.
import httpx

from ....core.errors import UmbelError
from .. import client
from ..identity import identity_of_this_process, sealer_of_this_process
from ..memory import Disk
from ..signing import SignedApp
from .contexts import Contexts
from .crossings import crossings
from .fleet import FleetApi, Leaving, connection
from .heart import Heart
from .inbox import Mailbox
from .outbox import Outbox
from .presence import Presence, hold
from .proof import Proof, load_key, make_key
from .service import App, Service, warmed
from .trust import Announced

log = logging.getLogger("umbel.node")

KEY = "key"  # file, below --state, of a key that nobody vouches for
PARENT_SECONDS = 0.5  # time between two looks whether the parent lives


class Process:
    """This process as a node, and what ends it. A failure is kept until `wait` raises it."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._stop = options, threading.Event()
        self._failure: Exception | None = None
        vouched = options.key is not None
        self._proof = Proof(load_key(options.key) if vouched else make_key(options.state / KEY))
        self._trust = trust = None if options.authority is None else Announced(options.authority)
        self._fleet = FleetApi(connection(options.server, trust), self._proof, trust, self._stop)
        self._presence = Presence(self._fleet, self._proof.public, hold(options.state), vouched)
        self._heart: Heart | None = None
        self._node: int | None = None

    def run(self) -> None:
        """Be a node until asked to end. Errors: UmbelError, httpx.TransportError where the server refuses."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        # A thread of its own works, since signals are heard by this one, and not while TensorFlow computes.
        threading.Thread(target=self._work, name="umbel-work", daemon=True).start()
        while not self._stop.wait(PARENT_SECONDS) and os.getppid() == self._options.parent:
            pass
        self._stop.set()
        if self._heart is not None and self._node is not None:
            self._heart.stop()
            self._presence.leave(self._node)
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            self._node = node = self._presence.come()
            log.info("node %d of the server at %s", node, self._options.server)
            self._heart = Heart(self._fleet, node, self._fail)
            place = {"partition-id": self._options.client, "num-partitions": self._options.clients}
            inbox, contexts = Mailbox(self._fleet, node, self._stop), Contexts(self._fleet, node, place)
            Service(node, inbox, Outbox(self._fleet, node), contexts, self._app(), self._stop).serve()
        except Leaving:
            self._stop.set()
        except Exception as error:
            self._fail(error)

    def _app(self) -> App:
        identity, sealer = identity_of_this_process(), sealer_of_this_process()
        client.divide_among(self._options.replicas)
        client.cross_by(crossings(self._options.server, self._proof, self._trust), identity)
        client.keep_in(Disk(self._options.home, *((sealer.seal, sealer.unseal) if sealer is not None else ())))
        return warmed(client.app if identity is None else SignedApp(client.app, identity))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._stop.set()


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="umbel-node", description="A client's process.")
    parser.add_argument("parent", type=int, help="process id; when that process ends, so does this one")
    parser.add_argument("server", help="address of the SuperLink, as host:port")
    parser.add_argument("--client", type=int, required=True, help="number of this client, from 0")
    parser.add_argument("--clients", type=int, required=True, help="number of clients")
    parser.add_argument("--home", type=Path, required=True, help="folder for what the client keeps between rounds")
    parser.add_argument("--state", type=Path, required=True, help="folder for what the node keeps while it is online")
    parser.add_argument("--replicas", type=int, default=1, help="devices among which batches are divided")
    parser.add_argument("--authority", type=Path, help="certificates of the authorities that are trusted, PEM")
    parser.add_argument("--key", type=Path, help="key of the node, OpenSSH's format; without it, it makes its own")
    return parser.parse_args(words)


def main() -> None:
    """Run a client's process, with the arguments that the package describes."""
    options = options_of()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request
    status = 0
    try:
        for folder in (options.home, options.state):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        Process(options).run()
    except (UmbelError, httpx.TransportError) as error:
        log.error("%s", error)
        status = 1
    except Exception:
        log.exception("the node ends")
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # TensorFlow's threads, and ours, need not be waited for


if __name__ == "__main__":
    main()
