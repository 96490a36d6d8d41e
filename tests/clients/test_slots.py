"""An optimizer begins anew on the weights that a client receives, and ends as `fit` ends it."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest

from engines import IS_JAX, SOONEST
from federations import CLASSES, FEATURES, blobs, dense, federation
from umbel import AllClients, ConfigError, Local, Scaffold, Simulation, data, run
from umbel.clients.keras.slots import copies_of
from umbel.privacy.per_example import PerExample

EXAMPLES = blobs(37)
OPTIMIZERS = keras.optimizers


def built(make):
    """Make a model, and its optimizer's variables: Keras's graphs would make those of ScheduleFreeAdamW zeros."""

    def model():
        compiled = make()
        compiled.optimizer.build(compiled.trainable_variables)
        return compiled

    return model


def compiled(optimizer):
    model = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(CLASSES, name="head")]
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def averaged():
    return dense(optimizer="Adam", learning_rate=0.02, use_ema=True, ema_momentum=0.8)


def averaged_and_scaled():
    return compiled(OPTIMIZERS.LossScaleOptimizer(OPTIMIZERS.Adam(0.02, use_ema=True, ema_momentum=0.8)))


def several():
    slow, fast = OPTIMIZERS.Adam(0.01, use_ema=True), OPTIMIZERS.SGD(lambda: 0.1)
    return compiled(OPTIMIZERS.MultiOptimizer(lambda weight: fast if "head" in weight.path else slow))


def without_schedule():
    return compiled(OPTIMIZERS.ScheduleFreeAdamW(0.02))


def there_is(*names):
    return pytest.mark.skipif(not all(hasattr(OPTIMIZERS, name) for name in names), reason=f"Keras has no {names}")


def alone(make, **more):
    """A federation of one client, and two rounds of two epochs."""
    local = Local(epochs=2, batch_size=8, shuffle=False)
    population = data.PerClient([EXAMPLES])
    settings = {"population": population, "sampler": AllClients(), "local": local, "rounds": 2, "test": None} | more
    return federation(model=make, **settings)


@pytest.mark.parametrize(
    ("make", "engine"),
    [
        (averaged, Simulation(1, SOONEST)),
        (averaged, Simulation(1, "xla")),
        (averaged, Simulation(debug=True)),
        (averaged_and_scaled, Simulation(1, SOONEST)),
        pytest.param(several, Simulation(1, SOONEST), marks=there_is("MultiOptimizer")),
        pytest.param(without_schedule, Simulation(1, SOONEST), marks=there_is("ScheduleFreeAdamW")),
    ],
)
def test_two_rounds_are_fit_by_a_new_optimizer_in_each(make, engine):
    history = run(alone(built(make)), engine)
    start = list(history.spec.unflatten(engine.initial_params()).values())
    for _ in range(2):
        model = make()
        model.set_weights(start)
        model.optimizer.build(model.trainable_variables)
        model.fit(*EXAMPLES, epochs=2, batch_size=8, shuffle=False, verbose=0)
        start = model.get_weights()
    np.testing.assert_allclose(history.params, history.spec.flatten(start), rtol=2e-4, atol=2e-6)


def test_without_noise_or_clipping_private_steps_are_averaged_alike(monkeypatch):
    """Also where a round's noise takes several calls."""
    if not IS_JAX:
        monkeypatch.setattr("umbel.clients.tensorflow.per_example.NOISE_BYTES", 1)
    plain = alone(averaged, local=Local(epochs=3, batch_size=None, shuffle=False))
    private = dataclasses.replace(plain, local=Local(epochs=3, batch_size=None, per_example=PerExample(1e6, 0.0)))
    histories = [run(one, Simulation(1, SOONEST)) for one in (plain, private)]
    histories.append(run(private, Simulation(debug=True)))
    for other in histories[1:]:
        np.testing.assert_allclose(histories[0].params, other.params, rtol=1e-3, atol=1e-5)


def test_where_no_step_was_taken_there_is_no_average():
    from umbel.clients.tensorflow.averages import finish

    model = averaged()
    model.optimizer.build(model.trainable_variables)
    before = model.get_weights()
    finish([model.optimizer])
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class Anchored(OPTIMIZERS.SGD):
    """An optimizer that keeps where it began."""

    def __init__(self, factor=1.0, **settings):
        super().__init__(**settings)
        self.factor = factor

    def build(self, variables):
        super().build(variables)
        self.anchors = self.add_optimizer_variables(variables, "anchor")
        for anchor, variable in zip(self.anchors, variables, strict=True):
            anchor.assign(self.factor * variable)

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


def test_what_begins_as_a_weight_is_found():
    """Also where the weights are all 0 at first."""
    model = compiled(Anchored())
    model.set_weights([np.zeros_like(one) for one in model.get_weights()])
    model.optimizer.build(model.trainable_variables)
    found = copies_of([model.optimizer])
    assert [(id(slot), id(weight)) for slot, weight in found] == [
        (id(slot), id(weight)) for slot, weight in zip(model.optimizer.anchors, model.trainable_variables, strict=True)
    ]
    assert not any(one.any() for one in model.get_weights())
    other = compiled(Anchored(2.0))
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ConfigError, match=r"Anchored keeps .*anchor.*follows from the weights and is no copy"):
        copies_of([other.optimizer])


@pytest.mark.parametrize("setting", [{"use_ema": True}, {"gradient_accumulation_steps": 2}])
def test_a_rule_that_reckons_with_every_step_refuses_what_does_not_take_them(setting):
    with pytest.raises(ConfigError, match=f"Scaffold.*drop {next(iter(setting))}"):
        run(federation(model=lambda: dense(**setting), strategy=Scaffold(), rounds=1), Simulation(1, SOONEST))


@there_is("MultiOptimizer")
def test_several_rates_take_no_other():
    with pytest.raises(ConfigError, match=r"several rates of its own; drop them, or local.learning_rate"):
        run(alone(several, local=Local(learning_rate=0.1)), Simulation(1, SOONEST))


def test_lambdas_in_a_model_warn_of_nothing():
    def make():
        model = dense()
        model.compile("sgd", model.loss, metrics=[lambda y, p: keras.ops.mean(p, axis=-1)])
        return model

    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        history = run(alone(make, rounds=1), Simulation(1, SOONEST))
    assert "train_lambda" in history.rounds[0].metrics
