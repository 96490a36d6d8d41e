"""Store of runs, their rounds and checkpoints, clients' memory, models and an audit log: one database."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from sqlalchemy import Connection, delete, false, select, update

from ...core import serial
from ...core.errors import ConfigError
from ...core.reading.directions import Directions
from ...core.spec import ModelSpec
from ...core.system.printable import printable
from ...core.types import RoundRecord, ServerState
from ..vault import Signer, Vault, signer_of, vault_of
from . import audit, blobs, checking, checkpoints, leases, runs, sealing
from . import memory as memories
from .address import parse
from .audit import AuditLog
from .database import Database
from .heads import name_of, with_heads
from .leases import Lease
from .memory import StoredMemory
from .models import ModelRegistry
from .notes import ledgers_of
from .runs import RunSummary, StoredRun
from .schema import now
from .schema import runs as runs_table
from .sealing import Coding
from .upgrade import prepare
from .views import RunViews

Like = ServerState | Callable[[ModelSpec], ServerState] | None


class Store:
    """A store that was opened: `with Store.open("sqlite:///runs.db") as store: ...`.

    Every method is one transaction: a process killed inside it leaves the store as it was before. Safe for threads
    and for several processes. Methods that read take a run's id, a unique prefix of it, or "latest"; methods that
    write take the id. Errors: StoreError for an unknown run and for whatever the database reports, such as a full disk.
    """

    def __init__(self, database: Database, coding: Coding, signer: Signer | None):
        self._database, self._coding, self._signer = database, coding, signer
        self.models = ModelRegistry(database, coding, signer)
        self._ledgers = ledgers_of(signer, name_of(database))
        self.audit = AuditLog(database)
        self.views = RunViews(database)
        self._leases: dict[str, Lease] = {}  # of the runs that this store's owner plays

    @staticmethod
    def open(
        url: str,
        *,
        create: bool = True,
        key: str | Path | Vault | None = None,
        signer: str | Path | Signer | None = None,
    ) -> Store:
        """Open the store at a URL: sqlite:///FILE.db or postgresql://USER@HOST/DATABASE.

        key: a storage key, as a file or a vault; UMBEL_STORE_KEY names the file where none is given. A new store that
        is opened with one is encrypted: checkpoints, clients' memory and models, not the records of runs. signer: an
        operator's key, in the same way (UMBEL_MODEL_KEY): new model versions are signed, and all are verified.

        A store of an older schema is migrated; a SQLite file is first copied beside itself (FILE.db.SCHEMA.backup).
        Errors: StoreError, one line with the URL (without passwords) and the remedy, for a URL, server, file or schema
        that cannot be used, for a store that does not exist where create is False, and for an encrypted store without
        its key, or another with one; ConfigError for a key file that is refused.
        """
        vault, signing = vault_of(key), signer_of(signer)
        database = Database(parse(url))
        try:
            prepare(database, create)
            coding = sealing.unlock(database, vault, create)
        except BaseException:
            database.close()
            raise
        return Store(database, coding, with_heads(signing, database))

    @staticmethod
    def rotate(url: str, old: Vault, new: Vault) -> int:
        """Put an encrypted store under another key; return the number of objects whose keys were wrapped anew.

        One transaction; a store that is under the new key already is left as it is. Whoever has it open is refused when
        it writes next. Errors: StoreError for a store that is not encrypted, or under a third key.
        """
        database = Database(parse(url))
        try:
            prepare(database, create=False)
            return sealing.rotate(database, old, new)
        finally:
            database.close()

    @property
    def address(self) -> str:
        """Address of this store as it may be shown: without a password."""
        return str(self._database.address)

    def close(self) -> None:
        """Close the connections; what was committed is on disk already."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store.open({self.address!r})"

    def create_run(
        self,
        name: str,
        description: Mapping[str, str],
        rounds: int,
        seed: int,
        choices: Mapping[str, str],
        spec: ModelSpec,
        initial: ServerState,
        directions: Directions | None = None,
    ) -> str:
        """Add a running run of the experiment `name` with the checkpoint of round 0; return its id.

        directions: those of the model's metrics; every record of the run that is read has them.
        """
        if initial.round != 0:
            raise ConfigError(f"expected initial.round={initial.round} to be 0: no round is finished yet")
        moment, state = now(), blobs.gather(self._coding, serial.parts(tuple(initial)))
        row = {
            "name": name,
            "state": runs.RUNNING,
            "reason": None,
            "description": json.dumps(dict(description)),
            "choices": json.dumps(dict(choices)),
            "seed": str(int(seed)),
            "spec": spec.to_json(),
            "planned": runs.check_rounds(rounds),
            "done": 0,
            "created": moment,
            "updated": moment,
            "directions": json.dumps(dict(directions or {})),
        }
        with self._database.write() as connection:
            run = runs.new_id(connection)
            connection.execute(runs_table.insert(), {"run": run, **row})
            checkpoints.save(connection, self._coding, run, 0, state, best=False)
            runs.spend(connection, run, initial.ledger)
            audit.record(connection, "run.started", printable(f"{run} of {name}", audit.LONGEST))
        return run

    def hold(self, run: str) -> str:
        """Let nobody else play a run, until `release` or the end of this process; return the run's id.

        Errors: StoreError, which names the process that plays it already.
        """
        with self._database.read() as connection:
            run = runs.resolve(connection, run)
        lease = Lease(self._database, run)
        lease.take()
        self._leases[run] = lease
        return run

    def settle(self) -> list[str]:
        """Pause the runs whose process has ended without a word; return them.

        What they had committed is kept, and what they had put on the ledger stays there.
        """
        with self._database.read() as connection:
            if not leases.orphans(connection):
                return []
        settled = []
        with self._database.write() as connection:
            for run in sorted(leases.orphans(connection)):
                leases.drop(connection, run)
                found = connection.execute(select(runs_table).where(runs_table.c.run == run)).one()
                if found.state == runs.RUNNING:
                    reason = f"its process ended without a word in round {found.done + 1}"
                    runs.change(connection, run, state="paused", reason=reason)
                    audit.record(connection, "run.paused", run)
                    settled.append(run)
        return settled

    def check_free(self, run: str) -> None:
        """Raise StoreError for a run that another process plays, as far as that can be told from here at once."""
        with self._database.read() as connection:
            leases.check_free(connection, runs.resolve(connection, run))

    def release(self, run: str) -> None:
        """Let others play a run that was held."""
        if (lease := self._leases.pop(run, None)) is not None:
            lease.close()

    def _check_lease(self, connection: Connection, run: str) -> None:
        if (lease := self._leases.get(run)) is not None:
            lease.check(connection)

    def commit_round(
        self,
        run: str,
        state: ServerState,
        record: RoundRecord,
        memory: Mapping[int, list[np.ndarray]],
        keep: int = 2,
        best: bool = False,
        description: Mapping[str, str] | None = None,
    ) -> None:
        """Commit a finished round: its checkpoint, record, ledger, and the clients' memory, all or nothing.

        memory: the arrays of the clients whose memory changed. keep: how many of the last checkpoints stay; the one
        committed with best stays too, until another is. description: the experiment's, where the round changed it.
        Errors: StoreError unless the round follows the last one committed, as when two processes continue one run, and
        where a lease was lost to another process; ConfigError for keep < 1.
        """
        if keep < 1 or record.round != state.round:
            raise ConfigError(f"expected keep={keep} ≥ 1 and record.round={record.round} = state.round={state.round}")
        # Hashed and packed before the transaction, which keeps other writers waiting.
        pieces = blobs.gather(self._coding, serial.parts(tuple(state)))
        packed = memories.pack(self._coding, memory)
        row = runs.record_row(record)
        with self._database.write() as connection:
            self._check_lease(connection, run)
            runs.advance(connection, run, state.round, row)
            runs.spend(connection, run, state.ledger)
            if description is not None:
                runs.change(connection, run, description=json.dumps(dict(description)))
            checkpoints.save(connection, self._coding, run, state.round, pieces, best)
            unused = checkpoints.prune(connection, run, state.round, keep)
            unused += memories.save(connection, self._coding, run, packed)
            blobs.collect(connection, unused)

    def write_ledger(self, run: str, ledger: Mapping[str, int]) -> None:
        """Put privacy events on record, {event: count so far}, before what they paid for is released.

        Counts never go down: a smaller one than is on record leaves it. Where a key signs, they are noted beside it.
        """
        self._ledgers.note(run, ledger)
        with self._database.write() as connection:
            self._check_lease(connection, run)
            runs.change(connection, run)
            runs.spend(connection, run, ledger)

    def load_run(self, run: str, like: Like = None) -> StoredRun:
        """Load a run with all its records and its last checkpoint.

        like: a state whose named tuples the loaded one takes, or a function from the run's spec to one.
        """
        with self._database.read() as connection:
            run = runs.resolve(connection, run)
            row = connection.execute(select(runs_table).where(runs_table.c.run == run)).one()
            spec = ModelSpec.from_json(row.spec)
            last = checkpoints.find(connection, run, "last")
            return StoredRun(
                run,
                row.name,
                row.state,
                row.reason,
                json.loads(row.description),
                json.loads(row.choices),
                row.planned,
                int(row.seed),
                spec,
                runs.records(connection, run),
                checkpoints.load(connection, self._coding, run, last, like(spec) if callable(like) else like),
                self._ledgers.raised(run, runs.spent(connection, run)),
                row.created,
                row.updated,
                row.directions is None,
            )

    def checkpoint(self, run: str, round: int | str = "last", like: ServerState | None = None) -> ServerState:
        """Load the state after a round: "last", "best" or a number.

        Errors: StoreError naming the rounds that are kept.
        """
        with self._database.read() as connection:
            run = runs.resolve(connection, run)
            return checkpoints.load(connection, self._coding, run, checkpoints.find(connection, run, round), like)

    def memory(self, run: str) -> StoredMemory:
        """Return the clients' memory of a run, read from the database client by client."""
        with self._database.read() as connection:
            return StoredMemory(self._database, self._coding, runs.resolve(connection, run))

    def finish(self, run: str, state: str, reason: str | None = None) -> None:
        """End a run: "finished", "stopped", "failed" or "paused", and why. Errors: ConfigError for another word."""
        if state not in runs.ENDED:
            raise ConfigError(f"expected state={state!r} to be one of {', '.join(runs.ENDED)}")
        with self._database.write() as connection:
            self._check_lease(connection, run)
            runs.change(connection, run, state=state, reason=reason)
            audit.record(connection, f"run.{state}", run)

    def reopen(self, run: str) -> None:
        """Mark a run that is continued as running again. Committing a round does so too."""
        with self._database.write() as connection:
            runs.change(connection, run, state=runs.RUNNING, reason=None)
            audit.record(connection, "run.resumed", run)

    def set_rounds(self, run: str, rounds: int) -> None:
        """Plan another number of rounds. Errors: ConfigError for fewer than are done."""
        with self._database.write() as connection:
            done = connection.scalar(select(runs_table.c.done).where(runs_table.c.run == run))
            runs.change(connection, run, planned=runs.check_rounds(rounds, done or 0))

    def runs(self) -> list[RunSummary]:
        """List every run, newest first."""
        with self._database.read() as connection:
            return runs.summaries(connection)

    def has(self, run: str) -> bool:
        """Return whether there is a run of this very id."""
        with self._database.read() as connection:
            return connection.scalar(select(runs_table.c.run).where(runs_table.c.run == run)) is not None

    def find(self, run: str) -> RunSummary:
        """Find one run, by its id, the beginning of one, or "latest"."""
        with self._database.read() as connection:
            run = runs.resolve(connection, run)
            return next(one for one in runs.summaries(connection) if one.run == run)

    def erase(self, federation: str, members: Collection[int]) -> dict[int, int]:
        """Delete what a federation's runs keep of clients that are no members any more, and put that on record.

        federation: its name among the choices of its runs. Returns {client: number of runs that kept something of it}.
        """
        with self._database.write() as connection:
            played = runs.chosen(connection, "federation", federation)
            erased, unused = memories.erase(connection, played, members)
            blobs.collect(connection, unused)
            for client, count in erased.items():
                audit.record(connection, "client.erased", f"client {client}: its memory of {count} runs")
        return erased

    def delete_run(self, run: str) -> None:
        """Delete a run with its records, checkpoints, memory and ledger. Model versions made from it stay.

        Errors: StoreError for a run that another process plays.
        """
        with self._database.write() as connection:
            if run not in self._leases:
                leases.check_free(connection, run)
            if connection.execute(delete(runs_table).where(runs_table.c.run == run)).rowcount != 1:
                raise runs.unknown(connection, run)
            blobs.collect(connection)
            audit.record(connection, "run.deleted", run)

    def check_writable(self) -> None:
        """Write to the database, and change nothing. Errors: StoreError where nothing can be committed."""
        with self._database.write() as connection:
            if self._database.address.path is not None:
                # Without a dirty page SQLite commits without touching the disk; this one is its header's.
                version = connection.exec_driver_sql("PRAGMA user_version").scalar()
                connection.exec_driver_sql(f"PRAGMA user_version = {version}")
            else:
                connection.execute(update(runs_table).where(false()).values(updated=runs_table.c.updated))

    def check(self) -> list[str]:
        """List what is wrong with the store, one line each; empty when sound. Reads everything, so it takes a while."""
        return checking.problems(self._database, self._coding, self._signer)
