"""A builder's fingerprint changes with whatever it reads, and with nothing else; an array's digest with its numbers."""

import functools
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
own = types.ModuleType("own")
own.RATE, own.OTHER = 0.1, 1


@dataclass
class Config:
    units: int = 4


CONFIG = Config()


def two_calls_down():
    return UNITS


def called():
    return two_calls_down()


class Model:
    def step(self):
        return SETTINGS["units"], SPACE.rate


def build():
    return called(), Model, ARRAY, CONFIG.units, own.RATE


def change(place, name, value):
    return lambda patched: patched.setitem(place, name, value)


CHANGES = {
    "a global read two calls down": change(globals(), "UNITS", 5),
    "a dictionary changed in place": change(SETTINGS, "units", [4, 9]),
    "a namespace": lambda patched: patched.setattr(SPACE, "rate", 0.2),
    "a field of a value": lambda patched: patched.setattr(CONFIG, "units", 5),
    "an attribute of a module of the user's": lambda patched: patched.setattr(own, "RATE", 0.2),
    "a method": lambda patched: patched.setattr(Model, "step", lambda self: UNREAD + 1),
    "a function that is called": change(globals(), "two_calls_down", lambda: UNITS + 0),
}


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
