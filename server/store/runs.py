"""Runs and their rounds, between rows and values."""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, and_, case, select, update

from ...core.errors import ConfigError, StoreError
from ...core.spec import ModelSpec
from ...core.types import RoundRecord, ServerState, Value, json_float, scalars
from . import leases
from .database import insert
from .schema import ledger, now, rounds, runs

if TYPE_CHECKING:
    from ...core.experiment import Experiment

RUNNING, PAUSED = "running", "paused"
ENDED = ("finished", "stopped", "failed", "paused")
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: in ASCII order, without i, l, o, u


@dataclass(frozen=True)
class StoredRun:
    """A run as it was last committed: all that continuing it needs."""

    run: str
    name: str  # name of the experiment
    state: str  # "running", "finished", "stopped", "failed", "paused"
    reason: str | None
    description: Mapping[str, str]
    choices: Mapping[str, str]
    rounds: int  # number of rounds planned
    seed: int
    spec: ModelSpec
    records: list[RoundRecord]
    server_state: ServerState  # state of the last checkpoint
    ledger: Mapping[str, int]  # ledger as written before releases: it may be ahead of server_state.ledger, never behind
    created: str
    updated: str
    is_of_preview: bool  # begun by version 0.1.0

    def check_goes_on(self, experiment: Experiment) -> None:
        """Check that an experiment is the one that this run began with, so that a round of it means the same.

        Raises
        ------
        ConfigError
            If version 0.1.0 began the run, or the experiment differs in a setting, which is named.
        """
        if self.is_of_preview:
            raise ConfigError(
                f"run {self.run} is of Umbel 0.1.0, a preview: what it measured and its models can be read, but none "
                "of its rounds can be played; run the experiment again, without --resume"
            )
        experiment.check_unchanged(self.description)


class RunSummary(NamedTuple):
    """One line of the list of runs."""

    run: str
    experiment: str
    state: str
    rounds_done: int
    rounds_planned: int
    created: str
    metrics: Mapping[str, float]  # metrics of the last round, one number at a time


def new_id(connection: Connection) -> str:
    """Make a run id that nobody has, such as 20261121-k3f9a2: the day, the time of day to 0.1 s, and chance.

    Ids sort by time.
    """
    while True:
        moment = datetime.now(UTC)
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        ticks = int((moment - midnight).total_seconds() / 86400 * 32**4) * 32**2 + secrets.randbelow(32**2)
        letters = "".join(ALPHABET[ticks >> shift & 31] for shift in range(25, -1, -5))
        run = f"{moment:%Y%m%d}-{letters}"
        if connection.scalar(select(runs.c.run).where(runs.c.run == run)) is None:
            return run


def resolve(connection: Connection, run: str) -> str:
    """Return the id behind an id, a unique prefix of one, or "latest". Errors: StoreError with the nearest ids."""
    newest = select(runs.c.run).order_by(runs.c.created.desc(), runs.c.run.desc())
    if run == "latest":
        found = connection.scalars(newest.limit(1)).all()
    elif exact := connection.scalars(newest.where(runs.c.run == run)).all():
        found = exact
    else:
        found = connection.scalars(newest.where(runs.c.run.startswith(run, autoescape=True)).limit(4)).all()
    if len(found) == 1:
        return str(found[0])
    if found:
        raise StoreError(f"run {run!r} is the beginning of several ids: {', '.join(found)}; add a letter")
    raise unknown(connection, run)


def chosen(connection: Connection, name: str, value: str) -> list[str]:
    """List the runs that made a choice."""
    found = connection.execute(select(runs.c.run, runs.c.choices))
    return [run for run, choices in found if json.loads(choices).get(name) == value]


def unknown(connection: Connection, run: str) -> StoreError:
    """Return the error for a run that is not there."""
    ids = connection.scalars(select(runs.c.run).order_by(runs.c.created.desc()).limit(1000)).all()
    if not ids:
        return StoreError(f"no run {run!r}: the store holds no runs yet")
    nearest = difflib.get_close_matches(run, ids, 3, 0.5) or ids[:3]
    return StoreError(f"no run {run!r}; the nearest: {', '.join(nearest)}")


def advance(connection: Connection, run: str, round: int, row: Mapping[str, Any]) -> None:
    """Count the round as done and add its record. Errors: StoreError unless it is the one after the last."""
    following = and_(runs.c.run == run, runs.c.done == round - 1)
    values = {"done": round, "state": RUNNING, "reason": None, "updated": now()}
    if connection.execute(update(runs).where(following).values(**values)).rowcount != 1:
        done = connection.scalar(select(runs.c.done).where(runs.c.run == run))
        if done is None:
            raise unknown(connection, run)
        raise StoreError(
            f"run {run}: round {round} cannot be committed after round {done}; another process seems to continue "
            "the same run: end one of them"
        )
    connection.execute(rounds.insert(), {"run": run, **row})


