"""A part of a user's own class is resumed as it was, or refused: what it keeps in attributes is in no store."""

import logging

import numpy as np
import pytest

from federations import federation
from umbel import ConfigError, Simulation, run
from umbel.core.types import NOTHING


class Plain:
    """FedAvg, and the first clients, as a class that is no dataclass."""

    def init(self, params):
        return ()

    def broadcast(self, state):
        return NOTHING

    def update(self, state, params, mean):
        return state, params + mean.delta

    def sample(self, clients, sizes, key):
        return sorted(clients)[:3]


class Counting(Plain):
    """Takes other clients in every round, by a count of its own."""

    def __init__(self):
        self.calls = 0

    def sample(self, clients, sizes, key):
        self.calls += 1
        return [self.calls % len(clients)]


class Drawing(Plain):
    """Draws from a generator of its own."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def sample(self, clients, sizes, key):
        return sorted(self.generator.choice(clients, 2, replace=False).tolist())


@pytest.fixture(scope="module")
def simulation():
    return Simulation(workers=1, compile="graph")


def halves(simulation, store, first, second):
    """A run of two rounds, resumed to four; the whole one, with parts of the same kind; the same bits or not."""
    run(federation(rounds=2, **first()), simulation, store=store, watchers=())
    resumed = run(federation(rounds=4, **second()), simulation, store=store, resume="latest", watchers=())
    whole = run(federation(rounds=4, **first()), simulation, watchers=())
    return resumed, whole


def warnings(caplog):
    records = [record for record in caplog.records if record.name == "umbel.server.drift"]
    return [record.getMessage() for record in records if record.levelno == logging.WARNING]


def test_plain_classes_are_resumed_with_the_bits_of_one_run(simulation, tmp_path, caplog):
    def parts():
        return {"strategy": Plain(), "sampler": Plain()}

    resumed, whole = halves(simulation, f"sqlite:///{tmp_path}/runs.db", parts, parts)
    np.testing.assert_array_equal(resumed.params, whole.params)
    assert not warnings(caplog)


@pytest.mark.parametrize(("kind", "path"), [(Counting, "sampler.calls was 2, is now 0"), (Drawing, "generator")])
def test_one_that_changes_itself_is_resumed_only_as_it_was(simulation, tmp_path, caplog, kind, path):
    store, same = f"sqlite:///{tmp_path}/runs.db", kind()
    with pytest.raises(ConfigError, match=path):
        halves(simulation, store, lambda: {"sampler": same}, lambda: {"sampler": kind()})
    (warning,) = warnings(caplog)
    assert "changes while the run goes on" in warning
    resumed = run(federation(rounds=4, sampler=same), simulation, store=store, resume="latest", watchers=())
    whole = run(federation(rounds=4, sampler=kind()), simulation, watchers=())
    np.testing.assert_array_equal(resumed.params, whole.params)
