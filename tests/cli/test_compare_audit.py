"""`umbel compare` and `umbel audit`, as typed."""

import json
import textwrap

import pytest

from umbel.cli import execute

TWO = """
    import dataclasses
    from umbel.experiments.digits_fedavg import experiment as base

    experiments = {name: dataclasses.replace(base, name=name, rounds=2) for name in ("one", "two")}
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_STORE", f"sqlite:///{tmp_path}/runs.db")


@pytest.fixture
def two(tmp_path):
    (tmp_path / "two.py").write_text(textwrap.dedent(TWO))
    return str(tmp_path / "two.py")


def test_compare_prints_an_object_per_experiment(two, store, capfd):
    assert execute(["compare", two, "--seeds", "2", "--json", "--quiet", "--set", "rounds=1"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["name"], row["seeds"]) for row in rows] == [("one", 2), ("two", 2)]


def test_one_of_a_file(two, store, capsys):
    assert execute(["run", f"{two}:two", "--quiet"]) == 0
    assert execute(["run", two]) == 2
    assert f"{two}:one" in capsys.readouterr().err
    assert execute(["compare", f"{two}:tow"]) == 2
    assert "did you mean 'two'" in capsys.readouterr().err


def test_a_metric_that_is_not_measured_ends_it_with_the_first_run(two, store, capsys):
    assert execute(["compare", two, "--seeds", "2", "--metric", "test_acuracy", "--set", "rounds=1", "--quiet"]) == 2
    assert "no round has 'test_acuracy'; there is: " in capsys.readouterr().err
    assert execute(["runs", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_two_of_one_name_are_refused(two, store, capsys):
    assert execute(["compare", two, two]) == 2
    assert "called 'one'" in capsys.readouterr().err


def test_audit_says_what_attacks_found(store, capsys):
    assert execute(["run", "--set", "rounds=3", "--quiet"]) == 0
    assert execute(["audit", "latest", "--canaries", "40", "--json"]) == 0
    found = {row["attack"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["inversion"]["verdict"] == "succeeded"
    assert found["canaries"]["epsilon_claimed"] is None
    assert set(found) == {"inversion", "membership", "canaries"}
    assert execute(["audit", "nothing"]) == 2
