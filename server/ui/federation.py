"""A federation as the page shows it: who is connected, its last round, and how long its certificates last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from ..store import Store
from . import runs

FRESH_SECONDS = 3.0  # time for which an answer of the server serves every page that is open

Status = Callable[[], Mapping[str, Any]]


class FederationView:
    """A federation that says how it stands, asked no oftener than every few seconds, whatever pages are open.

    Parameters
    ----------
    status
        Returns what `deploy.federation.status` does; its errors are the page's.
    """

    def __init__(self, status: Status):
        self._status = status
        self._lock = threading.Lock()
        self._known: Mapping[str, Any] = {}
        self._asked = float("-inf")

    def __call__(self, store: Store) -> dict[str, Any]:
        """Return the federation, and the last run of its store with its last round, if there is one."""
        found = self._fresh()
        names = ("server", "authority", "runs")
        return {
            **{name: found[name] for name in names},
            "clients": [_client(one, found["certificates"]) for one in found["clients"]],
            "certificates": [one | {"file": PurePath(one["file"]).name} for one in found["certificates"]],
            "last": _last(store),
        }

    def _fresh(self) -> Mapping[str, Any]:
        """Ask the server, unless that was done a moment ago; who asks at the same time waits for the same answer."""
        with self._lock:
            if time.monotonic() - self._asked > FRESH_SECONDS:
                self._known = self._status()
                self._asked = time.monotonic()
            return self._known


def _client(client: Mapping[str, Any], certificates: Any) -> dict[str, Any]:
    """Return a client, and whether it trusts all that the operator does; None where it does not say."""
    authorities = {one["sha256"] for one in certificates if PurePath(one["file"]).name == "ca.crt"}
    trusts = None if client["trusts"] is None else authorities <= set(client["trusts"])
    return {"name": client["name"], "state": client["state"], "since": client["since"], "trusts": trusts}


def _last(store: Store) -> dict[str, Any] | None:
    """Return the run that was last heard of, and its last round as columns."""
    overviews = store.views.overviews()
    if not overviews:
        return None
    newest = max(overviews, key=lambda overview: overview.updated)
    records = store.views.rounds(newest.run, max(0, newest.rounds_done - 1))
    return {"run": runs.some(store, [newest.run])[0], "rounds": runs.columns(records)}
