"""Server-sent events: what the store holds now that it did not a moment ago.

The store is asked again and again, since whoever plays a run may be any process on any machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from ...core.errors import StoreError
from ..store import Store
from . import runs

PERIOD_SECONDS = 1.0
STEPS = 5  # parts of a period, after each of which it is asked whether the page is about to end
ALIVE_SECONDS = 15.0  # silence after which a browser is sent a line: one that left is noticed by it

Poll = Callable[[], Mapping[str, Any] | None]


def stream(poll: Poll, is_ending: Callable[[], bool]) -> StreamingResponse:
    """Send what poll returns as events, whenever it returns something, until the page ends."""
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_events(poll, is_ending), media_type="text/event-stream", headers=headers)


async def _events(poll: Poll, is_ending: Callable[[], bool]) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    silent = 0.0
    while not is_ending():
        try:
            news = await run_in_threadpool(poll)
        except StoreError as error:
            yield _event("trouble", {"message": str(error)})
            return
        silent = 0.0 if news else silent + PERIOD_SECONDS
        if news:
            yield _event("news", news)
        elif silent >= ALIVE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        for _ in range(STEPS):
            if not is_ending():
                await asyncio.sleep(PERIOD_SECONDS / STEPS)


def _event(name: str, content: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content, allow_nan=False)}\n\n"


class ChangedRuns:
    """Polls for the runs that are new, have changed, or are gone since the last time; at first, since a mark."""

    def __init__(self, store: Store, mark: str):
        self._store, self._mark = store, mark
        self._seen: Mapping[str, str] | None = None

    def __call__(self) -> Mapping[str, Any] | None:
        """Return the runs with their totals, and the ids of those that are gone; None where nothing changed."""
        marks = self._store.views.marks()
        before = self._seen
        if before is None:
            before = {run: mark for run, mark in marks.items() if mark <= self._mark}
        self._seen = marks
        changed = [run for run, mark in marks.items() if before.get(run) != mark]
        gone = [run for run in before if run not in marks]
        if not changed and not gone:
            return None
        return {"runs": runs.some(self._store, changed), "gone": gone}


class NewRounds:
    """Polls for the rounds of a run after the last one seen, and for what became of the run."""

    def __init__(self, store: Store, run: str, after: int):
        self._store, self._run, self._after = store, run, after
        self._mark: str | None = None

    def __call__(self) -> Mapping[str, Any] | None:
        """Return the run as it is now, and its new rounds; None where nothing changed."""
        mark = self._store.views.mark(self._run)
        if mark == self._mark or mark is None:
            return None
        self._mark = mark
        records = self._store.views.rounds(self._run, self._after)
        self._after = records[-1].round if records else self._after
        (run,) = runs.some(self._store, [self._run])
        return {"run": run, "rounds": runs.columns(records)}
