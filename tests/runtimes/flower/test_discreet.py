"""A client's whole reply, over a grid inside this process: no words of what is wrong with its examples leave it."""

import contextlib

import numpy as np
import pytest

from federations import CLASSES, FEATURES, blobs
from grids import ProcessGrid
from umbel import RunStopped, run
from umbel.clients.policy import Policy
from umbel.core.reading.loading import load_experiment
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.runtime import FlowerRuntime

FILE = f"""
import numpy as np
from federations import dense, federation
from umbel import FixedCohort, Local, data
from umbel.privacy import LocalPlan, PerExamplePlan

like = (np.zeros((1, {FEATURES}), "float32"), np.zeros(1, "int32"))
numbers = dict(epsilon=1.0, delta=1e-4, rounds=1, population=2, clip_norm=1.0)
base = federation(population=data.OnDevice(2, like, most=100), sampler=FixedCohort(2), test=None, rounds=1)
plans = {{
    "local": LocalPlan(**numbers),
    "examples": PerExamplePlan(**(numbers | dict(delta=1e-3)), batch_size=5, smallest_client=20, steps=2),
}}
experiments = {{
    name: federation(
        name=name, population=base.population, plan=plan, sampler=None, weighting=None, test=None, rounds=1
    )
    for name, plan in plans.items()
}} | {{"open": base}}
experiments["many_steps"] = federation(
    name="many_steps", population=base.population, plan=plans["local"], sampler=None, weighting=None, test=None,
    rounds=1, local=Local(steps=50, batch_size=5, learning_rate=0.1),
)
"""


def replies(tmp_path, monkeypatch, name, arrays):
    """The contents that two clients answered a round with whose file has these arrays."""
    (tmp_path / "mine.py").write_text(FILE)
    np.savez(tmp_path / "mine.npz", **arrays)
    monkeypatch.setenv("UMBEL_CLIENT_DATA", str(tmp_path / "mine.npz"))
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "home"))
    reference, contents = f"{tmp_path / 'mine.py'}:{name}", []
    keep = {client: lambda content: contents.append(content) or content for client in (0, 1)}
    with contextlib.suppress(RunStopped):  # where all fail, and say so
        run(load_experiment(reference), FlowerRuntime(ProcessGrid(reference, 2, tamper=keep)))
    return contents


@pytest.mark.parametrize("name", ["local", "examples"])
def test_no_words_of_an_error_leave_a_client(name, tmp_path, monkeypatch):
    x, y = blobs(20)
    usual = replies(tmp_path, monkeypatch, name, {"x": x, "y": y})
    y[7] = CLASSES + 8
    contents = replies(tmp_path, monkeypatch, name, {"x": x, "y": y})
    assert len(usual) == len(contents) == 2
    assert not any(wire.unpack_failure(content, 0) for content in contents)
    assert {tuple(content) for content in usual} == {tuple(content) for content in contents}
    sizes = [[len(array.data) for array in content["vectors"].values()] for content in usual + contents]
    assert all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize("name", ["local", "examples", "open"])
def test_examples_that_cannot_be_read_are_not_described(name, tmp_path, monkeypatch):
    x, _ = blobs(20)
    found = [wire.unpack_failure(one, 0) for one in replies(tmp_path, monkeypatch, name, {"x": x[:, :2], "y": x})]
    if name == "local":
        assert found == [None, None]  # noise alone, as of any client
    else:
        assert all(("float32" in failure.detail) == (name == "open") for failure in found)


def test_a_policy_that_refuses_a_clients_own_number_of_examples_tells_nobody(tmp_path, monkeypatch):
    """50 steps are two passes over 125 examples, and more over fewer: a refusal would answer how many there are."""
    x, y = blobs(20)
    usual = replies(tmp_path, monkeypatch, "many_steps", {"x": x, "y": y})
    monkeypatch.setattr("umbel.runtimes.flower.client._policy", lambda: Policy(max_epochs=2))
    refused = replies(tmp_path, monkeypatch, "many_steps", {"x": x, "y": y})
    assert {tuple(content) for content in usual} == {tuple(content) for content in refused}
    assert not any(wire.unpack_failure(content, 0) for content in refused)
    monkeypatch.setattr("umbel.runtimes.flower.client._policy", lambda: Policy(max_epochs=1))
    (failure, _) = [wire.unpack_failure(one, 0) for one in replies(tmp_path, monkeypatch, "open", {"x": x, "y": y})]
    assert failure.reason == "policy"  # what follows from the experiment alone is said
