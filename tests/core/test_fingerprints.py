"""A builder's fingerprint changes with whatever it reads, and with nothing else; an array's digest with its numbers."""

import argparse
import collections
import functools
import sys
import threading
import types
from dataclasses import dataclass

import numpy as np
import pytest

from umbel.core.reading.fingerprints import digest_of, fingerprint

UNITS = 4
SETTINGS = {"units": [4, 8]}
SPACE = types.SimpleNamespace(rate=0.1)
ARRAY = np.arange(4.0)
UNREAD = 1
ARGUMENTS = argparse.Namespace(units=4)  # of an installed class: of Python's own
QUEUE = collections.deque([1, 2])
own = types.ModuleType("own")
own.RATE, own.OTHER = 0.1, 1
own.inner = types.ModuleType("inner")
own.inner.DEPTH = 2


@dataclass
class Config:
    units: int = 4


CONFIG = Config()


class Slotted:
    __slots__ = ("units",)

    def __init__(self, units):
        self.units = units


SLOTTED = Slotted(4)


def two_calls_down():
    return UNITS


@functools.cache
def remembered():
    return two_calls_down()


def called():
    return two_calls_down()


class Model:
    def step(self):
        return SETTINGS["units"], SPACE.rate


def build():
    from own_settings import WIDTH  # what the builder itself imports

    return called(), Model, ARRAY, CONFIG.units, own.RATE, own.inner.DEPTH, ARGUMENTS.units, QUEUE, SLOTTED.units, WIDTH


def build_with_memory():
    return remembered()


def change(place, name, value):
    return lambda patched: patched.setitem(place, name, value)


CHANGES = {
    "a global read two calls down": change(globals(), "UNITS", 5),
    "a dictionary changed in place": change(SETTINGS, "units", [4, 9]),
    "a namespace": lambda patched: patched.setattr(SPACE, "rate", 0.2),
    "a field of a value": lambda patched: patched.setattr(CONFIG, "units", 5),
    "an attribute of a module of the user's": lambda patched: patched.setattr(own, "RATE", 0.2),
    "an attribute of a module in a module": lambda patched: patched.setattr(own.inner, "DEPTH", 3),
    "what the builder imports itself": lambda patched: patched.setattr(sys.modules["own_settings"], "WIDTH", 9),
    "parsed arguments": lambda patched: patched.setattr(ARGUMENTS, "units", 8),
    "a slot": lambda patched: patched.setattr(SLOTTED, "units", 8),
    "a method": lambda patched: patched.setattr(Model, "step", lambda self: UNREAD + 1),
    "a function that is called": change(globals(), "two_calls_down", lambda: UNITS + 0),
}


@pytest.fixture(autouse=True)
def settings():
    module = types.ModuleType("own_settings")
    module.WIDTH = 4
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "own_settings", module)
        yield


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_builder_reads_changes_its_fingerprint(what, monkeypatch):
    before = fingerprint(build)
    assert fingerprint(build) == before
    CHANGES[what](monkeypatch)
    assert fingerprint(build) != before
    monkeypatch.undo()
    assert fingerprint(build) == before


def test_an_array_changed_in_place_changes_it_too():
    before = fingerprint(build)
    ARRAY[0] = 7
    changed = fingerprint(build)
    ARRAY[0] = 0
    assert changed != before == fingerprint(build)


def test_an_object_changed_in_place_changes_it_too():
    before = fingerprint(build)
    QUEUE.append(3)
    changed = fingerprint(build)
    QUEUE.pop()
    assert changed != before == fingerprint(build)


def test_a_function_behind_a_cache_counts_with_what_it_reads(monkeypatch):
    before = fingerprint(build_with_memory)
    monkeypatch.setitem(globals(), "UNITS", 5)
    assert fingerprint(build_with_memory) != before


def test_what_cannot_be_read_goes_by_its_identity():
    lock, other = threading.Lock(), threading.Lock()
    assert fingerprint([lock]) == fingerprint([lock]) != fingerprint([other])
    nested = []
    for _ in range(5000):
        nested = collections.deque([nested])
    assert fingerprint(nested)


def test_what_it_does_not_read_does_not_change_it(monkeypatch):
    before = fingerprint(build)
    monkeypatch.setitem(globals(), "UNREAD", 2)
    monkeypatch.setattr(own, "OTHER", 2)
    assert fingerprint(build) == before


def test_equal_code_in_a_cell_that_is_run_again_is_equal():
    def make(units, rate=0.1):
        return lambda: (units, rate)

    assert fingerprint(make(3)) == fingerprint(make(3))
    assert fingerprint(make(3)) != fingerprint(make(4))
    assert fingerprint(functools.partial(make, 3)) != fingerprint(functools.partial(make, 4))


def test_a_function_that_calls_itself_has_one():
    def endless(depth):
        return endless(depth - 1) if depth else UNITS

    assert fingerprint(endless) == fingerprint(endless)


@pytest.mark.parametrize(
    "change",
    [lambda x: x / 255, lambda x: -x, lambda x: x + 1, lambda x: x[::-1], lambda x: np.roll(x, 1), np.float32],
    ids=["scaled", "negated", "shifted", "reversed", "rolled", "float32"],
)
def test_an_arrays_digest_sees_what_is_done_to_it(change):
    """Negation above all: sums of words do not see it in pairs."""
    x = np.random.default_rng(0).normal(size=(10, 4))
    assert digest_of(x) == digest_of(x.copy())
    assert digest_of(change(x)) != digest_of(x)


def test_arrays_of_no_numbers_have_a_digest():
    one, other = (np.array([text, "b"], object) for text in ("a", "c"))
    assert digest_of(one) == digest_of(one.copy()) != digest_of(other)
    assert digest_of(np.array(3.0)) != digest_of(np.array(4.0))
