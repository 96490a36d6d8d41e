"""Experiments are found by name or path, and what is wrong with one is said in one line."""

import pickle
import sys
from pathlib import Path

import pytest

import umbel
from umbel import ConfigError
from umbel.core.reading.beside import PREFIX
from umbel.core.reading.loading import experiment_names, load_compared, load_experiment

SMALL = "from federations import federation\nexperiment = federation()\n"


def test_a_file_is_loaded_with_overrides(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SMALL)
    experiment = load_experiment(str(path), ["rounds=9", "local.epochs=4", "rounds=5"])
    assert (experiment.rounds, experiment.local.epochs) == (5, 4)


def test_a_file_that_parses_arguments_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["umbel", "run", "mine.py", "--quiet"])
    path = tmp_path / "mine.py"
    path.write_text("import argparse\nrest = argparse.ArgumentParser().parse_args()\n" + SMALL)
    load_experiment(str(path))
    assert sys.argv == ["umbel", "run", "mine.py", "--quiet"]


def test_two_files_of_one_name_are_two_experiments(tmp_path):
    for folder, seed in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(SMALL.replace("()\n", f"(seed={seed})\n"))
    seeds = [load_experiment(str(tmp_path / folder / "same.py")).seed for folder in ("one", "two", "one")]
    assert seeds == [1, 2, 1]


def test_what_a_file_defines_can_be_pickled(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import federations\n\n\ndef build():\n    return federations.dense()\n\n\n"
        + SMALL.replace("()\n", "(model=build)\n")
    )
    model = load_experiment(str(path)).model
    assert pickle.loads(pickle.dumps(model)) is model


@pytest.mark.parametrize(
    ("line", "by"),
    [("", ()), ("compared_by = 'test_loss'", ("test_loss",)), ("compared_by = ['b', 'a', 'b']", ("b", "a"))],
)
def test_a_file_says_what_it_is_compared_by(tmp_path, line, by):
    path = tmp_path / "mine.py"
    path.write_text(SMALL + line)
    found = load_compared(str(path), ["rounds=9"])
    assert ([(name, one.rounds) for name, one in found.experiments.items()], found.by) == ([("small", 9)], by)
    path.write_text(SMALL + "compared_by = 3")
    with pytest.raises(ConfigError, match="defines compared_by=3; expected names of metrics"):
        load_compared(str(path))


