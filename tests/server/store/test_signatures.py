"""Signed model versions: with the operator's key the chain is verified, whoever could write to the database."""

import hashlib
import json

import pytest

from umbel.core.errors import ConfigError, StoreError
from umbel.privacy.keys import KeyFile
from umbel.privacy.keys.vault import ModelSigner
from umbel.server.store import Store

OPERATOR, SUCCESSOR = KeyFile.generate("operator", 30), KeyFile.generate("operator", 30)
SIGNER = ModelSigner(OPERATOR)


def register(store, scenario, count=1):
    run = scenario.begin(store, "mnist")
    for version in range(count):
        store.models.register(run, scenario.state(version).params, scenario.SPEC, {"accuracy": 0.5 + version})


@pytest.fixture
def signed(url, scenario):
    """The URL of a store with three versions, all signed."""
    with Store.open(url, signer=SIGNER) as store:
        register(store, scenario, 3)
    return url


def test_signed_versions_verify_with_the_key_and_without(signed, scenario):
    public = ModelSigner(None, (OPERATOR.public,))
    for signer in (SIGNER, public, ModelSigner(SUCCESSOR, (OPERATOR.public,)), None):
        with Store.open(signed, signer=signer) as store:
            assert store.models.verify("mnist") == 3
            assert store.models.get("mnist", 2)[1].tobytes() == scenario.state(1).params.tobytes()
            assert store.check() == []


def test_another_key_is_refused(signed):
    with Store.open(signed, signer=ModelSigner(SUCCESSOR)) as store:
        for refused in (store.models.verify, store.models.get, store.models.list):
            with pytest.raises(StoreError, match=f"no trusted key has signed it as it is.*{OPERATOR.id}"):
                refused("mnist")
        assert len(store.check()) == 1


def test_a_whole_chain_rehashed_by_who_can_write_is_refused(signed, sql):
    """The hashes alone would verify: every header after the change is hashed anew."""
    previous = None
    for version, header in sql(signed, "SELECT version, header FROM model_versions ORDER BY version"):
        changed = json.loads(header) | ({"previous": previous} if previous else {})
        changed["metrics"] = changed["metrics"].replace("0.5", "0.9")
        text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(text.encode()).hexdigest()
        values = {"header": text, "hash": previous, "version": version}
        sql(signed, "UPDATE model_versions SET header = :header, hash = :hash WHERE version = :version", **values)
    with Store.open(signed) as store:
        assert store.models.verify("mnist") == 3
    with Store.open(signed, signer=SIGNER) as store, pytest.raises(StoreError, match="version 1: no trusted key"):
        store.models.get("mnist", 3)


TAMPERING = {
    "UPDATE model_signatures SET key = 'x' WHERE version = 2": "version 2: no trusted key",
    "DELETE FROM model_signatures WHERE version = 2": "version 2 is not signed",
    "DELETE FROM model_signatures": "version 1 is not signed",
    "UPDATE model_signatures SET signature = (SELECT s.signature FROM model_signatures s WHERE s.version = 1)": (
        "version 2: no trusted key"
    ),
}


@pytest.mark.parametrize("statement", TAMPERING)
def test_a_signature_that_is_gone_or_of_another_version_is_refused(signed, scenario, sql, statement):
    sql(signed, statement)
    with Store.open(signed, signer=SIGNER) as store:
        with pytest.raises(StoreError, match=TAMPERING[statement]):
            store.models.get("mnist", 3)
        with pytest.raises(StoreError, match=TAMPERING[statement]):
            register(store, scenario)  # nor is anything built on it


def test_the_database_itself_refuses_to_change_a_signature(signed):
    with Store.open(signed) as store:
        for change in ("UPDATE model_signatures SET key = 'x'", "DELETE FROM model_signatures"):
            with pytest.raises(StoreError, match="append-only"), store._database.write() as connection:
                connection.exec_driver_sql(change)


def test_a_chain_begun_without_a_key_is_signed_on_request_only(url, scenario):
    with Store.open(url) as store:
        register(store, scenario, 2)
        with pytest.raises(StoreError, match="no key to sign with"):
            store.models.sign("mnist")
    with Store.open(url, signer=SIGNER) as store:
        with pytest.raises(StoreError, match=r"version 1 is not signed.*store.models.sign\('mnist'\)"):
            store.models.get("mnist")
        with pytest.raises(StoreError, match="version 1 is not signed"):
            register(store, scenario)
        assert store.models.sign("mnist") == 2
        register(store, scenario)
        assert store.models.sign("mnist") == 0
        assert store.models.verify("mnist") == 3


def test_an_operators_key_is_replaced_by_one_that_trusts_it(signed, scenario):
    with Store.open(signed, signer=ModelSigner(SUCCESSOR, (OPERATOR.public,))) as store:
        register(store, scenario)
        assert store.models.verify("mnist") == 4
    with Store.open(signed, signer=SIGNER) as store, pytest.raises(StoreError, match="version 4: no trusted key"):
        store.models.verify("mnist")


def test_a_public_key_does_not_sign(signed, scenario):
    public = ModelSigner(None, (OPERATOR.public,))
    with Store.open(signed, signer=public) as store:
        with pytest.raises(StoreError, match="a public key only verifies"):
            register(store, scenario)
        assert store.models.verify("mnist") == 3


def test_keys_are_named_by_the_variable(signed, tmp_path, monkeypatch):
    OPERATOR.save(tmp_path / "operator.key")
    (tmp_path / "operator.json").write_text(json.dumps(OPERATOR.public_jwk()))
    SUCCESSOR.save(tmp_path / "successor.key")
    for names in (
        "{0}/operator.key",
        "{0}/operator.json",
        OPERATOR.public.text,
        "{0}/successor.key:{0}/operator.json",
        "{0}/successor.key:" + OPERATOR.public.text,
    ):
        monkeypatch.setenv("UMBEL_MODEL_KEY", names.format(tmp_path))
        with Store.open(signed) as store:
            assert store.models.verify("mnist") == 3
    monkeypatch.setenv("UMBEL_MODEL_KEY", f"{tmp_path}/successor.key")
    with Store.open(signed) as store, pytest.raises(StoreError, match="no trusted key"):
        store.models.verify("mnist")
    (tmp_path / "operator.key").chmod(0o644)
    for names, part in (("{0}/operator.key", "open to others"), ("{0}/nothing", "neither a file nor")):
        monkeypatch.setenv("UMBEL_MODEL_KEY", names.format(tmp_path))
        with pytest.raises(ConfigError, match=part):
            Store.open(signed)
