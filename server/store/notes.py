"""Notes beside the operator's key, signed: what whoever writes to the database cannot take back.

Heads of models' chains (`heads`) are noted so, and what runs have spent: the ledger of a run has rows that anybody with
access to the database can lower, or lose by putting an older copy in place. What is noted of a run counts where it is
more than the database says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import StoreError
from ...core.system.files import write_atomically
from ..vault import Signer

log = logging.getLogger(__name__)

LABEL = b"umbel ledgers 1"
SUFFIX = ".ledgers"  # suffix that takes the place of the key's own
RUNS = 4096  # most runs of a store whose spending is noted; beyond, the oldest is forgotten


class SignedNotes:
    """File of JSON objects, one for each store, signed by a key. what: the thing that it notes, in words."""

    def __init__(self, signer: Signer, path: Path, label: bytes, what: str):
        self._signer, self.path, self._label, self._what = signer, path, label, what

    def read(self) -> dict[str, Any]:
        """Read {store: what is noted of it}. Errors: StoreError for a file that no trusted key signed."""
        try:
            found = json.loads(self.path.read_text("utf-8"))
            body = found["heads"]
            if not self._signer.verifies(found["key"], bytes.fromhex(found["signature"]), self._label + body.encode()):
                raise ValueError("no trusted key signed it")
            noted: dict[str, Any] = json.loads(body)
            return noted
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.path} notes {self._what}, and cannot be trusted ({error}); put a backup in its place"
            ) from error

    def write(self, everything: Mapping[str, Any]) -> None:
        """Replace the file by this, signed. Where it cannot be written, the log says so."""
        body = json.dumps(everything, sort_keys=True)
        signature = self._signer.sign(self._label + body.encode()).hex()
        try:
            write_atomically(
                self.path, json.dumps({"key": self._signer.key_id, "signature": signature, "heads": body}).encode()
            )
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): a store that is rolled back will not show", self.path, error.strerror
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process change the file, inside the block."""
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(self.path.with_name(f"{self.path.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # a kit that is mounted read-only: `write` says what that means
                pass
            yield


class NotedLedgers:
    """Least amounts that a store's runs have spent. notes: None where there is no key to sign with."""

    def __init__(self, notes: SignedNotes | None, store: str):
        self._notes, self._store = notes, store

    def note(self, run: str, events: Mapping[str, int]) -> None:
        """Note {event: count}, before it is released; no count goes down."""
        if self._notes is None or not events:
            return
        with self._notes.alone():
            everything = self._notes.read()
            runs = everything.setdefault(self._store, {})
            raised = larger(runs.pop(run, (0, {}))[1], events)
            newest = 1 + max((place for place, _ in runs.values()), default=0)
            for oldest in sorted(runs, key=lambda name: int(runs[name][0]))[: max(0, len(runs) + 1 - RUNS)]:
                del runs[oldest]
            runs[run] = newest, raised
            self._notes.write(everything)

    def raised(self, run: str, events: Mapping[str, int]) -> dict[str, int]:
        """Return the events, each as often as was noted where the database says fewer. Errors: StoreError."""
        noted = {} if self._notes is None else self._notes.read().get(self._store, {}).get(run, (0, {}))[1]
        found = larger(events, noted)
        if found != dict(events):
            log.warning("run %s: its ledger in the database is behind what was noted beside the key, which counts", run)
        return found


def larger(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Return the larger count of each event."""
    return {event: max(int(one.get(event, 0)), int(other.get(event, 0))) for event in sorted({*one, *other})}


def ledgers_of(signer: Signer | None, store: str) -> NotedLedgers:
    """Return the ledgers noted beside the file of the key that signs a store's models."""
    if signer is None or signer.heads is None:
        return NotedLedgers(None, store)
    path = signer.heads.with_suffix(SUFFIX)
    return NotedLedgers(SignedNotes(signer, path, LABEL, "what runs of a store have spent"), store)
