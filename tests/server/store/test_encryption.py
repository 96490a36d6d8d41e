"""Encryption at rest: nothing of the content in the file, nothing lost, and every wrong key refused with the remedy."""

import dataclasses
import hashlib
import os

import numpy as np
import pytest

from umbel.core.errors import ConfigError, StoreError
from umbel.privacy.keys import KeyFile
from umbel.privacy.keys.vault import StorageVault
from umbel.server.store import Store

CANARY = np.frombuffer(b"canary of params, 32 bytes long!", "<f4")
KEEPSAKE = np.frombuffer(b"canary of a client's memory, 32!", "<f4")


@pytest.fixture
def store(url, key_file):
    with Store.open(url, key=key_file) as store:
        yield store


@pytest.fixture
def other_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "other.key"
    KeyFile.generate("storage", 30).save(path)
    return path


def refusal(url, **options):
    """The one line that opening url gives."""
    with pytest.raises((StoreError, ConfigError)) as caught:
        Store.open(url, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def fill(store, scenario):
    """A run whose params, memory and model hold canaries."""
    run = scenario.begin(store)
    state = scenario.state(1)
    state.params[100:108] = CANARY
    store.commit_round(run, state, scenario.record(1), {3: [KEEPSAKE, np.arange(3)]})
    store.models.register(run, state.params, scenario.SPEC, {})
    return run, state


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_canaries_are_in_a_clear_file_and_not_in_an_encrypted_one(tmp_path, scenario, key_file, is_encrypted):
    url = f"sqlite:///{tmp_path}/runs.db"
    with Store.open(url, key=key_file if is_encrypted else None) as store:
        run, state = fill(store, scenario)
        present = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # the write-ahead log too
    after = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    digests = [
        hashlib.sha256(whole.tobytes()).hexdigest().encode() for whole in (state.params, state.strategy[1]["mask"])
    ]
    canaries = [CANARY.tobytes(), KEEPSAKE.tobytes(), state.params.tobytes()[:64], *digests]
    for content in (present, after):
        assert [canary in content for canary in canaries] == [not is_encrypted] * len(canaries)
        secret = KeyFile.load(key_file).secret
        assert secret not in content
        assert secret.hex().encode() not in content
        assert run.encode() in content  # what a run is called is not hidden
    with Store.open(url, key=key_file if is_encrypted else None) as store:
        assert scenario.bits(store.checkpoint(run, like=scenario.state(0))) == scenario.bits(state)
        assert store.memory(run).read(3)[0].tobytes() == KEEPSAKE.tobytes()
        assert store.models.get("scenario")[1].tobytes() == state.params.tobytes()
        assert store.check() == []


def test_no_two_objects_share_a_key_and_no_nonce_is_repeated(url, store, scenario, sql):
    fill(store, scenario)
    wrapped = [bytes(row[0]) for row in sql(url, "SELECT wrapped FROM blob_keys")]
    assert len(wrapped) == sql(url, "SELECT count(*) FROM blobs")[0][0] > 5
    assert {len(one) for one in wrapped} == {60}
    assert len({one[:12] for one in wrapped}) == len(wrapped)
    vault = store._coding.vault
    names = [row[0] for row in sql(url, "SELECT digest FROM blob_keys")]
    rows = sql(url, "SELECT digest, wrapped FROM blob_keys")
    assert len({vault.unwrap(bytes(row.wrapped), row.digest.encode()) for row in rows}) == len(names)


def test_equal_content_is_held_once_and_under_another_name_in_another_store(
    url, store, scenario, sql, tmp_path, key_file
):
    fill(store, scenario)
    run = scenario.begin(store)
    first = {row[0] for row in sql(url, "SELECT digest FROM blobs")}
    scenario.begin(store)
    assert {row[0] for row in sql(url, "SELECT digest FROM blobs")} == first
    with Store.open(f"sqlite:///{tmp_path}/second.db", key=key_file) as second:
        fill(second, scenario)
        scenario.begin(second)
    assert first.isdisjoint(row[0] for row in sql(f"sqlite:///{tmp_path}/second.db", "SELECT digest FROM blobs"))
    assert store.load_run(run).server_state.round == 0


def test_without_its_key_an_encrypted_store_is_refused(url, store, other_file, key_file):
    key = KeyFile.load(key_file)
    message = refusal(url)
    assert f"is encrypted under key {key.id}; name the file of that key: UMBEL_STORE_KEY=FILE" in message
    assert f"under key {key.id}, not {KeyFile.load(other_file).id}, which was given" in refusal(url, key=other_file)


def test_the_variable_names_the_key(url, key_file, monkeypatch, scenario):
    monkeypatch.setenv("UMBEL_STORE_KEY", str(key_file))
    with Store.open(url) as store:
        run = scenario.begin(store)
    monkeypatch.setenv("UMBEL_STORE_KEY", "")
    assert "is encrypted" in refusal(url)
    with Store.open(url, key=str(key_file)) as store:
        assert store.load_run(run).server_state.round == 0
    monkeypatch.setenv("UMBEL_STORE_KEY", "/no/such.key")
    assert "key file /no/such.key cannot be read" in refusal(url)


def test_an_expired_open_or_other_kind_of_key_is_refused_and_nothing_is_made(tmp_path, key_file):
    url, key = f"sqlite:///{tmp_path}/new.db", KeyFile.load(key_file)
    dataclasses.replace(key, expires=1).save(key_file, replace=True)
    assert "expired on 1970-01-01 00:00 UTC; replace it: umbel keys rotate" in refusal(url, key=key_file)
    key.save(key_file, replace=True)
    os.chmod(key_file, 0o640)
    assert "open to others" in refusal(url, key=key_file)
    KeyFile.generate("node", 1).save(key_file, replace=True)
    assert "a key of kind storage is needed" in refusal(url, key=key_file)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_encrypted_takes_no_key_once_it_holds_something(url, key_file, scenario, sql):
    with Store.open(url) as store:
        run = scenario.begin(store)
    assert "is not encrypted, and the key" in refusal(url, key=key_file)
    assert sql(url, "SELECT count(*) FROM store_key") == [(0,)]
    with Store.open(url) as store:
        assert store.load_run(run).server_state.round == 0


def test_who_opened_a_store_in_the_clear_cannot_write_once_it_is_encrypted(url, key_file, scenario, sql):
    with Store.open(url) as clear, Store.open(url, key=key_file) as store:
        with pytest.raises(StoreError, match="the store's key was changed"):
            scenario.begin(clear)
        run = scenario.begin(store)
        assert store.load_run(run).server_state.round == 0
        assert sql(url, "SELECT count(*) FROM runs") == [(1,)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("table", "column"), [("blob_parts", "bytes"), ("blob_keys", "wrapped")])
def test_a_changed_byte_is_found_and_refused(url, store, scenario, sql, table, column, share):
    run, _ = fill(store, scenario)
    digest, content = sql(url, f"SELECT digest, {column} FROM {table} ORDER BY length({column}) DESC, digest")[0]
    content, place = bytearray(content), int((len(content) - 1) * share)
    content[place] ^= 1
    sql(url, f"UPDATE {table} SET {column} = :b WHERE digest = :d", b=bytes(content), d=digest)
    assert [problem for problem in store.check() if f"blob {digest[:12]}… does not verify" in problem]
    content[place] ^= 1
    sql(url, f"UPDATE {table} SET {column} = :b WHERE digest = :d", b=bytes(content), d=digest)
    assert store.check() == []
    assert store.load_run(run).server_state.round == 1


TAMPERING = {
    "cut short": "UPDATE blob_parts SET bytes = substr(bytes, 1, 1000) WHERE digest = :a",
    "key gone": "DELETE FROM blob_keys WHERE digest = :a",
    "another's content": "UPDATE blob_parts SET bytes = (SELECT b.bytes FROM blob_parts b WHERE b.digest = :b) "
    "WHERE digest = :a",
    "another's key": "UPDATE blob_keys SET wrapped = (SELECT k.wrapped FROM blob_keys k WHERE k.digest = :b) "
    "WHERE digest = :a",
    "in the clear": "UPDATE blob_parts SET bytes = :clear WHERE digest = :a",
}


@pytest.mark.parametrize("how", TAMPERING)
def test_what_was_moved_or_put_in_its_place_is_refused(url, store, scenario, sql, how):
    run = scenario.begin(store)
    large = sql(url, "SELECT digest FROM blob_parts ORDER BY length(bytes) DESC, digest LIMIT 2")
    values = {"a": large[0][0], "b": large[1][0], "clear": scenario.state(0).params.tobytes()}
    sql(url, TAMPERING[how], **{name: value for name, value in values.items() if f":{name}" in TAMPERING[how]})
    with pytest.raises(StoreError, match=f"blob {large[0][0][:12]}… does not verify"):
        store.load_run(run)


def test_both_content_and_key_of_another_object_are_refused_together(url, store, scenario, sql):
    """A rollback of one object to another: each verifies in its own place, so the name must be part of both."""
    run = scenario.begin(store)
    one, other = (
        row[0] for row in sql(url, "SELECT digest FROM blob_parts ORDER BY length(bytes) DESC, digest LIMIT 2")
    )
    for how in ("another's content", "another's key"):
        sql(url, TAMPERING[how], a=one, b=other)
    with pytest.raises(StoreError, match="does not verify"):
        store.load_run(run)


def test_a_stores_own_key_that_was_changed_is_refused(url, key_file, sql, scenario):
    with Store.open(url, key=key_file) as store:
        scenario.begin(store)
    naming = bytearray(sql(url, "SELECT naming FROM store_key")[0][0])
    naming[20] ^= 1
    sql(url, "UPDATE store_key SET naming = :n", n=bytes(naming))
    assert "does not open: it was changed" in refusal(url, key=key_file)


def test_rotation_changes_the_key_and_nothing_else(url, key_file, other_file, scenario, sql):
    with Store.open(url, key=key_file) as store:
        run, state = fill(store, scenario)
    content = sql(url, "SELECT digest, part, bytes FROM blob_parts ORDER BY digest, part")
    before = dict(sql(url, "SELECT digest, wrapped FROM blob_keys"))
    old, new = (StorageVault.load(path) for path in (key_file, other_file))
    assert Store.rotate(url, old, new) == len(before)
    assert sql(url, "SELECT digest, part, bytes FROM blob_parts ORDER BY digest, part") == content
    after = dict(sql(url, "SELECT digest, wrapped FROM blob_keys"))
    assert after.keys() == before.keys()
    assert not set(map(bytes, after.values())) & set(map(bytes, before.values()))
    assert f"is encrypted under key {new.key_id}" in refusal(url, key=key_file)
    with Store.open(url, key=other_file) as store:
        assert scenario.bits(store.checkpoint(run, like=scenario.state(0))) == scenario.bits(state)
        scenario.commit(store, run, 2)
        assert store.check() == []
    assert Store.rotate(url, old, new) == 0  # interrupted after its commit, and repeated
    with Store.open(url, key=other_file) as store:
        assert store.check() == []


def test_whoever_has_a_store_open_while_its_key_is_replaced_is_refused_and_loses_nothing(
    url, store, key_file, other_file, scenario
):
    run = scenario.begin(store)
    scenario.commit(store, run, 1)
    Store.rotate(url, StorageVault.load(key_file), StorageVault.load(other_file))
    message = r"the store's key was changed .* open it again with the file of that key"
    with pytest.raises(StoreError, match=message):
        scenario.commit(store, run, 2)
    for read in (store.load_run, lambda run: store.memory(run).read(1)):
        with pytest.raises(StoreError, match=message):
            read(run)
    with Store.open(url, key=other_file) as again:
        assert scenario.bits(again.checkpoint(run, like=scenario.state(0))) == scenario.bits(scenario.state(1))
        scenario.commit(again, run, 2)
        assert again.check() == []


def test_rotation_refuses_what_it_cannot_open_and_changes_nothing(url, key_file, other_file, scenario, sql):
    old, new = (StorageVault.load(path) for path in (key_file, other_file))
    Store.open(url).close()
    with pytest.raises(StoreError, match="is not encrypted"):
        Store.rotate(url, old, new)
    with Store.open(url, key=key_file) as store:
        run = scenario.begin(store)
    with pytest.raises(StoreError, match=f"under key {old.key_id}, not {new.key_id}"):
        Store.rotate(url, new, StorageVault(KeyFile.generate("storage", 1)))
    before = sql(url, "SELECT * FROM blob_keys ORDER BY digest")
    last = bytearray(before[-1].wrapped)
    last[30] ^= 1
    sql(url, "UPDATE blob_keys SET wrapped = :w WHERE digest = :d", w=bytes(last), d=before[-1].digest)
    with pytest.raises(StoreError, match="does not open: it was changed"):
        Store.rotate(url, old, new)
    sql(url, "UPDATE blob_keys SET wrapped = :w WHERE digest = :d", w=bytes(before[-1].wrapped), d=before[-1].digest)
    assert sql(url, "SELECT * FROM blob_keys ORDER BY digest") == before
    with Store.open(url, key=key_file) as store:
        assert store.load_run(run).server_state.round == 0


def test_no_secret_in_what_may_be_shown(url, store, key_file):
    key, coding = KeyFile.load(key_file), store._coding
    for shown in (repr(store), repr(coding), repr(coding.vault), repr(store.models), str(key)):
        for secret in (key.secret, coding.naming_key):
            assert secret.hex() not in shown
            assert repr(secret) not in shown
