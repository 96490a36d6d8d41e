"""The registry: versions never change, and a change is seen; aliases move and leave a trace."""

import hashlib

import numpy as np
import pytest

from umbel.core.errors import ConfigError, StoreError
from umbel.server.store import Store


@pytest.fixture
def run(store, scenario):
    """A run with three registered versions."""
    run = scenario.begin(store, "mnist")
    for version in range(1, 4):
        metrics = {"test_accuracy": version / 7, "test_loss": float("nan")}
        epsilon = None if version == 1 else float("inf") if version == 2 else 0.1 + 0.2
        store.models.register(run, params(scenario, version), scenario.SPEC, metrics, epsilon, version - 1 or None)
    return run


def params(scenario, version):
    return scenario.state(version).params


def test_versions_are_numbered_and_come_back_whole(store, run, scenario):
    versions = store.models.list("mnist")
    assert [model.version for model in versions] == [1, 2, 3]
    assert [model.parent for model in versions] == [None, 1, 2]
    assert [model.epsilon for model in versions] == [None, float("inf"), 0.1 + 0.2]
    assert [model.previous for model in versions[1:]] == [model.hash for model in versions[:-1]]
    for model in versions:
        found, weights = store.models.get("mnist", model.version)
        assert found == model or np.isnan(found.metrics["test_loss"])
        assert weights.dtype == np.float32
        assert weights.tobytes() == params(scenario, model.version).tobytes()
        assert model.params_sha256 == hashlib.sha256(weights.tobytes()).hexdigest()
        assert (model.run, model.spec) == (run, scenario.SPEC)
        assert model.metrics["test_accuracy"] == model.version / 7
    assert store.models.verify("mnist") == 3
    assert store.models.get("mnist")[0].version == store.models.get("mnist", "2")[0].version + 1 == 3


def test_each_experiment_has_a_chain_of_its_own(store, run, scenario):
    other = scenario.begin(store, "digits")
    model = store.models.register(other, params(scenario, 1), scenario.SPEC, {})
    assert (model.name, model.version) == ("digits", 1)
    assert [(m.name, m.version) for m in store.models.list()] == [("digits", 1), *(("mnist", v) for v in (1, 2, 3))]
    assert model.params_sha256 == store.models.list("mnist")[0].params_sha256  # one blob, two versions
    assert store.check() == []


def test_a_version_outlives_its_run(store, run, scenario):
    store.delete_run(run)
    assert store.models.get("mnist", 3)[1].tobytes() == params(scenario, 3).tobytes()
    assert store.check() == []


def test_rollback_moves_the_alias_and_leaves_a_row(store, run):
    for version in (2, 3, 2):
        store.models.set_alias("mnist", "production", version)
    store.models.set_alias("mnist", "staging", "latest")
    model, _ = store.models.get("mnist", "production")
    assert (model.version, model.aliases) == (2, ("production",))
    assert store.models.aliases("mnist") == {"production": 2, "staging": 3}
    store.models.remove_alias("mnist", "staging")
    moves = [(move.alias, move.version) for move in store.models.alias_history("mnist")]
    assert moves == [("production", 2), ("production", 3), ("production", 2), ("staging", 3), ("staging", None)]
    with pytest.raises(StoreError, match="no version 'staging'; it has 1 to 3, and aliases: production → 2"):
        store.models.get("mnist", "staging")


def test_labels_are_attached_and_taken_off(store, run):
    store.models.set_alias("mnist", "production", 2)
    for label in ("reviewed", "reviewed", "fair"):
        store.models.label("mnist", "production", label)
    assert store.models.get("mnist", 2)[0].labels == ("fair", "reviewed")
    store.models.unlabel("mnist", 2, "fair")
    assert [model.labels for model in store.models.list("mnist")] == [(), ("reviewed",), ()]


