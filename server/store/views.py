"""Views of runs for somebody who looks on: no checkpoints, no clients' memory, and many runs in one query."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, and_, case, func, select

from ...core.types import RoundRecord, Value
from . import runs
from .database import Database
from .schema import rounds
from .schema import runs as runs_table

BATCH = 500  # runs in one IN (…)


class RunOverview(NamedTuple):
    """A run as a list shows it."""

    run: str
    experiment: str
    state: str
    reason: str | None
    rounds_done: int
    rounds_planned: int
    seed: int
    created: str
    updated: str
    epsilon: float | None  # ε spent after the last round
    metrics: Mapping[str, Value]  # measured in the last round


class RunTotals(NamedTuple):
    """Sums over the rounds of a run."""

    seconds: float  # time of rounds and evaluations, summed
    bytes: int | None  # number sent in both directions; None where no round measured them
    failures: int  # clients that were left out, summed over rounds
    metrics: Mapping[str, Value]  # metrics of the last round that was evaluated; empty where none was


class RunDetails(NamedTuple):
    """A run with what it was made of."""

    overview: RunOverview
    totals: RunTotals | None  # None before its first round
    description: Mapping[str, str]
    choices: Mapping[str, str]


class RunViews:
    """Views of the runs of a store: `store.views`."""

    def __init__(self, database: Database):
        self._database = database

    def marks(self) -> dict[str, str]:
        """Return when each run last changed, by run. Cheap: for whoever asks again and again."""
        with self._database.read() as connection:
            rows = connection.execute(select(runs_table.c.run, runs_table.c.updated))
            return {row.run: row.updated for row in rows}

    def mark(self, run: str) -> str | None:
        """Return when one run last changed; None where it is gone."""
        with self._database.read() as connection:
            return connection.scalar(select(runs_table.c.updated).where(runs_table.c.run == run))

    def overviews(self, only: Collection[str] | None = None) -> list[RunOverview]:
        """List every run, or only some, newest first."""
        with self._database.read() as connection:
            if only is None:
                return _overviews(connection, None)
            names = sorted(only, reverse=True)
            batches = (names[start : start + BATCH] for start in range(0, len(names), BATCH))
            return [overview for batch in batches for overview in _overviews(connection, batch)]

    def totals(self, only: Collection[str]) -> dict[str, RunTotals]:
        """Sum up the rounds of some runs, by run. Reads every round of them: a second for 200,000."""
        names = sorted(only)
        with self._database.read() as connection:
            batches = (names[start : start + BATCH] for start in range(0, len(names), BATCH))
            return {run: totals for batch in batches for run, totals in _totals(connection, batch)}

    def details(self, run: str) -> RunDetails:
        """Return one run, by its id, the beginning of one, or "latest". Errors: StoreError for an unknown one."""
        with self._database.read() as connection:
            run = runs.resolve(connection, run)
            row = connection.execute(select(runs_table).where(runs_table.c.run == run)).one()
            (overview,) = _overviews(connection, [run])
            totals = dict(_totals(connection, [run])).get(run)
            return RunDetails(overview, totals, json.loads(row.description), json.loads(row.choices))

    def descriptions(self, experiment: str | None = None) -> list[tuple[str, str, Mapping[str, str]]]:
        """List (run, experiment, its settings) of every run, or of one experiment's, newest first."""
        query = select(runs_table.c.run, runs_table.c.name, runs_table.c.description)
        query = query.order_by(runs_table.c.created.desc(), runs_table.c.run.desc())
        if experiment is not None:
            query = query.where(runs_table.c.name == experiment)
        with self._database.read() as connection:
            return [(row.run, row.name, json.loads(row.description)) for row in connection.execute(query)]

    def rounds(self, run: str, after: int = 0) -> list[RoundRecord]:
        """List the records of the rounds after one, first to last."""
        with self._database.read() as connection:
            return runs.records(connection, run, after)


def _overviews(connection: Connection, only: Sequence[str] | None) -> list[RunOverview]:
    """List overviews of some runs, newest first; None for all."""
    last = and_(rounds.c.run == runs_table.c.run, rounds.c.round == runs_table.c.done)
    query = select(runs_table, rounds.c.epsilon, rounds.c.metrics).outerjoin(rounds, last)
    query = query.order_by(runs_table.c.created.desc(), runs_table.c.run.desc())
    if only is not None:
        query = query.where(runs_table.c.run.in_(only))
    return [
        RunOverview(
            row.run,
            row.name,
            row.state,
            row.reason,
            row.done,
            row.planned,
            int(row.seed),
            row.created,
            row.updated,
            row.epsilon,
            runs.from_json_floats(row.metrics or "{}"),
        )
        for row in connection.execute(query)
    ]


def _totals(connection: Connection, only: Sequence[str]) -> Iterator[tuple[str, RunTotals]]:
    """Yield the totals of those of some runs that have rounds."""
    evaluated = rounds.c.eval_seconds.is_not(None)
    query = select(
        rounds.c.run,
        func.sum(rounds.c.seconds + func.coalesce(rounds.c.eval_seconds, 0.0)).label("seconds"),
        func.sum(rounds.c.bytes_up).label("up"),
        func.sum(rounds.c.bytes_down).label("down"),
        func.sum(rounds.c.failures).label("failures"),
        func.max(case((evaluated, rounds.c.round))).label("round"),
    )
    sums = query.where(rounds.c.run.in_(only)).group_by(rounds.c.run).subquery()
    same = and_(rounds.c.run == sums.c.run, rounds.c.round == sums.c.round)
    for row in connection.execute(select(sums, rounds.c.metrics).outerjoin(rounds, same)):
        sent = [int(count) for count in (row.up, row.down) if count is not None]
        metrics = runs.from_json_floats(row.metrics or "{}")
        yield row.run, RunTotals(float(row.seconds), sum(sent) if sent else None, int(row.failures), metrics)
