"""The page on versions of models: its commands and its code run, one after the other, on the store of a run."""

import re
import shlex
from pathlib import Path

import numpy as np

from federations import dense, federation
from umbel import Simulation, run
from umbel.cli.main import execute

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")


def typed(commands):
    for line in commands.splitlines():
        assert execute(shlex.split(line, comments=True)[1:]) == 0, line


def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("UMBEL_STORE", "UMBEL_STORE_KEY", "UMBEL_MODEL_KEY"):
        monkeypatch.delenv(name, raising=False)
    histories = [
        run(federation(name="mine", rounds=1, seed=seed), Simulation(workers=1), store="sqlite:///umbel.db")
        for seed in (1, 2)
    ]
    about_models, about_stores = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    typed(about_models)
    assert "production → 2" in capsys.readouterr().out
    with np.load("mine.npz") as arrays:
        flat = np.concatenate([array.ravel() for array in arrays.values()])
    np.testing.assert_array_equal(flat, histories[0].params)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {"build_model": dense}
    exec(code, names)
    np.testing.assert_array_equal(names["model"].get_weights()[0].ravel(), histories[0].params[: 6 * 8])
    typed(about_stores)
    assert "sound: 2 runs" in capsys.readouterr().out
