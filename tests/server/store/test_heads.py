"""A database that was rolled back by who can write to it is told by what the operator noted elsewhere."""

import shutil

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from umbel.core.errors import StoreError
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import ServerState
from umbel.privacy.keys import KeyFile
from umbel.privacy.keys.vault import ModelSigner
from umbel.server.store import Store
from umbel.server.store.notes import ledgers_of

SPEC = ModelSpec((VariableSpec("dense/kernel", (2,), "float32", True, 0),))


@pytest.fixture
def place(tmp_path):
    """A store with three signed versions of "m", "production" moved from 2 to 3; and a copy before the last move."""
    KeyFile.generate("operator", 10).save(tmp_path / "op.jwk")
    with opened(tmp_path) as store:
        state = ServerState(0, np.zeros(2, np.float32), (), (), {})
        run = store.create_run("m", {}, 1, 0, {}, SPEC, state)
        for version in (1, 2, 3):
            store.models.register(run, np.full(2, version, np.float32), SPEC, {})
        store.models.set_alias("m", "production", 2)
        shutil.copy(tmp_path / "s.db", tmp_path / "before.db")
        shutil.copy(tmp_path / "op.jwk.heads", tmp_path / "before.heads")
        store.models.set_alias("m", "production", 3)
    return tmp_path


def opened(place):
    return Store.open(f"sqlite:///{place}/s.db", signer=ModelSigner.load(str(place / "op.jwk")))


def change(place, *statements):
    """What an insider does: the append-only triggers dropped, then this."""
    engine = create_engine(f"sqlite:///{place}/s.db")
    with engine.begin() as connection:
        for (name,) in connection.execute(text("SELECT name FROM sqlite_master WHERE type='trigger'")).fetchall():
            connection.execute(text(f'DROP TRIGGER "{name}"'))
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


MOVED = "INSERT INTO alias_moves (name, alias, version, moved) VALUES ('m', 'production', 1, 'x')"
CUT = [f"DELETE FROM {table} WHERE version = 3" for table in ("model_signatures", "model_versions")]
ROLLBACKS = {
    "an alias moved": [MOVED],
    "an alias's last move deleted": ["DELETE FROM alias_moves WHERE version = 3"],
    "all aliases deleted": ["DELETE FROM alias_moves"],
    "the chain cut": [*CUT, "DELETE FROM alias_moves WHERE version = 3"],
    "all of it gone": ["DELETE FROM alias_moves", "DELETE FROM model_signatures", "DELETE FROM model_versions"],
}


@pytest.mark.parametrize("how", ROLLBACKS)
def test_what_an_insider_rolls_back_is_refused_wherever_it_is_read(place, how):
    change(place, *ROLLBACKS[how])
    with opened(place) as store:
        for read in (
            lambda: store.models.get("m", "production"),
            lambda: store.models.get("m", "latest"),
            lambda: store.models.verify("m"),
            lambda: store.models.set_alias("m", "production", 1),
        ):
            with pytest.raises(StoreError, match=r"rolled back.*op\.jwk\.heads"):
                read()
        assert any("rolled back" in problem for problem in store.check())


def test_the_whole_database_put_back_is_refused(place):
    shutil.copy(place / "before.db", place / "s.db")
    with opened(place) as store, pytest.raises(StoreError, match="rolled back"):
        store.models.get("m")


def test_what_the_operator_does_is_no_rollback(place):
    with opened(place) as store:
        store.models.set_alias("m", "production", 1)
        assert store.models.get("m", "production")[0].version == 1
        store.models.remove_alias("m", "production")
        assert store.models.verify("m") == 3
        assert store.check() == []


@pytest.mark.parametrize("committed", [True, False])
def test_a_process_killed_between_note_and_commit_leaves_a_store_that_opens(place, committed, monkeypatch):
    from umbel.server.store.heads import Heads

    note = Heads._note

    def killed(self, states, keep):
        if not keep:
            raise KeyboardInterrupt
        note(self, states, keep)
        if not committed:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, opened(place) as store:
        patched.setattr(Heads, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            store.models.set_alias("m", "production", 1)
    with opened(place) as store:
        assert store.models.get("m", "production")[0].version == (1 if committed else 3)
        store.models.set_alias("m", "production", 2)
        assert store.models.get("m", "production")[0].version == 2


def test_a_note_that_no_trusted_key_signed_is_refused(place):
    path = place / "op.jwk.heads"
    path.write_text(path.read_text().replace('\\"production\\": 3', '\\"production\\": 1'))
    with opened(place) as store, pytest.raises(StoreError, match="no trusted key signed it"):
        store.models.get("m")


LOWERED = {
    "lowered": "UPDATE ledger SET count = 1",
    "another event": "UPDATE ledger SET event = 'gaussian 9 9' WHERE event = 'gaussian 1 1'",
    "deleted": "DELETE FROM ledger",
}


@pytest.mark.parametrize("how", [*LOWERED, "an older copy"])
def test_what_a_run_has_spent_is_not_taken_back_by_who_writes_to_the_database(tmp_path, how):
    KeyFile.generate("operator", 10).save(tmp_path / "op.jwk")
    state, events = ServerState(0, np.zeros(2, np.float32), (), (), {}), ("gaussian 1 1", "gaussian 2 1")
    with opened(tmp_path) as store:
        run = store.create_run("m", {}, 9, 0, {}, SPEC, state)
        store.write_ledger(run, {events[0]: 2})
    shutil.copy(tmp_path / "s.db", tmp_path / "before.db")
    with opened(tmp_path) as store:
        store.write_ledger(run, {events[0]: 7, events[1]: 3})
        store.write_ledger(run, {events[0]: 6})
    if how == "an older copy":
        for rest in tmp_path.glob("s.db-*"):
            rest.unlink()
        shutil.copy(tmp_path / "before.db", tmp_path / "s.db")
    else:
        change(tmp_path, LOWERED[how])
    with opened(tmp_path) as store:
        ledger = store.load_run(run).ledger
        assert {event: ledger[event] for event in events} == {events[0]: 7, events[1]: 3}
        store.write_ledger(run, {events[0]: 8})
        assert store.load_run(run).ledger[events[0]] == 8
    note = tmp_path / "op.jwk.ledgers"
    note.write_text(note.read_text().replace("8", "0", 1))
    with opened(tmp_path) as store, pytest.raises(StoreError, match=r"op\.jwk\.ledgers notes what runs.*put a backup"):
        store.load_run(run)


def test_the_runs_that_were_played_last_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("umbel.server.store.notes.RUNS", 3)
    KeyFile.generate("operator", 10).save(tmp_path / "op.jwk")
    notes = ledgers_of(ModelSigner.load(str(tmp_path / "op.jwk")), "s")
    for number in range(6):
        notes.note(f"r{number}", {"e": 5})
        notes.note("r0", {"e": number})
    assert [notes.raised(f"r{number}", {}).get("e") for number in range(6)] == [5, None, None, None, 5, 5]
