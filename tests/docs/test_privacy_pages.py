"""The pages on privacy: every test they name is there, and their code runs."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from optional import HAS_TENSEAL
from umbel import Simulation, data, run

ROOT = Path(__file__).parents[2]
PITFALLS = (ROOT / "docs" / "privacy-pitfalls.md").read_text("utf-8")
THREATS = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PITFALLS + THREATS)))


def test_every_pitfall_names_a_test_or_whom_it_is_left_to():
    rows = [line for line in PITFALLS.splitlines() if line.startswith("| ") and not line.startswith("| pitfall")]
    assert len(rows) > 40
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] in ("high", "medium", "low"), row
        assert "::test_" in cells[-1] or "*you*" in cells[-1], row


def test_every_plan_and_aggregation_has_a_row_in_the_threat_model():
    rows = [line for line in THREATS.splitlines() if line.startswith("| ")]
    for name in ("PrivacyPlan", "FixedCohortPlan", "LocalPlan", "PerExamplePlan", "DistributedPlan", "SecureSum"):
        assert any(f"`{name}`" in row.split("|")[1] for row in rows), name


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_tests_that_are_named_exist(path, name):
    assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text("utf-8"), re.M)


PRIVACY = (ROOT / "docs" / "privacy.md").read_text("utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PRIVACY, re.S)


def build_model():
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(), loss, metrics=["accuracy"])
    return model


def test_there_is_a_snippet_for_each_protection():
    assert len(SNIPPETS) == 7
    for name in ("PrivacyPlan", "LocalPlan", "DistributedPlan", "SecureSum", "Homomorphic", "PerExamplePlan"):
        assert any(f"{name}(" in snippet for snippet in SNIPPETS)


def name_of(snippet):
    return re.search(r'name="(\w+)"', snippet)[1]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=name_of)
def test_snippets_run(snippet):
    if name_of(snippet) == "encrypted" and not HAS_TENSEAL:
        pytest.skip("needs tenseal")
    population = data.Partitioned(data.Digits("train"), by=data.Iid(), clients=100)
    names = {"build_model": build_model, "population": population, "test": data.Digits("test")}
    exec(snippet, names)
    experiment = dataclasses.replace(names["experiment"], rounds=2)
    history = run(experiment, Simulation(workers=1, compile="graph"))
    assert np.isfinite(history.params).all()
    if experiment.plan is not None:
        assert 0 < history.final()["privacy"]["epsilon"] <= experiment.plan.epsilon
    if experiment.secure_aggregation is not None and experiment.secure_aggregation.metrics:
        assert history.column("train_saturated").max() == 0
