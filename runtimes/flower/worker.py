"""A client's warm process: it imports TensorFlow once, traces once, and works on one message after another.

    python -m umbel.runtimes.flower.worker PARENT ADDRESS --home FOLDER [--secret-file FILE]

It takes the place of `flower-superexec` and its process per message beside a SuperNode that runs with
`--isolation process`. ADDRESS: of the SuperNode's Runtime API, on loopback. It outlives the SuperNode, and waits for
the next; it ends with the process PARENT.
"""

from __future__ import annotations

import argparse
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message

from . import client
from .identity import identity_of_this_process, sealer_of_this_process
from .memory import Disk
from .private import end_with_parent
from .private_tasks import Task, Tasks
from .signing import SignedApp

log = logging.getLogger(__name__)

SHORTEST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.01, 1.0  # time between two looks for a task: just after one, idle
POLL_SHARE = 0.05  # that time as a share of how long there was none: a task waits no longer, and an idle client rests
LONGEST_AWAY_SECONDS = 2.0  # longest time between two tries to reach a SuperNode that is not there
RAISED = 2  # Flower's code: the client's code raised
App = Callable[[Message, Context], Message]


def serve(tasks: Tasks, app: App = client.app, stop: threading.Event | None = None) -> None:
    """Work on tasks, one at a time, until stop is set. Neither a task nor an absent SuperNode makes it raise.

    Whoever asks for a task has ended the one before: a SuperNode takes back what came to nothing.
    """
    stop = stop or threading.Event()
    away, idle_since = SHORTEST_POLL_SECONDS, time.monotonic()
    while not stop.is_set():
        try:
            task = tasks.acquire()
            away = SHORTEST_POLL_SECONDS
        except Exception as error:
            if away == SHORTEST_POLL_SECONDS:
                log.warning("the SuperNode at %s has no task to give: %s", tasks.address, error)
            away = min(2 * away, LONGEST_AWAY_SECONDS)
            stop.wait(away)
            continue
        if task is None:
            pause = POLL_SHARE * (time.monotonic() - idle_since)
            stop.wait(min(max(pause, SHORTEST_POLL_SECONDS), LONGEST_POLL_SECONDS))
            continue
        _work(task, app)
        idle_since = time.monotonic()


def _work(task: Task, app: App) -> None:
    """Pull, call, push; what goes wrong is the task's, not this process's."""
    began = time.perf_counter()
    try:
        with task:
            message, context = task.pull()
            pulled, kind = time.perf_counter(), message.metadata.message_type
            log.info("%s: begun", kind)
            try:
                reply = app(message, context)
            except Exception as error:
                log.exception("the client's code failed")
                reason = f"{type(error).__name__}: {error}"
                task.push(Message(Error(RAISED, reason), reply_to=message), reason)
                return
            worked = time.perf_counter()
            del message
            task.push(reply)
            pushed = time.perf_counter()
            log.info("%s: in %.3f, work %.3f, out %.3f s", kind, pulled - began, worked - pulled, pushed - worked)
    except Exception as error:  # whatever Flower's client raises for a SuperNode that is gone, or a run that is over
        log.warning("a task came to nothing: %s: %s", type(error).__name__, error)


def warmed(app: App) -> App:
    """Return the same app, for which TensorFlow is imported from now on, and which waits for that.

    A message must not import it meanwhile: of two threads that import modules of one circle, one finds a module that is
    only half there.
    """

    def import_tensorflow() -> None:
        from ...clients.tensorflow import engine  # noqa: F401

    imports = threading.Thread(target=import_tensorflow, name="umbel-imports", daemon=True)
    imports.start()

    def waiting(message: Message, context: Context) -> Message:
        imports.join()
        return app(message, context)

    return waiting


def main() -> None:
    """Run a client's warm process, with the arguments that the module describes."""
    parser = argparse.ArgumentParser(prog="umbel-worker", description="A client's warm process.")
    parser.add_argument("parent", type=int, help="process id; when that process ends, so does this one")
    parser.add_argument("address", help="of the SuperNode's Runtime API, such as 127.0.0.1:9094")
    parser.add_argument("--home", type=Path, required=True, help="folder for what the client keeps between rounds")
    parser.add_argument("--secret-file", type=Path, help="of the SuperNode's --superexec-auth-secret-file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request
    end_with_parent(options.parent)
    options.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity, sealer = identity_of_this_process(), sealer_of_this_process()
    client.keep_in(Disk(options.home, *((sealer.seal, sealer.unseal) if sealer is not None else ())))
    app = client.app if identity is None else SignedApp(client.app, identity)
    secret = None if options.secret_file is None else options.secret_file.read_bytes()
    tasks = Tasks(options.address, secret)
    try:
        serve(tasks, warmed(app))
    except KeyboardInterrupt:  # the parent has ended
        pass
    finally:
        tasks.close()


if __name__ == "__main__":
    main()
