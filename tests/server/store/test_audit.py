"""The audit log: an entry for every control action, in one transaction with it, in a chain that cannot be rewritten."""

import hashlib
import json

import pytest

from umbel.core.errors import ConfigError, StoreError
from umbel.server.store import Store, audit

CHANGES = {
    "another actor": (
        "UPDATE audit SET entry = replace(entry, 'ada', 'eve') WHERE position = 2",
        "entry 2 was changed",
    ),
    "a removed entry": ("DELETE FROM audit WHERE position = 2", "entry 2 is missing"),
    "the first removed": ("DELETE FROM audit WHERE position = 1", "entry 1 is missing"),
    "another hash": (
        "UPDATE audit SET hash = (SELECT hash FROM audit WHERE position = 1) WHERE position = 2",
        "entry 2 was changed",
    ),
    "entries swapped": ("UPDATE audit SET position = -position", "entry 1 is missing"),
}


@pytest.fixture
def actions(store):
    """Three entries."""
    for number in range(3):
        store.audit.append("ada", "policy.refused", f"client {number}")


def test_every_control_action_leaves_an_entry(store, scenario, monkeypatch):
    monkeypatch.setenv("UMBEL_ACTOR", "ada\n")
    run = scenario.begin(store)
    scenario.commit(store, run, 1)
    store.finish(run, "stopped", "because")
    store.reopen(run)
    store.models.register(run, scenario.state(1).params, scenario.SPEC, {})
    store.models.set_alias("scenario", "production", 1)
    store.models.remove_alias("scenario", "production")
    store.finish(run, "finished")
    store.delete_run(run)
    entries = store.audit.entries()
    assert [entry.action for entry in entries] == [
        "run.started",
        "run.stopped",
        "run.resumed",
        "alias.moved",
        "alias.removed",
        "run.finished",
        "run.deleted",
    ]
    assert [entry.position for entry in entries] == list(range(1, 8))
    assert {entry.actor for entry in entries} == {"ada"}
    assert all(run in entry.subject for entry in entries if entry.action.startswith("run."))
    assert entries[3].subject == "production of scenario to version 1"
    assert store.audit.entries(last=2) == entries[-2:]
    assert store.audit.verify() == 7
    assert store.check() == []


def test_what_was_refused_leaves_none(store, scenario):
    run = scenario.begin(store)
    for refused in (
        lambda: store.finish("nobody", "finished"),
        lambda: store.reopen("nobody"),
        lambda: store.delete_run("nobody"),
        lambda: store.models.set_alias("scenario", "production", 1),
    ):
        with pytest.raises(StoreError):
            refused()
    assert [entry.action for entry in store.audit.entries()] == ["run.started"]
    assert run in store.audit.entries()[0].subject


def test_a_replaced_key_is_on_record(tmp_path, scenario, key_file):
    from umbel.privacy.keys import KeyFile
    from umbel.privacy.keys.vault import StorageVault

    url, other = f"sqlite:///{tmp_path}/sealed.db", tmp_path / "other.key"
    KeyFile.generate("storage", 30).save(other)
    with Store.open(url, key=key_file) as store:
        scenario.begin(store)
    Store.rotate(url, StorageVault.load(str(key_file)), StorageVault.load(str(other)))
    Store.rotate(url, StorageVault.load(str(key_file)), StorageVault.load(str(other)))  # done already
    with Store.open(url, key=other) as store:
        assert [entry.action for entry in store.audit.entries()] == ["run.started", "key.rotated"]


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_log_is_found(url, store, actions, sql, how):
    statement, message = CHANGES[how]
    sql(url, statement)
    for look in (store.audit.verify, store.audit.entries):
        with pytest.raises(StoreError, match=message):
            look()
    assert [line for line in store.check() if message in line]


def test_what_the_chain_cannot_show_a_noted_head_does(url, store, actions, sql):
    noted = store.audit.head()
    store.audit.append("ada", "deploy.up", "everything")
    assert store.audit.verify(noted) == 4
    last = json.loads(sql(url, "SELECT entry FROM audit WHERE position = 3")[0][0])
    sql(url, "DELETE FROM audit WHERE position >= 3")
    assert store.audit.verify() == 2  # cut off, it is a shorter chain
    with pytest.raises(StoreError, match="ends at entry 2, and 3 was noted"):
        store.audit.verify(noted)
    text = json.dumps(last | {"actor": "eve"}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    sql(url, "INSERT INTO audit VALUES (3, :entry, :hash)", entry=text, hash=digest)
    assert store.audit.verify() == 3  # written anew, it is a chain
    with pytest.raises(StoreError, match="entry 3 is not the one that was noted"):
        store.audit.verify(noted)


@pytest.mark.parametrize("change", ["UPDATE audit SET hash = hash", "DELETE FROM audit"])
def test_the_database_itself_refuses_to_change_it(store, actions, change):
    with pytest.raises(StoreError, match="append-only"), store._database.write() as connection:
        connection.exec_driver_sql(change)
    assert store.audit.verify() == 3


@pytest.mark.parametrize(
    ("actor", "action", "subject"),
    [
        ("ada", "run.invented", "r1"),
        ("ada", "deploy.up", "a\nb"),
        ("", "deploy.up", "a"),
        ("ada", "deploy.up", ""),
        ("\x1b[2J", "deploy.up", "a"),
        ("ada", "deploy.up", "x" * 501),
    ],
)
def test_an_entry_that_is_none_is_refused(store, actor, action, subject):
    with pytest.raises(ConfigError, match="expected"):
        store.audit.append(actor, action, subject)
    assert store.audit.head() == (0, audit.FIRST)


def test_two_stores_that_append_at_once_make_one_chain(url, store):
    from concurrent.futures import ThreadPoolExecutor

    with Store.open(url) as other, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: (store, other)[n % 2].audit.append(f"actor {n}", "deploy.up", "all"), range(20)))
    assert store.audit.verify() == 20
    assert {entry.actor for entry in store.audit.entries()} == {f"actor {n}" for n in range(20)}


def test_a_long_log_is_read_page_by_page(store, monkeypatch):
    monkeypatch.setattr(audit, "PAGE", 3)
    for number in range(7):
        store.audit.append("ada", "deploy.up", str(number))
    assert [entry.subject for entry in store.audit.entries()] == list("0123456")
