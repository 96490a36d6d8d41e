"""Which way metrics are to go: by class, for all of Keras's; asked for where nobody knows."""

import inspect

import keras
import numpy as np
import pytest

from umbel.clients.keras.directions import direction_of_metric, measures_of
from umbel.core.errors import ConfigError
from umbel.core.reading.directions import direction_of, mode_of

ARGUMENTS = {
    "num_classes": 2,
    "target_class_ids": [0],
    "recall": 0.5,
    "precision": 0.5,
    "sensitivity": 0.5,
    "specificity": 0.5,
    "fn": keras.losses.mean_squared_error,
}
FALL = (
    *("Crossentropy", "Error", "Hinge", "KLDivergence", "Poisson", "FalseNegatives", "FalsePositives"),
    "MeanMetricWrapper",  # of a loss of Keras
)
UNKNOWN = ("Mean", "Sum", "Metric")
CLASSES = {
    name: cls
    for name, cls in vars(keras.metrics).items()
    if inspect.isclass(cls) and issubclass(cls, keras.metrics.Metric)
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_metric_of_keras_has_its_direction(name):
    if name == "Metric":
        return
    signature = inspect.signature(CLASSES[name].__init__).parameters
    needed = [each for each, value in signature.items() if value.default is inspect.Parameter.empty]
    metric = CLASSES[name](**{each: ARGUMENTS[each] for each in needed if each in ARGUMENTS})
    expected = None if name in UNKNOWN else "min" if name.endswith(tuple(FALL)) else "max"
    assert direction_of_metric(metric) == expected


class SignalToNoise(keras.metrics.MeanSquaredError):
    """Rises, though what it is derived from falls."""

    def result(self):
        return -keras.ops.log(super().result())


class Correct(keras.metrics.Accuracy):
    """Only another name."""


def test_a_subclass_goes_the_way_of_its_base_unless_it_measures_otherwise():
    assert direction_of_metric(SignalToNoise()) is None
    assert direction_of_metric(Correct()) == "max"
    assert direction_of_metric(keras.metrics.MeanMetricWrapper(lambda y, p: y - p)) is None


def two_outputs(model_class=keras.Model):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    entry = keras.Input((3,))
    outputs = {"a": keras.layers.Dense(1, name="a")(entry), "b": keras.layers.Dense(3, name="b")(entry)}
    model = model_class(entry, outputs)
    model.compile(
        "sgd",
        {"a": "mse", "b": "mse"},
        metrics={"a": ["mae", SignalToNoise(name="snr")], "b": [keras.metrics.F1Score(threshold=0.5), "mae"]},
        weighted_metrics={"b": ["mae"]},
    )
    model.train_on_batch(x, {"a": x[:, :1], "b": x})
    return model


def test_names_are_those_that_keras_gives_and_nothing_is_changed():
    model = two_outputs()
    before = model.get_metrics_result()
    measures = measures_of(model)
    assert measures.is_complete
    assert measures.directions == {
        **dict.fromkeys(("loss", "a_loss", "b_loss", "a_mae", "b_mae", "b_weighted_mae"), "min"),
        "b_f1_score": "max",
        "a_snr": None,
    }
    for name, value in model.get_metrics_result().items():
        np.testing.assert_array_equal(value, before[name])


class OwnStep(keras.Model):
    def test_step(self, data):
        return super().test_step(data) | {"extra": 1.0}


def test_a_step_of_ones_own_may_measure_more():
    assert not measures_of(two_outputs(OwnStep)).is_complete


DIRECTIONS = {"mae": "min", "top_5": "max", "snr": None, "f1": "max", "accuracy": "max"}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("test_mae", "min"),
        ("validation_mae_p90", "min"),
        ("validation_personal_mae_p10", "min"),
        ("test_cluster_1_accuracy", "max"),
        ("test_top_5", "max"),
        ("validation_f1_2_p50", "max"),
        ("test_f1_1_0", "max"),
        ("train_loss", "min"),
        ("test_a_loss", "min"),
        ("test_snr", None),
        ("virtual_seconds", "max"),
        ("test_other", None),
    ],
)
def test_what_a_record_says_goes_the_way_of_the_metric_that_it_is_of(metric, expected):
    assert direction_of(metric, DIRECTIONS) == expected
    if expected is None:
        with pytest.raises(ConfigError, match=r'say mode="min" or mode="max"'):
            mode_of(metric, DIRECTIONS, None, "it")
    assert mode_of(metric, DIRECTIONS, "max", "it") == "max"


def test_records_without_directions_have_names_alone():
    assert [direction_of(name, {}) for name in ("test_loss", "test_accuracy", "test_mae")] == ["min", "max", None]
    assert direction_of("test_accuracy", {"accuracy": None}) is None  # a metric of somebody's own
