"""What a model and examples do not do together is said before a round is spent, with Keras's own reason."""

import keras
import numpy as np
import pytest

from federations import CLASSES, FEATURES, blobs, dense, federation
from umbel import AllClients, ConfigError, Simulation, data, run


@pytest.fixture(scope="module")
def simulation():
    return Simulation(workers=1)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (lambda y: np.array(["a", "b", "c"])[y], "np.unique"),
        (lambda y: y.astype(object), "np.unique"),
        (lambda y: np.where(y, y, np.nan), "NaN is no class"),
        (lambda y: y + 1, "label 3 is out of range"),
    ],
)
@pytest.mark.parametrize("where", ["population", "test"])
def test_labels_that_are_no_classes_are_refused(simulation, labels, reason, where):
    x, y = blobs()
    examples = (x, labels(y))
    changes = {"test": examples} if where == "test" else {"population": data.Partitioned(examples, clients=8)}
    with pytest.raises(ConfigError, match=reason):
        run(federation(**changes), simulation)


def test_the_reason_is_keras_own(simulation):
    x, y = blobs()
    for changes in ({"population": data.Partitioned((x[:, 1:], y), clients=8)}, {"test": (x[:, 1:], y)}):
        with pytest.raises(ConfigError, match="incompatible with the layer: expected axis -1") as caught:
            run(federation(**changes), simulation)
        assert "\x1b" not in str(caught.value)
        assert "\n" not in str(caught.value)


def with_f1(average=None):
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES, "softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=[keras.metrics.F1Score(average=average)])
    return model


def test_a_metric_of_several_numbers_is_several_metrics(simulation):
    """F1Score gives one per class; evaluated by Keras, the same."""
    x, y = blobs()
    hot = np.eye(CLASSES, dtype=np.float32)[y]
    one = federation(
        model=with_f1, population=data.Partitioned((x, hot), clients=1), sampler=AllClients(), rounds=1, test=(x, hot)
    )
    history = run(one, simulation)
    metrics = history.rounds[0].metrics
    found = history.load_into(with_f1()).evaluate(x, hot, batch_size=len(x), return_dict=True, verbose=0)
    np.testing.assert_allclose([metrics[f"test_f1_score_{label}"] for label in range(CLASSES)], found["f1_score"], 1e-5)
    assert all(f"train_f1_score_{label}" in metrics for label in range(CLASSES))


def test_a_metric_that_is_a_matrix_is_refused(simulation):
    class Confusion(keras.metrics.Metric):
        def update_state(self, y_true, y_pred, sample_weight=None):
            """It stays what it is."""

        def result(self):
            return keras.ops.zeros((CLASSES, CLASSES))

    def build_model():
        model = dense()
        model.compile("sgd", model.loss, metrics=[Confusion(name="confusion")])
        return model

    with pytest.raises(ConfigError, match=r"'confusion' has the shape \(3, 3\)"):
        run(federation(model=build_model), simulation)


def test_a_tf_data_set_is_what_it_holds(simulation):
    import tensorflow as tf

    arrays = blobs()
    by_tensorflow = tf.data.Dataset.from_tensor_slices(arrays).batch(10)
    histories = [
        run(federation(population=data.Partitioned(source, clients=8), rounds=1), simulation)
        for source in (arrays, by_tensorflow)
    ]
    assert histories[0].params_sha256 == histories[1].params_sha256
