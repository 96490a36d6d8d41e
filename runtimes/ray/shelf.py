"""Shelf: a folder that all machines of a cluster see, with what clients keep at home between rounds.

Hosts write and read it themselves. The driver, and the store, have notes: a client's round and the digest of what it
kept then. So what travels of a client's memory is a few bytes, and a run is as exact as one whose memory is in the
store: a round that is done again writes the same content under the same name, and a committed note finds what it means.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...core.errors import ConfigError, StoreError
from ...core.recipe import Recipe, is_memory_kept
from ...core.runtime import MEMORY
from ...core.serial import dumps, loads
from ...core.spec import ModelSpec
from ...core.system.files import write_atomically

SENTINEL = "umbel"  # a file that tells a host that its folder is the driver's


class Shelf:
    """A folder of one run, with a file for each version of a client's memory."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def set_up(self, is_new: bool) -> None:
        """Make the folder of a new run; find that of one that goes on. Errors: ConfigError."""
        sentinel = self.folder / SENTINEL
        if not is_new:
            if not sentinel.exists():
                raise ConfigError(
                    f"what clients of this run keep is in a folder {self.folder.name}, and {self.folder.parent} has "
                    "none of that name; give memory= the folder that the run began with, or put it back"
                )
            return
        try:
            self.folder.mkdir(parents=True, mode=0o700)
            write_atomically(sentinel, self.folder.name.encode())
        except OSError as error:
            raise ConfigError(f"cannot keep what clients remember in {self.folder}: {error.strerror}") from error

    def take_down(self) -> None:
        """Delete the folder, in which nobody keeps anything."""
        (self.folder / SENTINEL).unlink()
        self.folder.rmdir()

    def check_shared(self, node: str) -> None:
        """Raise ConfigError unless this machine sees the folder that the driver has set up."""
        try:
            found = (self.folder / SENTINEL).read_bytes()
        except OSError:
            found = b""
        if found != self.folder.name.encode():
            raise ConfigError(
                f"node {node} does not see {self.folder}; memory= has to be on a file system that all nodes share, "
                'under the same name: or use memory="driver"'
            )

    def read(self, client: int, note: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the arrays that a note is of. Errors: StoreError where it is not there, or is not what was written."""
        path = self._path(client, note)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"client {client}'s memory of round {round_of(note)} is not in {path}: {error.strerror}; put it back, "
                "or start a new run"
            ) from error
        if hashlib.sha256(content).digest() != note[1].tobytes():
            raise StoreError(f"{path} is not what client {client} wrote; put the file back, or start a new run")
        return loads(content)

    def write(self, client: int, round: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Keep a client's arrays after `round`; return the note of them. Errors: StoreError when the disk refuses."""
        content = dumps([np.asarray(array) for array in arrays])
        note: list[np.ndarray] = [
            np.array([round], np.int64),
            np.frombuffer(hashlib.sha256(content).digest(), np.uint8),
        ]
        path = self._path(client, note)
        try:
            if not path.exists():  # a name says its content
                path.parent.mkdir(exist_ok=True, mode=0o700)
                write_atomically(path, content)
        except OSError as error:
            raise StoreError(f"cannot keep client {client}'s memory in {path}: {error.strerror}") from error
        return note

    def forget_before(self, client: int, note: Sequence[np.ndarray]) -> None:
        """Delete what the client kept before a committed note. Later versions may be those of a host at work."""
        for path in self._path(client, note).parent.glob(f"{client}.*.*"):
            if int(path.name.split(".")[1]) < round_of(note):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def _path(self, client: int, note: Sequence[np.ndarray]) -> Path:
        """Return the file that a note is of; a thousand clients to a folder."""
        folder = self.folder / f"{client // 1000}"
        return folder / f"{client}.{round_of(note)}.{note[1].tobytes().hex()[:32]}"


def round_of(note: Sequence[np.ndarray]) -> int:
    """Return the round after which a client kept what a note is of."""
    return int(note[0][0])


def shelf_for(folder: Path | None, choices: Mapping[str, str] | None) -> Shelf | None:
    """Return the shelf that a run's clients are to keep their memory on, that of a run that goes on; None: no folder.

    choices: of the run that is resumed, if one is. Errors: ConfigError where it is not there, or cannot be made.
    """
    if folder is None:
        return None
    before = (choices or {}).get(MEMORY)
    shelf = Shelf(folder / (before or secrets.token_hex(16)))
    shelf.set_up(is_new=before is None)
    return shelf


def shelf_needed(
    shelf: Shelf | None, recipe: Recipe, spec: ModelSpec, choices: Mapping[str, str] | None
) -> Shelf | None:
    """Return the shelf; None, and no folder, where no client needs one.

    Errors: ConfigError for a run that goes on, and whose clients' memory is in the store.
    """
    if shelf is None or MEMORY in (choices or {}):
        return shelf
    is_kept = is_memory_kept(recipe, spec)
    if is_kept and choices is None:
        return shelf
    shelf.take_down()
    if is_kept:
        raise ConfigError(
            'what the clients of this run keep is in the store; resume it with memory="driver", or start a new run'
        )
    return None


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return the folder as all nodes are to name it."""
    return Path(path).expanduser().absolute()
