"""The README's code is run as it stands."""

import re
from pathlib import Path

import numpy as np

from umbel import data

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    train, test = data.Digits("train").load(), data.Digits("test").load()
    names = {"x": train.x, "y": train.y, "x_test": test.x, "y_test": test.y}
    exec(code, names)
    history = names["history"]
    assert history.column("test_accuracy")[-1] > 0.8
    assert (tmp_path / "accuracy.png").is_file()
    _, accuracy = names["model"].evaluate(test.x, test.y, verbose=0)
    assert np.isclose(accuracy, history.column("test_accuracy")[-1])