def test_every_name_is_loaded_by_itself():
    assert experiment_names()
    for name in experiment_names():
        assert load_experiment(name).name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no `experiment`"),
        ("experiment = 3\n", "defines experiment of type int"),
        ("import umbel\n\n1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("x = 1\ny = (\n", "line 2: SyntaxError: '(' was never closed"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(4)\n", "line 1: SystemExit: 4"),
        ("import umbel\numbel.FedAvg(server_lr=-1)\n", "expected server_lr=-1"),
    ],
)
def test_a_file_that_fails_says_where(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    left = {name for name in set(sys.modules) - before if "broken" in name}
    assert not left or "defines" in message


def test_unknown_names_and_files_are_named(tmp_path):
    near = experiment_names()[0]
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        load_experiment(near[:-1])
    with pytest.raises(ConfigError, match="there is no file"):
        load_experiment(str(tmp_path / "absent.py"))
    with pytest.raises(ConfigError, match="unknown key 'roundz': did you mean 'rounds'"):
        load_experiment(near, ["roundz=3"])


NETS = "def make():\n    import federations\n    return federations.dense()\n"
LAZILY = """
def build():
    import nets
    return nets.make()
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import nets\nmake = nets.make",
        "import nets as n\nmake = n.make",
        "from nets import make",
        "from nets import *",
        "from .nets import make",
        "from . import nets\nmake = nets.make",
        "import layers.deep\nmake = layers.deep.make",
        "import layers.deep as deep\nmake = deep.make",
        "from layers import deep\nmake = deep.make",
        "from bare.deep import make",  # a folder without __init__.py
        "import importlib\nmake = importlib.import_module('.nets', __package__).make",
        "def make():\n    from nets import make\n    return make()",
    ],
)
def test_modules_beside_a_file_are_found(tmp_path, imports):
    (tmp_path / "nets.py").write_text(NETS)
    for folder, init in (("layers", ["__init__.py"]), ("bare", [])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "deep.py").write_text("import nets\nmake = nets.make\n")
        for name in init:
            (tmp_path / folder / name).touch()
    (tmp_path / "mine.py").write_text(f"{imports}\n{SMALL.replace('()', '(model=make)')}")
    path, names = list(sys.path), {name for name in sys.modules if not name.startswith(PREFIX)}
    model = load_experiment(str(tmp_path / "mine.py")).model
    assert pickle.loads(pickle.dumps(model)) is model
    assert model().count_params() > 0
    assert sys.path == path
    assert "nets" not in sys.modules
    assert not {"layers", "bare", "deep"} & (set(sys.modules) - names)


def test_modules_of_one_name_beside_two_files_do_not_mix(tmp_path):
    """Neither those imported at once nor those imported when a model is built; and each is what it is now."""
    for folder, width in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text("import sizes\ndef make():\n    return sizes.WIDTH\n")
        (tmp_path / folder / "sizes.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "mine.py").write_text(LAZILY + "import sizes\n" + SMALL.replace("()", "(model=build)"))
    one, two = (load_experiment(str(tmp_path / folder / "mine.py")) for folder in ("one", "two"))
    assert (one.model(), two.model(), one.model()) == (1, 2, 1)
    (tmp_path / "one" / "sizes.py").write_text("WIDTH = 3\n")
    assert load_experiment(str(tmp_path / "one" / "mine.py")).model() == 3


def test_a_module_beside_a_file_comes_before_an_installed_one_for_that_file_alone(tmp_path):
    (tmp_path / "colorsys.py").write_text("RED = 'beside'\n")
    (tmp_path / "json").mkdir()  # a folder of data, which is no module while there is one
    (tmp_path / "umbel").mkdir()
    (tmp_path / "umbel" / "__init__.py").write_text("raise ImportError('not this one')\n")
    (tmp_path / "mine.py").write_text("import colorsys, json\njson.dumps(colorsys.RED)\nimport umbel\n" + SMALL)
    assert load_experiment(str(tmp_path / "mine.py")).rounds == 3
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_a_file_in_a_package_imports_as_a_script_and_as_a_module(tmp_path):
    """`python work/mine.py` finds work/nets.py as nets, `python -m work.mine` as work.nets, and they are one module."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "__init__.py").write_text("")
    (tmp_path / "work" / "nets.py").write_text(NETS)
    (tmp_path / "common.py").write_text("ROUNDS = 4\n")
    lines = "import nets, work.nets\nfrom . import nets as third\nassert nets is work.nets is third\n"
    lines += "from .. import common\nimport common as absolute\nassert common is absolute\n"
    (tmp_path / "work" / "mine.py").write_text(lines + SMALL.replace("()", "(rounds=common.ROUNDS)"))
    assert load_experiment(str(tmp_path / "work" / "mine.py")).rounds == 4


def test_one_of_umbels_own_files_is_found_by_its_path_too():
    path = Path(umbel.__file__).parent / "experiments" / "mnist_2nn.py"
    assert load_experiment(str(path)).digest == load_experiment("mnist_2nn").digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0\n", r"nets\.py, line 1: ZeroDivisionError"),
        ("x = (\n", r"nets\.py, line 1: SyntaxError"),
        ("import absent\n", r"nets\.py, line 1: ModuleNotFoundError: No module named 'absent'$"),
        ("import bare.absent\n", r"nets\.py, line 1: ModuleNotFoundError: No module named 'bare\.absent'$"),
        ("", r"mine\.py, line 1: ImportError: cannot import name 'make' from 'nets'"),
    ],
)
def test_a_module_beside_a_file_that_fails_says_where(tmp_path, text, message):
    (tmp_path / "bare").mkdir()
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "mine.py").write_text("from nets import make\n" + LAZILY + SMALL.replace("()", "(model=build)"))
    before = load_experiment(str(tmp_path / "mine.py"))
    (tmp_path / "nets.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(tmp_path / "mine.py"))
    assert before.model().count_params() > 0  # what was loaded before still works
