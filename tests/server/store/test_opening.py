"""Opening: what is no store of ours, or cannot be written, is refused in one line with the remedy and left as it is."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from umbel.core.errors import StoreError
from umbel.server.store import Store, upgrade
from umbel.server.store.schema import HEAD, VERSION_TABLE, metadata


def refusal(url, **options):
    """The one line that opening url gives."""
    with pytest.raises(StoreError) as caught:
        Store.open(url, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_migrations_from_nothing_make_the_declared_schema(empty_url):
    with Store.open(empty_url) as store, store._database.read() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_head_is_the_last_migration_and_revisions_sort():
    script = ScriptDirectory(str(upgrade.MIGRATIONS))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions[0] == HEAD == script.get_current_head()
    assert revisions == sorted(revisions, reverse=True)


def test_processes_that_open_one_new_store_at_once_all_succeed(empty_url):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store.open, [empty_url] * 4))
    assert all(store.runs() == [] for store in stores)
    for store in stores:
        store.close()


def test_a_newer_schema_is_refused(url, sql):
    Store.open(url).close()
    sql(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    message = refusal(url)
    assert "schema 9999" in message
    assert "upgrade Umbel" in message
    assert sql(url, f"SELECT version_num FROM {VERSION_TABLE}") == [("9999",)]


def test_another_programs_database_is_left_alone(empty_url, sql):
    sql(empty_url, "CREATE TABLE node (id INTEGER)")
    assert "holds another program's tables (node)" in refusal(empty_url)
    assert sql(empty_url, "SELECT count(*) FROM node") == [(0,)]


def test_without_create_an_empty_database_is_refused(empty_url, tmp_path):
    message = refusal(empty_url, create=False)
    assert "does not exist" in message or "is empty" in message
    assert list(tmp_path.iterdir()) == []
    Store.open(empty_url).close()
    Store.open(empty_url, create=False).close()


def test_without_create_an_empty_file_is_refused(tmp_path):
    (tmp_path / "runs.db").touch()
    assert "is empty" in refusal(f"sqlite:///{tmp_path}/runs.db", create=False)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("runs.db", "is not a database URL; expected sqlite:///runs.db, for a file of that name, or postgresql://"),
        ("mysql://me:hunter2@host/db", "is of a kind Umbel does not know"),
        ("postgresql://me:hunter2@host:port/db", "is not a database URL"),
        ("sqlite://", "would be lost"),
        ("sqlite:///:memory:", "would be lost"),
        ("sqlite://runs.db", "three slashes"),
        ("sqlite:////no/such/folder/runs.db", "the folder /no/such/folder does not exist"),
        ("sqlite:////", "is a folder"),
        ("postgresql://me:hunter2@127.0.0.1:1/runs", "cannot be reached"),
        ("postgresql+psycopg://me@127.0.0.1:1/runs?password=hunter2", "cannot be reached"),
        ("postgres://me:hunter2@127.0.0.1:1/runs", "cannot be reached"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url, message):
    if "127.0.0.1" in url:
        pytest.importorskip("psycopg")
    text = refusal(url)
    assert message in text
    assert "hunter2" not in text


def test_a_database_that_is_not_there_names_the_remedy(postgresql):
    assert "does not exist; make it first: createdb nobodys" in refusal(postgresql.format("nobodys"))


def test_a_missing_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'umbel[postgres]'" in refusal("postgresql://me:hunter2@127.0.0.1/runs")


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path):
    path = tmp_path / "runs.db"
    path.write_text("round,loss\n1,0.5\n" * 1000)
    before = path.read_bytes()
    assert f"{path} is not a SQLite database" in refusal(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9999])
def test_a_truncated_database_is_refused(tmp_path, scenario, share):
    path = tmp_path / "runs.db"
    with Store.open(f"sqlite:///{path}") as store:
        scenario.begin(store)
    os.truncate(path, int(path.stat().st_size * share))
    assert "is damaged or cut short; put a backup of it in its place" in refusal(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_written_is_refused():
    program = (
        "import os, sys\nfrom umbel.server.store import Store\nfrom umbel.core.errors import StoreError\n"
        "os.geteuid() or os.setuid(65534)\n"  # root may write anywhere
        "for url in sys.argv[1:]:\n"
        "    try: Store.open(url)\n"
        "    except StoreError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # tmp_path's parents are closed to other users
        with Store.open(f"sqlite:///{folder}/runs.db"):
            pass
        os.chmod(f"{folder}/runs.db", 0o444)
        os.chmod(folder, 0o555)
        urls = [f"sqlite:///{folder}/{name}.db" for name in ("new", "runs")]
        done = subprocess.run([sys.executable, "-c", program, *urls], capture_output=True, text=True, check=True)
        os.chmod(folder, 0o755)
    new, old = done.stdout.splitlines()
    assert f"{folder}/new.db cannot be opened; its folder must exist and be writable" in new
    assert f"{folder}/runs.db cannot be" in old


def test_a_full_disk_leaves_the_round_before_and_says_so(tmp_path, scenario):
    url = f"sqlite:///{tmp_path}/runs.db"
    with Store.open(url) as store:
        run = scenario.begin(store)
        scenario.commit(store, run, 1)
        bounds = [f"PRAGMA max_page_count = {pages}" for pages in (1, 2**30)]

        @event.listens_for(store._database.engine, "checkout")
        def bound(connection, *_):
            connection.execute(bounds[0])  # SQLite raises it to the file's present size: it cannot grow

        def fill():
            for round in range(2, 9):
                scenario.commit(store, run, round, keep=9)

        with pytest.raises(StoreError, match=rf"{tmp_path}/runs\.db cannot grow, [\d,]+ bytes are free") as caught:
            fill()
        assert "database or disk is full" in str(caught.value)
        done = store.load_run(run).server_state.round
        assert scenario.bits(store.checkpoint(run, like=scenario.state(0))) == scenario.bits(scenario.state(done))
        assert store.check() == []
        bounds.reverse()
        scenario.commit(store, run, done + 1)  # there is room again
        assert scenario.bits(store.checkpoint(run, like=scenario.state(0))) == scenario.bits(scenario.state(done + 1))


def test_a_locked_store_says_who_is_in_the_way(url, scenario, monkeypatch):
    monkeypatch.setattr("umbel.server.store.database.BUSY_SECONDS", 0.1)
    with Store.open(url) as store, Store.open(url) as other:
        run = scenario.begin(store)
        with other._database.write():
            with pytest.raises(StoreError, match="was kept locked by another process"):
                scenario.commit(store, run, 1)
            assert store.load_run(run).server_state.round == 0  # readers do not wait
        scenario.commit(store, run, 1)


def test_a_tampered_checkpoint_is_refused(url, scenario, sql):
    with Store.open(url) as store:
        run = scenario.begin(store)
        large = sql(url, "SELECT digest, bytes FROM blob_parts ORDER BY length(bytes) DESC")[0]
        flipped = bytes([large.bytes[0] ^ 1]) + bytes(large.bytes[1:])
        sql(url, "UPDATE blob_parts SET bytes = :b WHERE digest = :d", b=flipped, d=large.digest)
        with pytest.raises(StoreError, match=f"blob {large.digest[:12]}… does not verify"):
            store.load_run(run)
        sql(url, "DELETE FROM blob_parts WHERE digest = :d", d=large.digest)
        with pytest.raises(StoreError, match="the store holds nothing"):
            store.checkpoint(run)
        assert any(large.digest[:12] in problem for problem in store.check())


BREAKAGES = {
    "DELETE FROM rounds WHERE round = 1": "1 records for 2 rounds",
    "DELETE FROM checkpoints WHERE round = 2": "no checkpoint of its last round, 2",
    "DELETE FROM memory": "blobs that nothing refers to",
    "DELETE FROM blobs": "is missing",
}


@pytest.mark.parametrize("statement", BREAKAGES)
def test_check_finds_what_is_missing(url, scenario, sql, statement):
    with Store.open(url) as store:
        run = scenario.begin(store)
        for round in (1, 2):
            scenario.commit(store, run, round)
        assert store.check() == []
        sql(url, statement)
        assert any(BREAKAGES[statement] in problem for problem in store.check())


def test_importing_the_server_does_not_import_sqlalchemy():
    program = "import sys, umbel.server; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_up_to_date_store_opens_without_alembic(tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    Store.open(url).close()
    program = (
        "import sys; from umbel.server.store import Store; Store.open(sys.argv[1]); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, url]).returncode == 0


def test_another_programs_file_is_left_as_it_was(tmp_path):
    path = tmp_path / "photos.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (id)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's tables"):
        Store.open(f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["photos.db"]
