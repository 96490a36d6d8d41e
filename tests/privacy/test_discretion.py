"""What leaves a client under a promise is of one kind and length, whatever its examples are."""

import dataclasses

import keras
import numpy as np
import pytest

from federations import CLASSES, FEATURES, blobs, dense, federation
from umbel import Chain, FedAvg, FixedCohort, Local, data
from umbel.clients import round as round_
from umbel.clients.policy import Refused
from umbel.clients.round import train_client
from umbel.clients.tensorflow.engine import TensorFlowEngine
from umbel.core.examples import Examples
from umbel.core.random import Key
from umbel.core.types import NOTHING, Broadcast, ClientUpdate, Failure
from umbel.privacy import DistributedPlan, LocalPlan, PerExamplePlan, PrivacyPlan, SecureSum
from umbel.privacy.distributed import grid_limit
from umbel.strategies import Ditto, Scaffold, TopK

CLIENTS, EXAMPLES = 4, 12
BUDGET = {"epsilon": 5.0, "delta": 1e-4, "rounds": 3, "population": CLIENTS, "clip_norm": 1.0}
LIMIT = grid_limit(100.0)


@keras.saving.register_keras_serializable("tests")
class Checking(keras.layers.Layer):
    """A layer that raises for an example it does not like, as an assertion in a user's model does."""

    def call(self, x):
        import tensorflow as tf

        with tf.control_dependencies([tf.debugging.assert_less(x, 1e3, message="a value of 1000")]):
            return tf.identity(x)


