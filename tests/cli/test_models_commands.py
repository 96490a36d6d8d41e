"""`umbel models`: versions are listed, pointed at, rolled back, exported whole; a change in the store is seen."""

import json
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import ServerState
from umbel.server.store import Store

SPEC = ModelSpec(
    (VariableSpec("dense/kernel", (3, 2), "float32", True, 0), VariableSpec("dense/bias", (2,), "float32", True, 6))
)


def params(version):
    return np.arange(SPEC.size, dtype=np.float32) * version


@pytest.fixture(autouse=True)
def versions(folder):
    """Three of a model "digits", in umbel.db."""
    with Store.open("sqlite:///umbel.db") as store:
        state = ServerState(0, params(0), (), (), {}, ())
        run = store.create_run("digits", {}, 1, 0, {}, SPEC, state)
        for version in (1, 2, 3):
            store.models.register(run, params(version), SPEC, {"test_accuracy": version / 10}, epsilon=float(version))


def test_versions_are_listed_newest_last(here):
    status, output, _ = here("models", "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert [(row["model"], row["version"], row["epsilon"]) for row in rows] == [("digits", v, v) for v in (1, 2, 3)]
    titles, *lines = here("models")[1].splitlines()
    assert titles.split()[:5] == ["model", "version", "run", "accuracy", "ε"]
    assert [line.split()[3] for line in lines] == ["0.1000", "0.2000", "0.3000"]


def test_rolling_back_moves_an_alias_and_leaves_a_trace(here):
    assert here("models", "alias", "digits", "production", "latest")[:2] == (0, "production → 3\n")
    assert here("models", "alias", "digits", "production", "1")[:2] == (0, "production → 1\n")
    assert here("models", "alias", "digits", "production", "none")[:2] == (0, "production → none\n")
    moves = [json.loads(line) for line in here("models", "log", "digits", "--json")[1].splitlines()]
    assert [(move["alias"], move["version"]) for move in moves] == [("production", v) for v in (3, 1, None)]


def test_labels_go_on_and_come_off(here):
    labels = []
    for more in ((), ("--remove",)):
        assert here("models", "label", "digits", "2", "reviewed", *more)[0] == 0
        labels.append([json.loads(line)["labels"] for line in here("models", "--json")[1].splitlines()])
    assert labels == [[[], ["reviewed"], []], [[], [], []]]


def test_an_exported_version_holds_the_weights_it_was_made_of(here):
    here("models", "alias", "digits", "production", "2")
    assert here("models", "export", "digits", "production")[:2] == (0, "digits-2.npz\n")
    with np.load("digits-2.npz") as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {"dense/kernel": (3, 2), "dense/bias": (2,)}
        flat = np.concatenate([array.ravel() for array in arrays.values()])
    row = json.loads(here("models", "--json")[1].splitlines()[1])
    assert sha256(flat.tobytes()).hexdigest() == row["params_sha256"]
    np.testing.assert_array_equal(flat, params(2))


def test_a_changed_version_does_not_verify(here):
    assert here("models", "verify", "digits")[:2] == (0, "digits: 3 verified\n")
    with closing(sqlite3.connect("umbel.db")) as database:
        for (trigger,) in database.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            database.execute(f'drop trigger "{trigger}"')
        database.execute("update model_versions set header = replace(header, '0.2', '0.9') where version = 2")
        database.commit()
    status, output, errors = here("models", "verify", "digits")
    assert (status, output) == (2, "")
    assert "version 2 does not verify" in errors


@pytest.mark.parametrize(
    "words",
    [
        "log nothing",
        "verify nothing",
        "export nothing",
        "alias nothing production 1",
        "alias digits production 9",
        "alias digits latest 1",
        "label digits 9 reviewed",
        "export digits 1 -o weights.h5",
        "export digits 1 -o missing/weights.npz",
    ],
)
def test_what_is_not_there_is_said_in_one_line(here, words):
    status, output, errors = here("models", *words.split())
    assert (status, output, len(errors.splitlines())) == (2, "", 1)
    assert not list(Path().glob("*.npz"))
