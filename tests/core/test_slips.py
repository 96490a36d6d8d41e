"""The usual slips are ConfigErrors that show the value and how it is written, before anything is opened."""

from pathlib import Path

import numpy as np
import pytest

from federations import federation
from umbel import (
    Agnostic,
    Clip,
    ConfigError,
    Cosine,
    Deadline,
    Devices,
    FedAvg,
    FineTune,
    FixedCohort,
    KeepBest,
    Local,
    PerExample,
    PrivacyPlan,
    Progress,
    Proximal,
    SecureSum,
    Simulation,
    compare,
    cross_validate,
    data,
    override,
    run,
)

X, Y = np.zeros((4, 6), np.float32), np.zeros(4, np.int64)
SLIPS = {
    "name": [3, None, "two words"],
    "model": [3, "resnet", None],
    "population": [[(X, Y)], (X, Y), X, {"a": (X, Y)}, data.Digits("train"), data.PerClient, None, 5],
    "strategy": ["fedavg", FedAvg, [FedAvg()]],
    "sampler": [10, 0.1, "all", FixedCohort, [0, 1]],
    "local": [{}, {"epochs": 1}, Local, None, 1],
    "rule": ["fedprox", Proximal, 1, FedAvg()],
    "transforms": [[Clip(1.0)], Clip, None, "clip"],
    "codec": ["topk", 0.1],
    "plan": ["dp", PrivacyPlan, {"epsilon": 1}, 8.0],
    "aggregator": [None, "median"],
    "secure_aggregation": ["secure", SecureSum, True],
    "rounds": [0, 2.5, "3", None, True],
    "seed": [-1, None, "a"],
    "test": [data.Digits, "test.csv", X, {"x": X, "y": Y}, 3, data.PerClient([(X, Y)])],
    "validation": [(X, Y), [(X, Y)], data.Digits("test")],
    "personal": ["dense", ("(",), (1,), None],
    "fine_tune": [2, True, FineTune, {"epochs": 1}],
    "weighting": ["size", 1],
    "reweighting": [Agnostic, "fair"],
    "min_clients": [0, "1", None],
    "callbacks": [KeepBest("test_loss"), KeepBest, [KeepBest], (print,), None],
    "devices": [3, Devices, "phone", [1]],
    "deadline": [60, Deadline],
}
LOCAL_SLIPS = {
    "epochs": ["3", 0, -0.5, None, True],
    "batch_size": ["8", 0, True],
    "learning_rate": ["0.1", 0, float("nan"), Cosine, print, True],
    "shuffle": ["no", None, 1],
    "per_example": [1, True, PerExample],
}


@pytest.mark.parametrize("field", SLIPS)
def test_a_field_of_another_kind_is_refused(field):
    for value in SLIPS[field]:
        with pytest.raises(ConfigError, match=rf"^expected .*\b{field}=") as caught:
            federation(**{field: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", LOCAL_SLIPS)
def test_a_setting_of_local_of_another_kind_is_refused(field):
    for value in LOCAL_SLIPS[field]:
        with pytest.raises(ConfigError, match=f"^expected {field}="):
            Local(**{field: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiment": "digits_fedavg"}, r"expected experiment='digits_fedavg' to be an Experiment"),
        ({"experiment": [federation()]}, r"expected experiment=\["),
        ({"experiment": Simulation()}, r"expected experiment=Simulation"),
        ({"runtime": Simulation}, r"expected runtime="),
        ({"store": Path("runs.db")}, r"expected store=.*sqlite:///runs\.db"),
        ({"store": True}, r"expected store=True"),
        ({"resume": True, "store": "sqlite:///runs.db"}, r"expected resume=True to be a run's id"),
        ({"resume": "latest"}, r"cannot resume run 'latest' without a store"),
        ({"watchers": Progress()}, r"expected watchers=.* to be a list"),
        ({"watchers": [Progress]}, r"expected watchers=.* of values with on_start"),
        ({"watchers": [print]}, r"expected watchers=.* of values with on_start"),
    ],
)
def test_an_argument_of_another_kind_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"experiment": federation(), "runtime": Simulation()} | arguments
    with pytest.raises(ConfigError, match=f"^{message}"):
        run(settings.pop("experiment"), settings.pop("runtime"), **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": FixedCohort(9)}, r"expected sampler\.size=9 ≤ 8 clients"),
        ({"min_clients": 5}, r"expected min_clients=5 ≤ 4 clients of a round"),
        ({"local": Local(epochs=[1, 2])}, r"expected 8 numbers in local\.epochs"),
    ],
)
def test_what_no_round_could_do_is_refused_before_the_first(changes, message):
    with pytest.raises(ConfigError, match=message):
        run(federation(**changes), Simulation(workers=1))


def test_one_in_place_of_several_is_refused():
    one = federation()
    for several in (one, "digits_fedavg", ["digits_fedavg"], {"a": 1}):
        with pytest.raises(ConfigError, match=r"^expected experiments?="):
            compare(several, Simulation())
    for folds in (5, "5", [one.population, one.population], []):
        with pytest.raises(ConfigError, match=r"^expected folds="):
            cross_validate(one, Simulation(), folds)
    for assignments in ("rounds=3", {"rounds": 3}):
        with pytest.raises(ConfigError, match=r"^expected assignments="):
            override(one, assignments)
