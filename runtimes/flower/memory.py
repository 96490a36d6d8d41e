"""Memory of clients between rounds, at home on their own disk: personal variables, vectors of an algorithm.

A version is what a client had after training in a round. Which version counts is the server's to say, since only it
knows which updates were in a committed sum: a round that is redone, or that ended without this client, leaves a version
behind that nobody will ask for. So a run continues exactly, whoever was killed, at whatever instruction.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...core.errors import StoreError, UmbelError
from ...core.serial import dumps, loads
from ...core.system.files import write_atomically

KEPT_RUNS, MOST_RUNS = 8, 64
RECENT_SECONDS = 24 * 3600.0
RUN = re.compile("[0-9a-f]{32}")
HOME_VARIABLE = "UMBEL_CLIENT_HOME"
Seal = Callable[[bytes, bytes], "bytes | memoryview"]  # (content, context) → sealed, and back


def client_home() -> Path:
    """Return the folder that clients on this machine keep their memory in: $UMBEL_CLIENT_HOME, or ~/.umbel/clients."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".umbel" / "clients"


class Disk:
    """A folder of versions, one subfolder per run.

    It keeps those of the KEPT_RUNS runs that were last written to, and of all that were written to within a day,
    MOST_RUNS at most: they may be under way.

    seal, unseal: encrypt a version, and decrypt it; both are handed what it is a version of, so that one in another's
    place does not open. None: versions lie there as they are.
    """

    def __init__(self, folder: Path | str, seal: Seal | None = None, unseal: Seal | None = None):
        if (seal is None) != (unseal is None):
            raise StoreError("expected both seal and unseal, or neither")
        self.folder, self._seal, self._unseal = Path(folder), seal, unseal

    def __repr__(self) -> str:
        return f"Disk({str(self.folder)!r}, {'sealed' if self._seal else 'not sealed'})"

    def read(self, run: str, client: int, round: int) -> list[np.ndarray]:
        """Read the client's arrays after `round`. Errors: StoreError when they are not there, or do not read back."""
        path = self._path(run, client, round)
        try:
            content: bytes | memoryview = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(
                f"client {client} has no memory of round {round}, which it took part in; put its folder "
                f"{self.folder} back, or start a new run"
            ) from None
        if self._unseal is not None:
            try:
                content = self._unseal(bytes(content), _context(run, client, round))
            except UmbelError as error:
                raise StoreError(
                    f"client {client}'s memory of round {round} does not open ({error}); put the key back that it was "
                    "sealed with, storage.jwk of this client's kit, or start a new run"
                ) from error
        return loads(bytes(content))

    def write(self, run: str, client: int, round: int, arrays: Sequence[np.ndarray]) -> None:
        """Keep the client's arrays after `round`: a process that is killed leaves all of them there, or nothing.

        Errors: StoreError, with the path and the free bytes, when the disk refuses.
        """
        content: bytes | memoryview = dumps([np.asarray(array) for array in arrays])
        if self._seal is not None:
            content = self._seal(bytes(content), _context(run, client, round))
        path = self._path(run, client, round)
        try:
            is_new = not path.parent.exists()
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, content)
        except OSError as error:
            raise StoreError(
                f"cannot keep client {client}'s memory in {path}: {error.strerror}{_free(path)}"
            ) from error
        if is_new:
            self._prune()

    def keep_only(self, run: str, client: int, *rounds: int) -> None:
        """Delete every version but those of `rounds`: of others the server has said that they do not count."""
        kept = {self._path(run, client, round).name for round in rounds}
        for path in self._path(run, client, 0).parent.glob(f"{client}.*"):
            if path.name not in kept:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def rounds(self, run: str, client: int) -> list[int]:
        """List the rounds that there are versions of, ascending."""
        names = [path.name.partition(".")[2] for path in self._path(run, client, 0).parent.glob(f"{client}.*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def _prune(self) -> None:
        """Delete what other runs have left, all but the newest and those that may be under way."""
        runs = [entry for entry in self.folder.iterdir() if RUN.fullmatch(entry.name) and entry.is_dir()]
        by_age = sorted(runs, key=lambda folder: folder.stat().st_mtime_ns)  # a new version changes its folder
        recently = time.time() - RECENT_SECONDS
        old = [folder for folder in by_age[:-KEPT_RUNS] if folder.stat().st_mtime < recently]
        for folder in {*old, *by_age[:-MOST_RUNS]}:
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, run: str, client: int, round: int) -> Path:
        # The name of the run comes from the server: it must not lead elsewhere.
        if not RUN.fullmatch(run):
            raise StoreError(f"expected run={run[:64]!r} of 32 hexadecimal digits")
        return self.folder / run / f"{int(client)}.{int(round)}"


def _context(run: str, client: int, round: int) -> bytes:
    return f"umbel client memory {run} {client} {round}".encode()


def _free(path: Path) -> str:
    """Return the free bytes where path lies, in words; nothing where that cannot be found out."""
    try:
        found = os.statvfs(next(folder for folder in path.parents if folder.exists()))
    except (OSError, StopIteration):
        return ""
    return f" ({found.f_bavail * found.f_frsize:,} bytes free)"
