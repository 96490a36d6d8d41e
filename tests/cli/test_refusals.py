"""What cannot be done is said in one line on standard error, with the contract's status, and leaves the store sound."""

import shlex
import sqlite3
import sys
from pathlib import Path

import pytest

from umbel.server.store import Store

EXPERIMENT = """
from umbel import *
from umbel.data import *
import numpy as np
experiment = Experiment(name="bad", model=build_model, population=Partitioned({population}, clients=4),
                        strategy=FedAvg(), sampler=FixedCohort(2), rounds=2, local=Local(learning_rate={rate}))
"""
MODEL = """
def build_model():
    import keras
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
"""


def write(name, model=MODEL, population="Digits()", rate="0.1"):
    Path(name).write_text(model + EXPERIMENT.format(population=population, rate=rate))


def refused(result, status, *parts):
    found, output, errors = result
    assert found == status, errors
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith("umbel: ")
    for part in parts:
        assert part in errors


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("run digits_fedavgg", ["unknown experiment", "did you mean 'digits_fedavg'?"]),
        ("run nothing.py", ["there is no file", "nothing.py"]),
        ("run tinny.py", ["there is no file", "did you mean tiny.py?"]),
        ("run tiny", ["unknown experiment 'tiny': did you mean the file tiny.py?"]),
        ("run ..", [".. is no Python file"]),
        ("run ./", ["is a folder"]),
        ("run .", [". is no Python file"]),
        ("run ''", ["unknown experiment ''"]),
        ("run --plot /proc/rounds.png", ["cannot write plot='/proc/rounds.png'"]),
        ("run --set rouns=3", ["unknown key 'rouns'", "did you mean 'rounds'?"]),
        ("run --set local.epochs=two", ["expected local.epochs=two to be float or int"]),
        ("run --set rounds", ["expected key=value, got 'rounds'"]),
        ("run --seed -1", ["expected seed=-1"]),
        ("run --clients 5000", ["clients=5000", "1437 examples"]),
        ("run --workers 0", ["expected workers=0"]),
        ("run mnist_2nn --compile fast", ["'--compile'", "'fast'"]),
        ("run --runtime spark", ["'--runtime'", "'spark'"]),
        ("run --runtime flower --workers 2", ["--workers"]),
        ("run --bogus", ["No such option"]),
        ("run one two", ["two"]),
        ("walk", ["No such command 'walk'"]),
        ("run --plot rounds.gif", ["rounds.gif", ".png, .svg or .pdf"]),
        ("run --plot tiny.py/rounds.png", ["cannot make the folder"]),
        ("run shakespeare_lstm", ["shakespeare.txt", "UMBEL_DATA"]),
        ("run --store nowhere", ["'nowhere' is not a database URL"]),
        ("run --resume latest", ["does not exist"]),
        ("runs", ["does not exist"]),
        ("plot", ["does not exist"]),
    ],
)
def test_bad_words_are_refused_before_there_is_a_store(here, words, parts, monkeypatch):
    monkeypatch.delitem(sys.modules, "umbel.experiments.shakespeare_lstm", raising=False)  # another test's has its data
    refused(here(*shlex.split(words)), 2, *parts)
    assert not Path("umbel.db").exists() or words == "run --workers 0"


def test_files_that_are_no_experiment_are_refused(here):
    Path("empty.py").write_text("x = 1\n")
    Path("broken.py").write_text("x = 1\nx +\n")
    Path("failing.py").write_text("x = 1\n1 / 0\n")
    refused(here("run", "empty.py"), 2, "empty.py defines no `experiment`")
    refused(here("run", "broken.py"), 2, "broken.py, line 2: SyntaxError")
    refused(here("run", "failing.py"), 2, "failing.py, line 2: ZeroDivisionError")


def test_models_and_data_that_do_not_fit_are_refused(here):
    write("uncompiled.py", "def build_model():\n    import keras\n    return keras.Sequential([keras.Input((64,))])\n")
    write("labels.py", MODEL.replace("Dense(10)", "Dense(9)"))
    write("shape.py", MODEL.replace("(64,)", "(65,)"))
    refused(here("run", "uncompiled.py", "-q"), 2, "build_model() is not compiled")
    refused(here("run", "labels.py", "-q"), 2, "label 9 is out of range", "9 outputs")
    refused(here("run", "shape.py", "-q"), 2, "does not train on an example of x: float32[64]")


