"""A worker that died is missed as soon as the next one asks for a task. Not public in Flower; see `compat`.

Flower's SuperNode takes a task for worked on until no sign of life has come for long. For one that died before it was
handed its message it makes no reply even then, and for one that died while it handed in its own it waits for the rest
for ever. Here a node has one worker, which works on one task at a time: whoever asks for a task works on none, and what
had been begun has come to nothing. The server is told so at once, and asks the client once more.
"""

from __future__ import annotations

import logging
import os
import signal
from datetime import UTC, datetime
from typing import Any

from .compat import Status, iterate_object_tree, node_handlers

log = logging.getLogger(__name__)

LONG_AGO = datetime.fromtimestamp(0, UTC)


def miss_workers() -> None:
    """Let the SuperNode of this process take back, from now on, what was begun when its worker asks for a task."""
    runtime: Any = node_handlers()
    acquire = runtime.acquire_task

    def acquire_task(request: Any, state: Any) -> Any:
        if not take_back(state):
            log.warning("the worker died while it handed in its reply: this SuperNode is started again")
            os.kill(os.getpid(), signal.SIGTERM)
        return acquire(request, state)

    runtime.acquire_task = acquire_task


def take_back(state: Any) -> bool:
    """End every task that was taken. False where a reply was left half handed in, which its SuperNode waits for.

    A task that was taken and not begun is there to be taken again; for one that was begun there is an error in reply.
    """
    with state.lock_task_store, state.lock_msg_store:
        tasks = [state.task_store[number] for number in state.task_token_store if number in state.task_store]
        begun = {task.run_id for task in tasks if task.status.status == Status.RUNNING}
        is_whole = True
        for entry in state.msg_store.values():
            about = entry.message.metadata
            if about.run_id in begun and about.reply_to_message_id:
                is_whole &= _is_whole(state.object_store, about.message_id)
            elif about.run_id in begun:
                entry.is_retrieved = True  # otherwise Flower would make no reply to it
        for record in state.task_token_store.values():
            record.active_until = LONG_AGO
        state._cleanup_expired_task_tokens_locked()
    if begun:
        log.warning("the worker died at work, or gave up; what it had begun is reported")
    return is_whole


def _is_whole(store: Any, message: str) -> bool:
    return all(store.get(part.object_id) != b"" for part in iterate_object_tree(store.get_object_tree(message)))
