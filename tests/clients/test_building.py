"""What a model and examples do not do together is said before a round is spent, with Keras's own reason."""

import numpy as np
import pytest

from federations import blobs, federation
from umbel import ConfigError, Simulation, data, run


@pytest.fixture(scope="module")
def simulation():
    return Simulation(workers=1)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (lambda y: np.array(["a", "b", "c"])[y], "name them once for all clients and the test set"),
        (lambda y: np.where(y, y, np.nan), "NaN is no class"),
        (lambda y: y + 1, "label 3 is out of range"),
    ],
)
@pytest.mark.parametrize("where", ["population", "test"])
def test_labels_that_are_no_classes_are_refused(simulation, labels, reason, where):
    x, y = blobs()
    examples = (x, labels(y))
    population = data.Partitioned(examples, clients=8, classes=())  # which would number labels of text
    changes = {"test": examples} if where == "test" else {"population": population}
    with pytest.raises(ConfigError, match=reason):
        run(federation(**changes), simulation)


def test_the_reason_is_keras_own(simulation):
    x, y = blobs()
    for changes in ({"population": data.Partitioned((x[:, 1:], y), clients=8)}, {"test": (x[:, 1:], y)}):
        with pytest.raises(ConfigError, match="incompatible with the layer: expected axis -1") as caught:
            run(federation(**changes), simulation)
        assert "\x1b" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_tf_data_set_is_what_it_holds(simulation):
    import tensorflow as tf

    arrays = blobs()
    by_tensorflow = tf.data.Dataset.from_tensor_slices(arrays).batch(10)
    histories = [
        run(federation(population=data.Partitioned(source, clients=8), rounds=1), simulation)
        for source in (arrays, by_tensorflow)
    ]
    assert histories[0].params_sha256 == histories[1].params_sha256
