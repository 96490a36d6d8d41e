"""`umbel compare` and `umbel audit`, as typed."""

import json
import textwrap

import numpy as np
import pytest

from umbel.cli.compare import gathered, report
from umbel.cli.main import execute
from umbel.core.types import RoundRecord
from umbel.server.history import History
from umbel.studies.comparison import Comparison

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


def test_compare_prints_an_object_per_experiment_and_metric(two, store, capfd):
    by = ["--metric", "test_accuracy", "--metric", "test_loss"]
    assert execute(["compare", two, "--seeds", "2", *by, "--json", "--quiet", "--set", "rounds=1"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["name"], row["metric"], row["seeds"]) for row in rows] == [
        (name, metric, 2) for name in ("one", "two") for metric in ("test_accuracy", "test_loss")
    ]


def test_files_are_compared_by_what_all_of_them_name(two, tmp_path):
    others = {"by_both.py": '("test_loss", "test_accuracy")', "by_loss.py": '"test_loss"'}
    for name, metrics in others.items():
        text = textwrap.dedent(TWO).replace('"one", "two"', f'"{name}", "{name} too"').replace("name=name, ", "")
        (tmp_path / name).write_text(f"{text}compared_by = {metrics}\n")
    both, loss = (str(tmp_path / name) for name in others)
    for files, metrics in (
        ([both], ("test_loss", "test_accuracy")),
        ([both, loss], ("test_loss",)),
        ([loss, two], ("test_accuracy",)),
    ):
        experiments, by = gathered(files, [])
        assert (len(experiments), by) == (2 * len(files), metrics)


def compared(metrics, **finals):
    """Experiments that measured these once, by name: {metric: value}; none for a run that stopped."""
    histories, stopped = {}, {}
    for name, metric in finals.items():
        record = RoundRecord(9, 2, 0, metric or {}, 0.5, 0.1, 1, 1, None)
        name = name.replace("__", "/")
        histories[name] = [History(name, [record], np.zeros(1, np.float32), None)] if metric else []
        stopped[name] = [] if metric else ["seed 0: it diverged"]
    return Comparison(histories, stopped, metrics, {"bytes_sent": "max"})


def test_groups_are_a_grid_for_each_metric_and_a_list_with_a_target(capsys):
    measured = {"test_accuracy": 0.12345, "bytes_sent": 2_500_000.0}
    found = compared(
        ("test_accuracy", "bytes_sent"), A__x=measured, A__y=measured, B__x={"test_accuracy": 0.5}, B__y=None
    )
    report(found, None)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["test", "accuracy", "A", "B"],
        ["x", "0.123", "0.500"],
        ["y", "0.123", "–"],
        [],
        ["bytes", "sent", "A", "B"],
        ["x", "2.5e+06", "–"],
        ["y", "2.5e+06", "–"],
        ["B/y,", "seed", "0:", "it", "diverged"],
    ]
    found.plot()
    report(found, 0.4)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "experiment test accuracy best seeds reached 0.4 in rounds in seconds"
    assert lines[3].split() == ["B/x", "0.5000", "0.5000", "1", "1", "of", "1", "9", "0.5"]


def test_one_of_a_file(two, store, capsys):
    assert execute(["run", f"{two}:two", "--quiet"]) == 0
    assert execute(["run", two]) == 2
    assert f"{two}:one" in capsys.readouterr().err
    assert execute(["compare", f"{two}:tow"]) == 2
    assert "did you mean 'two'" in capsys.readouterr().err
    assert execute(["compare", "digits_fedavg:tow"]) == 2
    assert "leave out :tow" in capsys.readouterr().err


def test_a_metric_that_is_not_measured_is_refused_before_a_run(two, store, capsys):
    assert execute(["compare", two, "--seeds", "2", "--metric", "test_acuracy", "--set", "rounds=1", "--quiet"]) == 2
    assert "no round has 'test_acuracy'; did you mean 'test_accuracy'" in capsys.readouterr().err
    assert execute(["runs", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_what_nothing_measures_is_refused_before_a_run(two, store, tmp_path, capsys):
    assert execute(["compare", two, "--metric", "validation_loss"]) == 2
    assert "no experiment has validation examples" in capsys.readouterr().err
    assert execute(["compare", two, "--over", "virtual_seconds", "--plot", "clock.png"]) == 2
    assert "no experiment has devices" in capsys.readouterr().err
    assert not (tmp_path / "runs.db").exists()


def test_two_of_one_name_are_refused(two, store, capsys):
    assert execute(["compare", two, two]) == 2
    assert "called 'one'" in capsys.readouterr().err


def test_audit_says_what_attacks_found(store, capsys):
    assert execute(["run", "--set", "rounds=3", "--quiet"]) == 0
    assert execute(["audit", "latest", "--canaries", "40", "--json"]) == 0
    found = {row["attack"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["inversion"]["verdict"] == "succeeded"
    assert found["canaries"]["epsilon_claimed"] is None
    promises = {"failure oracle", "repeated rounds", "low bits", "decrypting clients", "roll of three"}
    assert set(found) == {"inversion", "membership", "canaries"} | promises
    assert {found[name]["verdict"] for name in promises} == {"not applicable"}
    assert execute(["audit", "nothing"]) == 2