PARTS = """
from umbel import *
from umbel.data import *
class Short(FedAvg):
    def update(self, state, params, mean):
        return state, params[:3]
class Nothing(FedAvg):
    def update(self, state, params, mean):
        pass
class Opaque(FedAvg):
    def init(self, params):
        return object()
x, y, _ = Digits().load()
parts = dict(name="bad", model=build_model, population=Partitioned((x, y), clients=4), strategy=FedAvg(),
             sampler=FixedCohort(2), rounds=2, local=Local(learning_rate=0.1))
"""
MISTAKES = {
    "test": ("test=(x[:, :9], y)", "does not fit a test example of x: float32[9]"),
    "validation": ("validation=Partitioned((x[:, :9], y), clients=4)", "does not fit a validation example"),
    "labels": ("validation=Partitioned((x, y + 5), clients=4)", "validation: label 14 is out of range"),
    "builder": ("model=lambda: undefined", "NameError: name 'undefined' is not defined"),
    "local": ("local={'epochs': 1}", "expected local={'epochs': 1} to be a value such as Local("),
    "callback": ("test=(x, y), callbacks=(StopAt('test_los', 0.1),)", "'test_los'", "did you mean 'test_loss'?"),
    "hidden": (
        "weighting='uniform', secure_aggregation=SecureSum(limit=2.0, minimum_clients=8)",
        "needs 8 clients; a round has 2",
    ),
    "population": ("sampler=FixedCohort(5)", "expected sampler.size=5 ≤ 4 clients"),
    "plan": (
        "sampler=None, plan=PrivacyPlan(epsilon=8, delta=0.01, rounds=2, population=50, sampling_rate=1, clip_norm=1)",
        "expected plan.population=50 to be the 4 clients there are",
    ),
    "arguments": (
        "sampler=type('S', (), {'sample': lambda self: [1]})()",
        "expected S.sample",
        "(clients, sizes, key)",
    ),
    "stranger": ("sampler=type('S', (), {'sample': lambda *_: [1, 99]})()", "S chose [99], not among the 4 clients"),
    "twice": ("sampler=type('S', (), {'sample': lambda *_: [1, 1]})()", "S chose a client twice: [1, 1]"),
    "nobody": ("sampler=type('S', (), {'sample': lambda *_: None})()", "S chose None; expected a list"),
    "shape": ("strategy=Short()", "Short.update() returned params of shape (3,)"),
    "nothing": ("strategy=Nothing()", "Nothing.update() returned None"),
    "state": ("strategy=Opaque()", "init(): cannot store a object"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_that_no_round_needs_leaves_no_run(here, mistake):
    change, *parts = MISTAKES[mistake]
    Path("bad.py").write_text(MODEL + PARTS + f"experiment = Experiment(**(parts | dict({change})))\n")
    refused(here("run", "bad.py", "-q"), 2, *parts)
    if Path("umbel.db").exists():
        with Store.open("sqlite:///umbel.db") as store:
            assert store.runs() == []
            assert store.check() == []


def test_a_file_of_several_experiments_says_how_to_name_them(here):
    for text, part in (
        ("one = two = Experiment(**parts)", "defines one and two, and no `experiment`"),
        ("experiments = [Experiment(**parts)]", "expected experiments = {name: Experiment(…)}"),
        ("experiments = {}", "defines experiments={}"),
    ):
        Path("bad.py").write_text(MODEL + PARTS + text)
        refused(here("run", "bad.py"), 2, part)


def test_a_run_that_cannot_go_on_ends_with_status_3_and_keeps_its_rounds(here):
    write("diverging.py", rate="1e38")
    refused(here("run", "diverging.py", "-q"), 3, "non_finite", "rounds are kept", "umbel run diverging.py --resume")
    few = ("--set", "population.clients=2")
    refused(here("run", "tiny.py", "-q", *few), 2, "expected sampler.size=3 ≤ 2 clients")
    with Store.open("sqlite:///umbel.db") as store:
        assert [run.state for run in store.runs()] == ["stopped"]
        assert store.check() == []


def test_a_changed_experiment_is_not_resumed(here):
    assert here("run", "tiny.py", "-q", "--set", "rounds=1")[0] == 0
    again = ("run", "tiny.py", "-q", "--resume", "latest", "--set", "rounds=2")
    text = Path("tiny.py").read_text()
    Path("tiny.py").write_text(text.replace("batch_size=32", "batch_size=8"))
    refused(here(*again), 2, "local.batch_size was 32, is now 8")
    Path("tiny.py").write_text(text.replace("Dense(10", "Dense(100"))
    refused(here(*again), 2, "model")
    refused(here("run", "--resume", "latest"), 2, "'tiny'", "name its file")
    Path("tiny.py").write_text(text)
    assert here(*again)[0] == 0


def test_a_store_of_something_else_is_left_as_it_is(here):
    Path("text.db").write_text("this is no database\n" * 100)
    with sqlite3.connect("other.db") as other:
        other.execute("create table recipes (cake text)")
    refused(here("run", "tiny.py", "--store", "sqlite:///text.db"), 2, "text.db")
    refused(here("run", "tiny.py", "--store", "sqlite:///other.db"), 2, "other.db")
    assert Path("text.db").read_text() == "this is no database\n" * 100
    with sqlite3.connect("other.db") as other:
        assert other.execute("select name from sqlite_master").fetchall() == [("recipes",)]


def test_a_failing_client_ends_with_status_1_and_debug_names_the_batch(here):
    loss = """
def loss(y, logits):
    import keras, tensorflow as tf
    tf.debugging.assert_less(y, tf.constant(9, y.dtype), "no nines")
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
"""
    # The model is tried on the first examples before the run: nines are last, and each client has some.
    model = MODEL.replace("keras.losses.SparseCategoricalCrossentropy(from_logits=True)", "loss")
    last = "Arrays(*(part[np.argsort(Digits().load().y)] for part in Digits().load()[:2]))"
    write("nines.py", loss + model, population=last)
    refused(here("run", "nines.py", "-q"), 1, "client", "; --debug names the batch")
    status, _, errors = here("run", "nines.py", "-q", "--debug")
    assert status == 1
    assert "Traceback" in errors
    assert ", batch " in errors.splitlines()[-1]
