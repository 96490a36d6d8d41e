"""What each client measures: reachable where nothing hides it, and history's other forms lose nothing."""

import json

import numpy as np
import pytest

from federations import federation
from simulations import play
from umbel import ConfigError, EachClient, IncompatibleError, KeepBest, PrivacyPlan, SecureSum, StopAt, data
from umbel.cli.console import to_json
from umbel.server.store import Store

VALIDATION = federation().population


def test_values_are_those_of_each_client_alone():
    each = EachClient()
    history = play(federation(validation=VALIDATION, rounds=4, evaluate_every=2), watchers=[each])
    assert [values.round for values in each.evaluations] == [2, 4]
    last = history.clients
    assert last is each.evaluations[-1]
    assert last.clients.tolist() == list(range(8))
    sizes = VALIDATION.sizes()
    pooled = (last.values["validation_loss"] * sizes).sum() / sizes.sum()
    assert history.column("validation_loss")[-1] == pytest.approx(pooled, rel=1e-5)
    assert np.median(last.values["validation_accuracy"]) == history.column("validation_accuracy_p50")[-1]
    one = federation(validation=data.PerClient([tuple(VALIDATION.examples(3))[:2]]), rounds=4, evaluate_every=4)
    assert play(one).clients.values["validation_loss"] == pytest.approx(last.values["validation_loss"][3])
    frame = each.to_frame()
    assert frame.shape == (16, 2)
    assert frame.loc[(4, 3), "validation_loss"] == last.values["validation_loss"][3]


def test_they_are_refused_where_something_is_to_hide_them():
    hidden = federation(validation=VALIDATION, secure_aggregation=SecureSum(limit=100.0), weighting="uniform", rounds=1)
    with pytest.raises(IncompatibleError, match="hide what single clients say"):
        play(hidden, watchers=[EachClient()])
    played = play(hidden)
    with pytest.raises(IncompatibleError, match="which are to hide it"):
        _ = played.clients
    measured = [name for name in played.rounds[-1].metrics if name.startswith("validation_")]
    assert measured == ["validation_loss", "validation_accuracy"]  # no percentile, which is one client's value
    plan = PrivacyPlan(epsilon=8.0, delta=1e-3, rounds=1, population=8, sampling_rate=0.5, clip_norm=1.0)
    with pytest.raises(IncompatibleError, match="which are to hide it"):
        _ = play(federation(plan=plan, sampler=None, weighting=None, rounds=1)).clients
    with pytest.raises(ConfigError, match="no clients were evaluated"):
        _ = play(federation(rounds=1)).clients


def test_a_frame_has_what_any_round_measured():
    history = play(federation(validation=VALIDATION, rounds=5, evaluate_every=2))
    frame = history.to_frame()
    assert {name for record in history.rounds for name in record.metrics} < set(frame.columns)
    for name in ("validation_accuracy_p10", "test_accuracy", "train_loss"):
        np.testing.assert_array_equal(frame[name].to_numpy(float), history.column(name))


def test_the_last_round_is_evaluated_also_where_a_callback_ends_the_run():
    stop = StopAt("train_loss", 100.0)
    history = play(federation(rounds=6, evaluate_every=4, callbacks=(stop,)))
    assert len(history.rounds) == 1
    assert "test_loss" in history.rounds[-1].metrics


def test_a_model_version_has_the_metrics_of_its_own_round(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    history = play(federation(rounds=3, callbacks=(KeepBest("test_loss", mode="max"),)), store=url)
    worst = int(np.argmax(history.column("test_loss")))
    assert worst < 2
    with Store.open(url) as store:
        assert store.models.get("small", history.model_version)[0].metrics == history.rounds[worst].metrics


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.5, None])
def test_numbers_that_json_lacks_survive_it(value):
    read = json.loads(to_json({"test_loss": value}), parse_constant=pytest.fail)["test_loss"]
    np.testing.assert_array_equal(np.array(read, float), np.array(value, float))