def change(connection: Connection, run: str, **values: Any) -> None:
    """Set columns of a run. Errors: StoreError for an unknown one."""
    if connection.execute(update(runs).where(runs.c.run == run).values(updated=now(), **values)).rowcount != 1:
        raise unknown(connection, run)


def spend(connection: Connection, run: str, events: Mapping[str, int]) -> None:
    """Raise the ledger's counts to events'. No count ever goes down: what was released stays released."""
    if not events:
        return
    statement = insert(connection, ledger)
    new, old = statement.excluded["count"], ledger.c["count"]
    larger = case((new > old, new), else_=old)
    statement = statement.on_conflict_do_update(index_elements=["run", "event"], set_={"count": larger})
    rows = [{"run": run, "event": event, "count": int(count)} for event, count in sorted(events.items())]
    connection.execute(statement, rows)


def spent(connection: Connection, run: str) -> dict[str, int]:
    """Return the ledger of a run."""
    query = select(ledger.c["event"], ledger.c["count"]).where(ledger.c.run == run).order_by(ledger.c.event)
    return {event: int(count) for event, count in connection.execute(query)}


def summaries(connection: Connection) -> list[RunSummary]:
    """List every run, newest first."""
    last = and_(rounds.c.run == runs.c.run, rounds.c.round == runs.c.done)
    ended = leases.orphans(connection)  # nobody has noted it yet
    query = select(runs, rounds.c.metrics).outerjoin(rounds, last).order_by(runs.c.created.desc(), runs.c.run.desc())
    return [
        RunSummary(
            r.run,
            r.name,
            PAUSED if r.state == RUNNING and r.run in ended else r.state,
            r.done,
            r.planned,
            r.created,
            scalars(from_json_floats(r.metrics or "{}")),
        )
        for r in connection.execute(query)
    ]


COUNTS = ("round", "clients", "failures", "bytes_up", "bytes_down", "trainable_bytes")


def record_row(record: RoundRecord) -> dict[str, Any]:
    """Turn a record into the columns of `rounds`."""
    flat: dict[str, Any] = record._asdict() | {"metrics": to_json_floats(record.metrics), "committed": now()}
    del flat["directions"]  # the same for all rounds: the run has them
    flat["landings"] = json.dumps(record.landings) if record.landings else None
    integers = {name: flat[name] for name in COUNTS}
    doubles = {name: flat[name] for name in ("seconds", "eval_seconds", "epsilon")}
    flat |= {name: None if value is None else int(value) for name, value in integers.items()}
    return flat | {name: None if value is None else float(value) for name, value in doubles.items()}


def records(connection: Connection, run: str, after: int = 0) -> list[RoundRecord]:
    """List the record of every round after one, first to last."""
    columns = [rounds.c[name] for name in RoundRecord._fields if name != "directions"]
    wanted = (rounds.c.run == run, rounds.c.round > after)
    rows = connection.execute(select(*columns).where(*wanted).order_by(rounds.c.round))
    directions = json.loads(connection.scalar(select(runs.c.directions).where(runs.c.run == run)) or "{}")
    more = {"directions": directions}
    return [
        RoundRecord.of(
            row._asdict()
            | {"metrics": from_json_floats(row.metrics), "landings": json.loads(row.landings or "[]")}
            | more
        )
        for row in rows
    ]


def to_json_floats(values: Mapping[str, Value]) -> str:
    """Write numbers, vectors and matrices by name as strict JSON.

    `from_json_floats` gives back the same bits (of NaNs, one).
    """
    return json.dumps({name: json_float(value) for name, value in values.items()}, allow_nan=False)


def from_json_floats(text: str) -> dict[str, Any]:
    """Read what `to_json_floats` wrote."""

    def value(part: Any) -> Value:
        return tuple(map(value, part)) if isinstance(part, list) else float(part)

    return {name: value(part) for name, part in json.loads(text).items()}


def check_rounds(planned: int, done: int = 0) -> int:
    """Return the planned number of rounds, if it is at least 1 and at least what is done. Errors: ConfigError."""
    if planned < max(1, done):
        raise ConfigError(f"expected rounds={planned} ≥ {max(1, done)}" + (", the rounds already done" if done else ""))
    return int(planned)
