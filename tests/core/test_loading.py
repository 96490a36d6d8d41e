"""Experiments are found by name or path, and what is wrong with one is said in one line."""

import pickle
import sys

import pytest

from umbel import ConfigError
from umbel.core.loading import experiment_names, load_compared, load_experiment

SMALL = "from federations import federation\nexperiment = federation()\n"


def test_a_file_is_loaded_with_overrides(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SMALL)
    experiment = load_experiment(str(path), ["rounds=9", "local.epochs=4", "rounds=5"])
    assert (experiment.rounds, experiment.local.epochs) == (5, 4)


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
