"""An object of a user's own class is described by its attributes and its source: equal in every process, else not."""

import dataclasses
import enum
import random
import subprocess
import sys
import threading

import numpy as np
import pytest

from umbel.core.reading.description import describe
from umbel.core.reading.loading import load_experiment

SAMPLER = '''
import numpy as np
from federations import federation

class First:
    """Takes the first clients."""

    def __init__(self, size=2, **more):
        self.size = size
        vars(self).update(more)

    def sample(self, clients, sizes, key):
        return sorted(clients)[: self.size]

experiment = federation(sampler=First())
'''


def described(value):
    flat = {}
    describe("it", value, flat)
    return flat


@pytest.fixture
def loaded(tmp_path):
    """What an experiment's file describes, its text changed."""

    def load(*changes):
        text = SAMPLER
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mine.py"
        path.write_text(text)
        return load_experiment(str(path)).describe()

    return load


def test_a_plain_class_is_described_by_its_attributes_and_methods(loaded):
    flat = {path: text for path, text in loaded().items() if path.startswith("sampler")}
    assert flat.keys() == {"sampler", "sampler.size", "sampler.__init__()", "sampler.sample()"}
    assert (flat["sampler"], flat["sampler.size"]) == ("First", "2")
    assert flat["sampler.sample()"].startswith("source ")


def test_another_process_describes_it_alike(loaded, tmp_path):
    here = loaded()
    code = "from umbel.core.reading.loading import load_experiment; print(load_experiment('mine.py').describe())"
    path = ":".join(sys.path)
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize(
    "change",
    [
        ('"""Takes the first clients."""', '"""Takes those that come first."""'),
        ("return sorted(clients)[: self.size]", "# The first ones.\n        return sorted(clients)[:self.size]"),
        ("def sample", "\n\n    def sample"),
    ],
)
def test_words_and_layout_are_not_compared(loaded, change):
    assert loaded(change) == loaded()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (("sorted(clients)[:", "sorted(clients)[-"), "sampler.sample()"),
        (("size=2", "size=3"), "sampler.size"),
        (("First()", "First(names=['a'])"), "sampler.names"),
        (("First()", "First(rates=np.ones(3))"), "sampler.rates"),
        (("    def sample", "    def more(self): ...\n    def sample"), "sampler.more()"),
    ],
)
def test_what_it_does_and_holds_is_compared(loaded, change, path):
    before, now = loaded(), loaded(change)
    assert before != now
    assert before.get(path) != now.get(path)


def test_a_file_that_was_edited_since_is_not_taken_for_the_code_that_runs(tmp_path):
    (tmp_path / "mine.py").write_text(SAMPLER)
    experiment = load_experiment(str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text(SAMPLER.replace("sorted(clients)[:", "sorted(clients)[-"))
    assert experiment.describe()["sampler.sample()"].startswith("code of Python ")


class Base:
    def sample(self):
        return super().__init__()


class Derived(Base):
    __slots__ = ("slot",)

    @property
    def size(self):
        return 3

    @staticmethod
    def doubled(number):
        return 2 * number

    def __hidden(self):
        return self.__class__.__hidden


@dataclasses.dataclass(frozen=True)
class Value:
    size: int = 1

    def sample(self):
        return {"a", "b", self.size}


class Kind(enum.Enum):
    A = 1


def test_every_method_has_its_source():
    flat = described(Derived())
    assert flat.keys() == {"it", "it.sample()", "it.size()", "it.doubled()", "it._Derived__hidden()"}
    assert all(text.startswith("source ") for path, text in flat.items() if path != "it")
    assert described(Value()) == {"it": "Value", "it.size": "1", "it.sample()": described(Value())["it.sample()"]}


def test_code_without_a_file_is_compared_too():
    def made(text):
        names = {"__name__": "nowhere"}
        exec(f"class Made:\n    def sample(self): return {text}", names)
        return described(names["Made"]())

    assert made("1") == made("1") != made("2")
    assert made("x in {'a', 'b'}") == made("x in {'b', 'a'}")


class Held:
    def __init__(self, held):
        self.held = held


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: np.random.default_rng(0), lambda: np.random.default_rng(1)),
        (lambda: np.random.RandomState(0), lambda: np.random.RandomState(1)),
        (lambda: random.Random(0), lambda: random.Random(1)),
        (lambda: {"b", "a"}, lambda: {"a"}),
        (lambda: Held(1), lambda: Held(2)),
        (lambda: Kind.A, lambda: None),
        (threading.Lock, lambda: None),
    ],
)
def test_what_it_holds_is_described_without_its_address(make, other):
    assert described(Held(make())) == described(Held(make())) != described(Held(other()))
    assert "0x" not in str(described(Held(make())))


def test_an_object_that_holds_itself_ends():
    one = Held(None)
    one.held = [one]
    assert described(one)["it.held.0"] == "itself"
