"""What adapt() taught a layer goes with the model: to another one like it, and to one that params are loaded into."""

import keras
import numpy as np
import pytest

from engines import SOONEST, tf
from federations import CLASSES, FEATURES, blobs
from umbel import AllClients, Experiment, Local, Simulation, data, run

X, Y = blobs(48)
WORDS = np.array(["ant", "bee", "cat", "dog", "eel", "bee bee"])[np.arange(48) % 6]


def compiled(*layers):
    """Make a model of these layers; its weights are the same every time."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([*layers, keras.layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def normalising(adapted_to=3 * X + 1):
    layer = keras.layers.Normalization()
    if adapted_to is not None:
        layer.adapt(adapted_to)
    return compiled(keras.Input((FEATURES,)), layer)


def looking_up():
    layer = keras.layers.StringLookup(output_mode="one_hot")
    layer.adapt(WORDS)
    return compiled(keras.Input((1,), dtype="string"), layer)


def vectorising():
    layer = keras.layers.TextVectorization(output_mode="tf_idf")
    layer.adapt(WORDS)
    return compiled(keras.Input((), dtype="string"), layer)


def play(model, x, simulation=None):
    local = Local(batch_size=8, shuffle=False)
    experiment = Experiment(
        model=model, population=data.PerClient([(x, Y)]), sampler=AllClients(), local=local, rounds=1, test=(x, Y)
    )
    return run(experiment, simulation or Simulation(workers=1, compile=SOONEST))


@pytest.mark.parametrize(
    ("make", "x"), [(normalising, X), (looking_up, WORDS[:, None]), (vectorising, WORDS)], ids=lambda one: ""
)
def test_a_model_given_as_it_is_trains_as_in_fit(make, x):
    model = make()
    measured = play(model, x).rounds[0].metrics["test_loss"]
    tensor = tf.constant(x)
    model.fit(tensor, Y, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(measured, model.evaluate(tensor, Y, verbose=0), rtol=1e-5)


def test_params_are_loaded_into_a_model_that_was_adapted_to_other_data():
    history = play(normalising(), X)
    other = normalising(X)
    before = other.evaluate(X, Y, verbose=0)  # Keras compiles it with what it was adapted to
    history.load_into(other)
    np.testing.assert_allclose(other.evaluate(X, Y, verbose=0), history.rounds[0].metrics["test_loss"], rtol=1e-5)
    assert before != pytest.approx(history.rounds[0].metrics["test_loss"], rel=1e-3)


def test_words_that_are_adapted_to_again_are_seen_by_a_simulation_that_is_used_again():
    model, simulation = looking_up(), Simulation(workers=1, compile=SOONEST)
    first = play(model, WORDS[:, None], simulation).rounds[0].metrics["test_loss"]
    before = model.layers[0].get_vocabulary()
    model.layers[0].adapt(np.array(["ant", "ant", "dog", "cat", "bee", "bee bee", "eel"]))  # as many, in another order
    assert sorted(before) == sorted(model.layers[0].get_vocabulary()) != before
    again, fresh = (play(model, WORDS[:, None], one).rounds[0].metrics["test_loss"] for one in (simulation, None))
    assert again == fresh != first
