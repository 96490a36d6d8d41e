"""The server's record of its clients and runs: what was done to whom is noted, and what is over is settled."""

from __future__ import annotations

from collections.abc import Sequence

from ..privacy.keys.identities import Identity
from ..runtimes.flower.identity import name_of
from .kits import ServerKit


class Record:
    """The store of a server's kit, opened for each call: a server lives for months."""

    def __init__(self, kit: ServerKit):
        self._kit = kit

    def note(self, changes: Sequence[tuple[str, str]]) -> None:
        """Put (action, about whom) into the audit log."""
        from ..server.store import Store
        from ..server.store.audit import whoever

        with Store.open(self._kit.store) as store:
            for action, subject in changes:
                store.audit.append(whoever(), action, subject)

    def settle(self) -> list[str]:
        """Pause the runs whose process has ended without a word; say which, a line each."""
        from ..server.store import Store

        with Store.open(self._kit.store) as store:
            return [f"run {run} is paused: its process ended without a word; --resume {run}" for run in store.settle()]

    def erase(self) -> list[str]:
        """Delete what runs of this federation keep of clients that are not in its roster; say of whom, a line each."""
        from ..server.store import Store

        identity = Identity.load(self._kit.folder)
        with Store.open(self._kit.store) as store:
            erased = store.erase(name_of(identity), identity.members.keys())
        return [f"client {client} has left: its memory of {count} runs is erased" for client, count in erased.items()]