def test_what_is_not_there_or_does_not_fit_is_refused(store, run, scenario):
    models, weights = store.models, params(scenario, 1)
    with pytest.raises(StoreError, match="no model 'mnits'; the registry holds: mnist"):
        models.get("mnits", 1)
    for version in (0, 4, "-1", "live"):
        with pytest.raises(StoreError, match=f"no version '?{version}'?; it has 1 to 3, and aliases: none"):
            models.get("mnist", version)
    for alias in ("latest", "1", "", "a b"):
        with pytest.raises(ConfigError, match="alias"):
            models.set_alias("mnist", alias, 1)
    with pytest.raises(ConfigError, match=r"label ''"):
        models.label("mnist", 1, "")
    for wrong in (weights[:-1], weights.astype(np.float64)):
        with pytest.raises(ConfigError, match=r"expected float32 params of shape \(20000,\)"):
            models.register(run, wrong, scenario.SPEC, {})
    with pytest.raises(StoreError, match="no version 9 to be the parent"):
        models.register(run, weights, scenario.SPEC, {}, parent=9)
    assert models.verify("mnist") == 3


@pytest.mark.parametrize("table", ["model_versions", "alias_moves"])
@pytest.mark.parametrize("change", ["UPDATE {} SET name = 'x'", "DELETE FROM {}"])
def test_the_database_itself_refuses_to_rewrite_the_past(store, run, table, change):
    store.models.set_alias("mnist", "production", 1)
    with pytest.raises(StoreError, match=f"{table} is append-only"), store._database.write() as connection:
        connection.exec_driver_sql(change.format(table))
    assert store.models.verify("mnist") == 3


REHASHED = "UPDATE model_versions SET header = :header, hash = :hash WHERE version = 2"
TAMPERING = {
    "header": ("UPDATE model_versions SET header = replace(header, '0.28', '0.99') WHERE version = 2", "version 2"),
    "header and hash": (REHASHED, "version 3 does not verify: its previous breaks the chain"),
    "params of another": (
        "UPDATE model_versions SET params = (SELECT params FROM model_versions WHERE version = 1) WHERE version = 2",
        "version 2 does not verify: its params",
    ),
    "a version gone": ("DELETE FROM model_versions WHERE version = 2", "version 2 is missing"),
    "the first gone": ("DELETE FROM model_versions WHERE version = 1", "version 1 is missing"),
    "another name": ("UPDATE model_versions SET name = 'emnist'", "version 1 does not verify: its name"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_a_changed_chain_is_found_and_refused(url, store, run, sql, how):
    statement, message = TAMPERING[how]
    header = sql(url, "SELECT header FROM model_versions WHERE version = 2")[0][0].replace("0.28", "0.99")
    values = {"header": header, "hash": hashlib.sha256(header.encode()).hexdigest()} if statement == REHASHED else {}
    assert sql(url, statement, **values) >= 1
    name = "emnist" if how == "another name" else "mnist"
    with pytest.raises(StoreError, match=message):
        store.models.verify(name)
    with pytest.raises(StoreError, match=message):
        store.models.get(name, "latest")
    assert any(message in problem for problem in store.check())


def test_tampered_params_are_never_returned(url, store, run, sql):
    digest = store.models.get("mnist", 2)[0].params_sha256
    content = bytearray(sql(url, "SELECT bytes FROM blob_parts WHERE digest = :d", d=digest)[0][0])
    content[1000] ^= 1
    sql(url, "UPDATE blob_parts SET bytes = :b WHERE digest = :d", b=bytes(content), d=digest)
    for refused in (
        lambda: store.models.get("mnist", 2),
        lambda: store.models.verify("mnist"),
        lambda: store.models.set_alias("mnist", "production", 2),
    ):
        with pytest.raises(StoreError, match=f"blob {digest[:12]}… does not verify"):
            refused()
    assert store.models.get("mnist", 3)[0].version == 3
    assert [problem for problem in store.check() if digest[:12] in problem]


def test_two_stores_registering_at_once_give_distinct_numbers(url, run, scenario):
    with Store.open(url) as one, Store.open(url) as other:
        numbers = [
            store.models.register(run, params(scenario, 1), scenario.SPEC, {}).version for store in (one, other) * 2
        ]
    assert numbers == [4, 5, 6, 7]
