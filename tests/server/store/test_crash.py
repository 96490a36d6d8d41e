"""Processes killed with SIGKILL in the middle of a transaction: the round before is intact, and the next can follow."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from umbel.server.store import Store, upgrade
from umbel.server.store.address import parse
from umbel.server.store.database import Database
from umbel.server.store.schema import HEAD, VERSION_TABLE


def start(scenario, *arguments):
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, scenario.path, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def attempts(process):
    """What became of each attempt; the process waits while the caller looks."""
    for line in process.stdout:
        yield line.strip()
        if line.startswith("exit"):
            break
        process.stdin.write("\n")
        process.stdin.flush()


def assert_is_after_round(url, scenario, run, round):
    with Store.open(url, create=False) as store:
        loaded = store.load_run(run, like=scenario.state(0))
        assert scenario.bits(loaded.server_state) == scenario.bits(scenario.state(round))
        assert scenario.bits(loaded.records) == scenario.bits([scenario.record(r) for r in range(1, round + 1)])
        assert loaded.ledger == {"gaussian": round}
        memory = store.memory(run)
        for client in range(round + 6):
            last = scenario.remembered(round, client)
            expected = None if last is None else scenario.memory(last)[client]
            assert scenario.bits(memory.read(client)) == scenario.bits(expected)
        assert store.check() == []


@pytest.mark.usefixtures("encrypted")  # each statement of a commit in the clear is one of these
def test_killed_before_any_statement_of_a_commit_the_round_before_is_intact(url, scenario):
    with Store.open(url) as store:
        run = scenario.begin(store)
        for round in range(1, 4):
            scenario.commit(store, run, round)
    kills = 0
    with start(scenario, "points", url, run) as process:
        for outcome in attempts(process):
            if outcome == "killed":
                kills += 1
                assert_is_after_round(url, scenario, run, 3)
        assert outcome == "exit 0"
    assert kills >= 10  # each statement of the transaction, and its COMMIT
    assert_is_after_round(url, scenario, run, 4)


def settled(url, run):
    """The last committed round, once it stays so: a server may yet carry out the COMMIT of a client that is gone."""
    seen = [-1]
    while seen[-3:] != [seen[-1]] * 3:
        with Store.open(url) as store:
            seen.append(store.load_run(run).server_state.round)
        time.sleep(0.05)
    return seen[-1]


def test_killed_at_any_moment_some_last_round_is_intact(url, scenario):
    with Store.open(url) as store:
        run = scenario.begin(store)
    moments = random.Random(0)
    with start(scenario, "on", url, run) as process:
        for _ in range(5):
            child = int(process.stdout.readline())
            told = int(process.stdout.readline())
            time.sleep(moments.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline().strip()) != "killed":
                told = int(line)
            done = settled(url, run)
            assert told <= done <= told + 1  # what was said to be committed is
            assert_is_after_round(url, scenario, run, done)
            process.stdin.write("\n")
            process.stdin.flush()
        os.kill(int(process.stdout.readline()), signal.SIGKILL)
        process.stdin.close()


# The tables that each revision added, in the order in which they can be dropped.
ADDED = {
    "0007": ("leases",),
    "0006": ("model_bases",),
    "0004": ("audit",),
    "0003": ("model_signatures", "blob_keys", "store_key"),
    "0002": ("model_labels", "alias_moves", "model_versions"),
}


@pytest.fixture(params=["0001", "0002", "0003"])
def revision(request):
    return request.param


@pytest.fixture
def old_store(tmp_path, scenario, sql, revision):
    """A SQLite store of an older schema with a run in it, as the releases before left them."""
    url = f"sqlite:///{tmp_path}/old.db"
    with Store.open(url) as store:
        run = scenario.begin(store)
        scenario.commit(store, run, 1)
    drop = [f"DROP TABLE {table}" for added, tables in ADDED.items() if added > revision for table in tables]
    drop.append("ALTER TABLE runs DROP COLUMN directions")  # revision 0005's
    drop.append("ALTER TABLE rounds DROP COLUMN trainable_bytes")  # revision 0006's
    drop.append("ALTER TABLE rounds DROP COLUMN landings")  # revision 0008's
    sql(url, *drop, *triggers_of(revision), f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'")
    return url, run


def triggers_of(revision):
    """What `sql` drops for its own statements, and the revision has."""
    return [
        f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in ("model_versions", "alias_moves") * (revision >= "0002")
        + ("model_signatures",) * (revision >= "0003")
        for change in ("UPDATE", "DELETE")
    ]


def test_the_old_store_is_what_its_migration_makes(old_store, tmp_path, revision):
    database = Database(parse(f"sqlite:///{tmp_path}/first.db"))
    with database.write() as connection:
        upgrade.migrate(connection, revision)
        query = "SELECT name, sql FROM sqlite_master ORDER BY name"
        first = connection.exec_driver_sql(query).all()
    old = Database(parse(old_store[0]))
    with old.read() as connection:
        assert connection.exec_driver_sql(query).all() == first
    database.close()
    old.close()


def test_an_older_store_is_copied_then_migrated(old_store, scenario, tmp_path, revision):
    url, run = old_store
    assert_is_after_round(url, scenario, run, 1)
    with Store.open(url) as store:
        store.models.register(run, scenario.state(1).params, scenario.SPEC, {})
    backups = [path.name for path in tmp_path.iterdir() if "backup" in path.name]
    assert backups == [f"old.db.{revision}.backup"]
    # The copy is a store of the old schema in its own right, and migrates to the same.
    shutil.move(tmp_path / backups[0], tmp_path / "copy.db")
    assert_is_after_round(f"sqlite:///{tmp_path}/copy.db", scenario, run, 1)
    assert Path(tmp_path / f"copy.db.{revision}.backup").exists()


def test_killed_while_migrating_the_old_schema_is_intact(old_store, scenario, tmp_path, revision):
    url, run = old_store
    kills = 0
    with start(scenario, "upgrade", url, run) as process:
        for outcome in attempts(process):
            if outcome == "killed":
                database = Database(parse(url))
                with database.read() as connection:
                    tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").all()
                    version = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
                database.close()
                assert version in (revision, HEAD)  # the last statements come after the migration
                assert (("audit",) in tables) == (version == HEAD)
                kills += version == revision
        assert outcome == "exit 0"
    assert kills >= 10
    assert_is_after_round(url, scenario, run, 1)
    assert not list(tmp_path.glob("*.partial"))