def checking():
    model = keras.Sequential([keras.Input((FEATURES,)), Checking(), keras.layers.Dense(CLASSES)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def promised(**changes):
    x, y = blobs(CLIENTS * EXAMPLES)
    population = data.PerClient([(x[i::CLIENTS], y[i::CLIENTS]) for i in range(CLIENTS)])
    settings = {"transforms": Chain(), "test": None, "local": Local(batch_size=4, learning_rate=0.1)}
    if "plan" in changes:
        settings["sampler"] = None
    return federation(population=population, **(settings | {"weighting": "uniform"} | changes))


def distributed():
    return DistributedPlan(cohort=CLIENTS, survivors_floor=CLIENTS, limit=LIMIT, **BUDGET)


def examples():
    return PerExamplePlan(batch_size=4, smallest_client=EXAMPLES, steps=3, **(BUDGET | {"delta": 1e-3}))


PROMISES = {
    "local": lambda: promised(plan=LocalPlan(**BUDGET)),
    "local, encoded": lambda: promised(plan=LocalPlan(**BUDGET), codec=TopK(0.5)),
    "local, SCAFFOLD": lambda: promised(plan=LocalPlan(**BUDGET), strategy=Scaffold()),
    "local, own models": lambda: promised(plan=LocalPlan(**BUDGET), strategy=FedAvg(), rule=Ditto(0.1)),
    "distributed": lambda: promised(
        plan=distributed(),
        secure_aggregation=SecureSum(LIMIT, metrics=(), minimum_clients=CLIENTS),
    ),
    "examples": lambda: promised(plan=examples()),
    "hidden": lambda: promised(secure_aggregation=SecureSum(1.0), sampler=FixedCohort(4)),
    "hidden, weighted": lambda: promised(
        secure_aggregation=SecureSum(1.0, max_weight=100), sampler=FixedCohort(4), weighting="examples"
    ),
}


def bad_examples(x, y):
    """One example that is not finite, one whose gradient is not, one that TensorFlow refuses, one the model does."""
    yield "nan", dense, _with(x, 3, np.nan), y
    yield "overflow", dense, _with(x, 3, 3e30), y
    yield "label", dense, x, _with(y, 3, CLASSES + 8)
    yield "asserted", checking, _with(x, 3, 2e3), y


def _with(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


def live(experiment, model):
    """A real device's worker."""
    return TensorFlowEngine(dataclasses.replace(experiment, model=model), is_live=True)


def reply(worker, x, y):
    """What leaves the client."""
    experiment = worker.experiment
    extra = experiment.strategy.broadcast(experiment.strategy.init(worker.initial_params))
    broadcast = Broadcast(1, worker.initial_params, extra, experiment.transforms.init(worker.spec), 0.1)
    rows = np.arange(len(x), dtype=np.int32)
    played = train_client(worker, broadcast, 0, Key(bytes(16)), Examples(x, y, None), rows)
    return played.content, played.memory


def form(update):
    vectors = (update.payload if hasattr(update, "payload") else update.delta, update.extra)
    return type(update), tuple(map(len, vectors))


@pytest.mark.parametrize("name", PROMISES)
def test_a_reply_has_one_form_whatever_the_examples_are(name):
    experiment = PROMISES[name]()
    x, y = blobs(EXAMPLES)
    workers = {model: live(experiment, model) for model in (dense, checking)}
    usual = {model: form(reply(worker, x, y)[0]) for model, worker in workers.items()}
    for what, model, bad_x, bad_y in bad_examples(x, y):
        update, kept = reply(workers[model], bad_x, bad_y)
        assert not isinstance(update, Failure), what
        assert form(update) == usual[model], what
        assert all(np.isfinite(part).all() for part in kept), what
        if experiment.plan is not None:
            assert not update.metrics
            assert update.weight == 1
            assert np.asarray(getattr(update, "delta", [1])).any(), "a zero update has noise as any other"


@pytest.mark.parametrize("name", ["local, own models", "local, SCAFFOLD", "hidden"])
def test_a_client_that_is_not_finite_does_the_work_of_any_other(name, monkeypatch):
    """It asks the engine for the same trainings, and what leaves it goes the same way."""
    worker, done = live(PROMISES[name](), dense), []
    monkeypatch.setattr(worker, "train", noted(done, "train", worker.train))
    monkeypatch.setattr(round_, "finished", noted(done, "finished", round_.finished))
    monkeypatch.setattr(round_, "encoded", noted(done, "encoded", round_.encoded))
    x, y = blobs(EXAMPLES)
    reply(worker, x, y)
    usual = done.copy()
    done.clear()
    _, kept = reply(worker, _with(x, 3, np.nan), y)
    assert done == usual
    assert [one for one in usual if one == "encoded"] == ["encoded"]
    assert all(np.array_equal(one, other) for one, other in zip(kept, worker.initial_memory, strict=True))


def noted(done, name, work):
    """Work that is written down when it is done."""

    def noting(*arguments, **more):
        done.append(name)
        return work(*arguments, **more)

    return noting


@pytest.mark.parametrize("name", ["local", "hidden"])
def test_what_goes_wrong_is_in_the_clients_own_log(name, caplog):
    x, y = blobs(EXAMPLES)
    reply(live(PROMISES[name](), dense), x, _with(y, 3, CLASSES + 8))
    assert "client 0 adds nothing to the sum" in caplog.text
    assert "label 11 is out of range" in caplog.text


def test_where_the_server_is_trusted_a_client_says_what_fails():
    """Under a central plan the server sees every update: a failure tells it no more, and the noise is on the sum."""
    plan = PrivacyPlan(sampling_rate=0.5, **BUDGET)
    x, y = blobs(EXAMPLES)
    found, _ = reply(live(promised(plan=plan), dense), _with(x, 3, np.nan), y)
    assert isinstance(found, Failure)
    found, _ = reply(live(promised(), dense), x, y)
    assert isinstance(found, ClientUpdate)
    assert found.extra is NOTHING


@pytest.mark.parametrize("count", [1, EXAMPLES - 1, EXAMPLES])
def test_a_client_with_fewer_examples_than_the_price_reckons_with_refuses(count):
    """Only the device knows; its examples would be in batches more often than they pay for."""
    like = (np.zeros((1, FEATURES), np.float32), np.zeros(1, np.int32))
    experiment = dataclasses.replace(promised(plan=examples()), population=data.OnDevice(CLIENTS, like, most=100))
    x, y = blobs(count)
    if count == EXAMPLES:
        assert isinstance(reply(live(experiment, dense), x, y)[0], ClientUpdate)
        return
    with pytest.raises(Refused, match=f"holds {count} examples, and plan.smallest_client={EXAMPLES}"):
        reply(live(experiment, dense), x, y)
