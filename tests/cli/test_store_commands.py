"""`umbel store`: a sound store is called sound, a damaged one is not, and a run that is deleted is gone."""

import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import ServerState
from umbel.server.store import Store

SPEC = ModelSpec((VariableSpec("dense/kernel", (300, 20), "float32", True, 0),))


@pytest.fixture(autouse=True)
def two(folder):
    """Two runs, each with a version of a model, in umbel.db: their ids, newest first."""
    with Store.open("sqlite:///umbel.db") as store:
        for number in (1, 2):
            params = np.full(SPEC.size, number, np.float32)
            run = store.create_run("digits", {}, 1, 0, {}, SPEC, ServerState(0, params, (), (), {}, ()))
            store.models.register(run, params, SPEC, {})
        return [one.run for one in store.runs()]


def changed(statement):
    with closing(sqlite3.connect("umbel.db")) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        assert connection.execute(statement).rowcount > 0


def test_check_calls_a_sound_store_sound(here):
    assert here("store", "check") == (0, "sound: 2 runs\n", "")


def test_check_names_what_is_damaged(here):
    changed("UPDATE blob_parts SET bytes = zeroblob(length(bytes))")
    status, output, errors = here("store", "check")
    problems = output.splitlines()
    assert status == 2
    assert [line for line in problems if "does not verify" in line]
    assert f"{len(problems)} problem" in errors


def test_check_makes_no_store(here):
    status, output, errors = here("store", "check", "--store", "sqlite:///other.db")
    assert (status, output) == (2, "")
    assert "does not exist" in errors


def test_a_deleted_run_is_gone_and_its_versions_stay(here, two):
    status, output, _ = here("store", "delete", two[0], "--yes")
    assert (status, output) == (0, f"deleted run {two[0]}: digits, running, 0 rounds\n")
    assert [json.loads(line)["run"] for line in here("runs", "--json")[1].splitlines()] == two[1:]
    assert len(here("models", "--json")[1].splitlines()) == 2
    assert here("store", "check")[:2] == (0, "sound: 1 run\n")
    assert here("store", "delete", "nothing", "--yes")[0] == 2


def test_delete_asks_first(here, two, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115  nobody answers
    status, _, errors = here("store", "delete", "latest")
    assert (status, errors.splitlines()[-1]) == (1, "umbel: nothing was done")
    assert len(here("runs", "--json")[1].splitlines()) == 2
