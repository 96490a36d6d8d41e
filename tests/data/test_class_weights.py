"""What examples count by their class. That training takes it as `fit` does: tests/clients/test_against_keras.py."""

import pickle

import numpy as np
import pytest

from umbel import ConfigError, data

X = np.zeros((4, 2), np.float32)
NUMBERS = np.array([0, 2, 1, 2])
WEIGHTS = [3.0, 0.5, 1.0, 0.5]


@pytest.mark.parametrize("targets", [NUMBERS, NUMBERS[:, None], np.eye(3, dtype=np.float32)[NUMBERS]])
def test_classes_are_numbers_or_one_hot_wherever_the_examples_are(targets):
    population = data.ClassWeighted(data.Partitioned((X, targets), clients=2), {0: 3.0, 2: 0.5})
    np.testing.assert_array_equal(population.resident().sample_weight, WEIGHTS)
    for client in range(2):
        np.testing.assert_array_equal(
            population.examples(client).sample_weight, np.take(WEIGHTS, population.indices(client))
        )
    streamed = data.ClassWeighted(data.PerClient([(X, targets)]), {0: 3.0, 2: 0.5})
    np.testing.assert_array_equal(streamed.examples(0).sample_weight, WEIGHTS)


def test_classes_go_by_name_where_the_population_has_names():
    names = np.array(["cat", "owl", "dog", "owl"])
    population = data.ClassWeighted(data.PerClient([(X, names)]), {"cat": 3.0, "owl": 0.5})
    np.testing.assert_array_equal(population.examples(0).sample_weight, WEIGHTS)
    assert pickle.loads(pickle.dumps(population)) == population
    with pytest.raises(ConfigError, match="'emu', which the population does not have: its classes are 'cat', 'dog'"):
        data.ClassWeighted(data.PerClient([(X, names)]), {"emu": 1.0}).examples(0)


@pytest.mark.parametrize(
    ("examples", "weights", "message"),
    [
        ((X, NUMBERS), {}, "a weight for each class"),
        ((X, NUMBERS), {0: -1.0}, r"weights\[0\]"),
        ((X, NUMBERS), {0.5: 1.0}, "a number or a name"),
        ((X, NUMBERS), {"cat": 1.0}, "its classes are numbers"),
        ((X, NUMBERS, np.ones(4, np.float32)), {0: 1.0}, "weights of their own"),
        ((X, {"a": NUMBERS}), {0: 1.0}, "one target"),
        ((X,), {0: 1.0}, "one target"),
    ],
)
def test_what_has_no_class_is_refused(examples, weights, message):
    with pytest.raises(ConfigError, match=message):
        data.ClassWeighted(data.PerClient([examples]), weights).examples(0)
