"""The same contract on SQLite and on a real PostgreSQL server, started here from the system's package."""

import itertools
import os
import pwd
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from umbel.privacy.keys import KeyFile
from umbel.server.store import Store

HERE = Path(__file__).parent
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def scenario():
    """`scenario.py`, which is a script as well."""
    return SimpleNamespace(**runpy.run_path(str(HERE / "scenario.py")), path=str(HERE / "scenario.py"))


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a running server, with {} for the database; it holds an up-to-date store named `template`."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *filter(None, [shutil.which("initdb")])]
    if not found:
        pytest.skip("no PostgreSQL server on this machine: apt-get install postgresql")
    binaries = max(Path(path).parent for path in found)
    folder = Path(tempfile.mkdtemp(prefix="umbel-pg-", dir="/tmp"))  # a socket's path has at most 107 bytes
    user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        account = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def call(program, *arguments):
        done = subprocess.run(
            [binaries / program, "-D", folder / "data", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **user,
        )
        assert done.returncode == 0, done.stderr

    try:
        call("initdb", "-A", "trust", "-U", "umbel", "-E", "UTF8", "--no-sync", "--locale=C")
        settings = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        call("pg_ctl", "start", "-w", "-l", folder / "log", "-o", settings)
        try:
            url = f"postgresql://umbel@/{{}}?host={folder}"
            create_database(url, "template", "template1")
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("UMBEL_STORE_KEY", raising=False)  # of the first test to ask
                Store.open(url.format("template")).close()
            yield url
        finally:
            call("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def create_database(url, name, template):
    """CREATE DATABASE on the server at url."""
    address = sa.make_url(url.format("postgres")).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template}"))


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request):
    return request.param


@pytest.fixture
def empty_url(kind, request, tmp_path):
    """A database without tables."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/runs.db"
    server, name = request.getfixturevalue("postgresql"), f"empty{next(NUMBERS)}"
    create_database(server, name, "template1")
    return server.format(name)


@pytest.fixture
def url(kind, request, tmp_path):
    """An empty store."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/runs.db"
    server, name = request.getfixturevalue("postgresql"), f"store{next(NUMBERS)}"
    create_database(server, name, "template")
    return server.format(name)


@pytest.fixture
def store(url):
    with Store.open(url) as store:
        yield store


@pytest.fixture
def key_file(tmp_path_factory):
    """A storage key in its file."""
    path = tmp_path_factory.mktemp("keys") / "store.key"
    KeyFile.generate("storage", 30).save(path)
    return path


@pytest.fixture
def encrypted(key_file, monkeypatch):
    """Every store is encrypted, in other processes too."""
    monkeypatch.setenv("UMBEL_STORE_KEY", str(key_file))


@pytest.fixture(params=["clear", "encrypted"])
def at_rest(request):
    """The test twice: with stores in the clear, and with stores that are encrypted."""
    if request.param == "encrypted":
        request.getfixturevalue("encrypted")


@pytest.fixture
def sql():
    """Runs statements behind the store's back, constraints and triggers off: what a person at the console could do."""

    def execute(url, *statements, **values):
        address = sa.make_url(url)
        sqlite = address.drivername == "sqlite"
        address = address if sqlite else address.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(address, poolclass=sa.NullPool)
        with engine.begin() as connection:
            if sqlite:
                triggers = connection.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
                for trigger in triggers.all():
                    connection.execute(sa.text(f"DROP TRIGGER {trigger}"))
            else:
                connection.execute(sa.text("SET session_replication_role = replica"))
            rows = [connection.execute(sa.text(statement), values) for statement in statements]
            return rows[-1].all() if rows[-1].returns_rows else rows[-1].rowcount

    return execute
