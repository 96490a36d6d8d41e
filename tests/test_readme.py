"""The README's code is run as it stands."""

import dataclasses
import re
from pathlib import Path

import numpy as np

import umbel
from umbel import data

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks():
    return re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks()[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    train, test = data.Digits("train").load(), data.Digits("test").load()
    names = {"x": train.x, "y": train.y, "x_test": test.x, "y_test": test.y}
    exec(code, names)
    history = names["history"]
    assert history.column("test_accuracy")[-1] > 0.8
    assert (tmp_path / "accuracy.png").is_file()
    _, accuracy = names["model"].evaluate(test.x, test.y, verbose=0)
    assert np.isclose(accuracy, history.column("test_accuracy")[-1])


def test_the_private_example_keeps_its_budget(tmp_path, monkeypatch):
    """For two of its rounds, which cost less than its hundred."""
    train, test = data.Digits("train").load(), data.Digits("test").load()
    names = {"x": train.x, "y": train.y, "x_test": test.x, "y_test": test.y}
    monkeypatch.chdir(tmp_path)
    first, second = blocks()
    exec(first.split("clients = ")[0], names)
    names["thousand_clients"] = data.Partitioned((train.x, train.y), by=data.Iid(), clients=1000)
    exec(second, names)
    private = dataclasses.replace(names["private"], rounds=2)
    history = umbel.run(private, umbel.Simulation(workers=1))
    assert 0 < history.rounds[0].epsilon < history.rounds[1].epsilon < names["plan"].epsilon
    assert names["plan"].spent({str(names["plan"].round_event): 100}) <= 8
