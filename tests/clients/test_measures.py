"""What is measured is what Keras would measure of all examples at once, or it is named or refused."""

import keras
import numpy as np
import pytest
from support.beside_keras import compared, where
from support.kinds_tried import KINDS
from support.metrics_tried import K, Largest, Stepped, custom, untried

from engines import tf
from federations import CLASSES, FEATURES, blobs
from umbel import ConfigError
from umbel.clients.keras.agreed import agree, resets_of
from umbel.clients.keras.building import build_model
from umbel.clients.keras.meter import Meter
from umbel.clients.keras.metric_terms import MetricTerms
from umbel.clients.keras.per_client import BLOCK, ClientTable, gathered
from umbel.clients.tensorflow.building import create_variables
from umbel.clients.tensorflow.rows import CompiledRows
from umbel.core.examples import Examples
from umbel.core.random import derive
from umbel.core.types import MetricState, Weighted, add_metrics, scalars
from umbel.privacy.homomorphic import Homomorphic
from umbel.privacy.secure_sum import SecureSum

EXAMPLES = Examples(*blobs(40))
HOT = EXAMPLES._replace(y=np.eye(CLASSES, dtype=np.float32)[EXAMPLES.y])


def test_every_class_of_keras_is_tried():
    assert not untried()


@pytest.mark.parametrize(("kind", "engine"), [("own steps", "graph"), ("numbers", "xla"), ("masked tokens", "eager")])
def test_measured_is_what_keras_measures(kind, engine):
    """A sample of `python -m tests.support.beside_keras`: training, two chunks and two workers, five clients pooled."""
    cells = list(compared(kind, KINDS[kind], engine))
    assert [cell for cell in cells if cell.verdict != "="] == []


@pytest.mark.long
def test_three_clients_measure_what_keras_measures_over_flower_too():
    """The column "where" of the same table, for two kinds: trained by three, in simulation and on three nodes."""
    rows = list(where(["own steps", "two outputs"]))
    assert [row[0].column for row in rows] == ["three", "three", "flower", "flower"]
    assert [cell for row in rows for cell in row if cell.verdict != "="] == []


def built(*metrics, loss="sparse_categorical_crossentropy", layers=(), examples=EXAMPLES):
    """A model of `blobs` that measures so."""

    def make():
        inputs = [keras.Input((FEATURES,)), *(layers or [keras.layers.Dense(CLASSES, "softmax")])]
        model = keras.Sequential(inputs)
        model.compile("sgd", loss, metrics=[metric() for metric in metrics])
        return model

    return build_model(make, examples, derive(0), create_variables).model


class OneVariable(K.Metric):
    """A metric whose only variable `update` changes."""

    def __init__(self, update, start=0.0, name="one"):
        super().__init__(name=name)
        self.update, self.start = update, start
        self.held = self.add_variable((), keras.initializers.Constant(start), name="held")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.held.assign(self.update(self.held, keras.ops.cast(y_pred, "float32")))

    def reset_state(self):
        self.held.assign(self.start)

    def result(self):
        return self.held


def joins(update, start=0.0, **more):
    """How a variable joins."""
    model = built(lambda: OneVariable(update, start), **more)
    agreement = agree(model, more.get("examples", EXAMPLES))
    return next(unit.joins for unit in agreement.terms.units if unit.kind == "OneVariable"), agreement.notes


def test_what_adds_up_is_found_by_trial():
    ops = keras.ops
    assert joins(lambda held, p: held + ops.sum(p)) == (("sum",), ())
    assert joins(lambda held, p: ops.maximum(held, ops.max(p)), -np.inf) == (("max",), ())
    assert joins(lambda held, p: ops.minimum(held, ops.min(p)), np.inf) == (("min",), ())


@pytest.mark.parametrize(
    "update",
    [
        lambda held, p: keras.ops.mean(p),  # the last batch: three parts in one order look like a maximum
        lambda held, p: 0.9 * held + 0.1 * keras.ops.mean(p),
    ],
)
def test_what_does_not_add_up_is_averaged_and_named(update):
    how, notes = joins(update)
    assert how == ()
    assert "averaged by examples" in notes[0]
    assert notes[0].count("one")


def test_a_maximum_of_predictions_that_are_all_zero_is_no_sum():
    """As of ReLUs at the start: the trial moves them."""
    silent = keras.layers.Dense(CLASSES, "relu", kernel_initializer="zeros")
    update = lambda held, p: keras.ops.maximum(held, keras.ops.max(p))  # noqa: E731
    how, _ = joins(update, loss="mse", layers=[silent], examples=HOT)
    assert how == ("max",)


def test_a_loss_that_depends_on_the_batches_is_named():
    def coupled(y_true, y_pred):
        return tf.reduce_max(y_pred) * tf.ones(tf.shape(y_pred)[0])

    assert agree(built(loss="mse", examples=HOT), HOT).notes == ()
    (note,) = agree(built(loss=coupled), EXAMPLES).notes
    assert "divided into batches" in note
    assert "loss" in note


class Hidden(OneVariable):
    """A metric that counts in a tf.Variable."""

    def __init__(self):
        super().__init__(self.counted)
        self.count = tf.Variable(0.0, trainable=False)

    def counted(self, held, p):
        self.count.assign_add(1.0)
        return self.count


def test_a_metric_that_keeps_a_variable_of_tensorflow_is_refused():
    with pytest.raises(ConfigError, match=r"metric 'one' keeps a tf.Variable.*add_variable"):
        agree(built(Hidden), EXAMPLES)


def test_states_are_relative_to_what_a_reset_leaves():
    """Which is not what a variable was initialised with, where Keras's base class resets it; nor where it is not."""
    model = built(*custom(CLASSES).values())
    by_name = {metric.name: metric for metric in model.metrics[1].metrics}
    metrics = [by_name["starts_at_ten"], by_name["largest"]]
    assert [[float(one) for one in each] for each in resets_of(model, metrics)] == [[10.0, 5.0], [-np.inf, np.inf]]


def measured(model, examples, measures):
    """The state after a test step."""
    for variable, reset in measures.variables:
        variable.assign(reset.astype(variable.dtype))
    logs = model.test_step((examples.x, examples.y))
    measures.track("test", logs, examples.count)
    return measures.states("test", measures.read("test"), examples.count)


@pytest.fixture(scope="module")
def model():
    """A model with metrics of all shapes."""
    every = [lambda: K.AUC(name="auc", multi_label=True, num_labels=CLASSES), lambda: K.F1Score(name="f1")]
    made = built(*every, *custom(CLASSES).values(), loss="categorical_crossentropy", examples=HOT)
    return made, HOT, Meter.of(made, HOT)


def test_a_block_of_clients_has_the_values_of_one_at_a_time(model):
    """More clients than a block; one of them without an example; other names in some."""
    made, hot, measures = model
    states = [measured(made, hot.take(slice(start, start + 3)), measures) for start in range(8)]
    clients = [states[number % 8] | {"personal_auc": states[0]["auc"]} for number in range(BLOCK + 3)]
    clients[7] = states[7]
    found = gathered(enumerate(clients), ClientTable(measures, CompiledRows))
    alone = [scalars(measures.results("test", client)) for client in clients]
    assert set(found.per_client) == set(alone[0])
    for name, column in found.per_client.items():
        expected = [values.get(name, np.nan) for values in alone]
        np.testing.assert_allclose(column, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert found.total["largest"] == states[0]["largest"] + found.total["largest"]


def test_terms_travel_as_text(model):
    *_, measures = model
    terms = MetricTerms.from_json(measures.terms.to_json())
    assert terms == measures.terms
    with pytest.raises(ConfigError, match=r"expected a model with the metrics .*AUC.*, got Mean\[\[\], \[\]\]"):
        terms.check(built().metrics[:1])
    with pytest.raises(ConfigError, match="terms"):
        MetricTerms.from_json("[1, 2]")


def test_values_of_several_states_are_made_at_the_end():
    """exp(loss) of a step of one's own; a value that nobody tracks; a tracker that nobody updates is not reported."""

    def make():
        model = Stepped()
        model.compile("sgd", "binary_crossentropy")
        return model

    examples = Examples(EXAMPLES.x, (EXAMPLES.y > 0).astype(np.float32)[:, None])
    made = build_model(make, examples, derive(0), create_variables).model
    measures = Meter.of(made, examples)
    parts = [measured(made, examples.take(slice(*cut)), measures) for cut in ((0, 10), (10, 40))]
    values = measures.results("test", add_metrics(*parts))
    assert values["perplexity"] == pytest.approx(np.exp(values["loss"]), rel=1e-5)
    assert set(values) == {"loss", "perplexity", "seen", "largest"}
    assert {one.name for one in measures.terms.train.tracked} == {"batch_loss", "norms"}
    assert MetricTerms.from_json(measures.terms.to_json()) == measures.terms
    assert measures.results("test", {"loss": Weighted(3.0, 2.0), "cluster_0": Weighted(1.0, 4.0)})["cluster_0"] == 0.25


def test_a_hidden_sum_refuses_what_it_cannot_tell():
    """Whatever adds up is told."""
    joins = {"loss": (), "auc": (("sum", 800),), "largest": (("max", 1), ("min", 1))}
    for hidden in (SecureSum, Homomorphic):
        hidden(limit=1.0, metrics=("loss", "auc")).check_joins(joins)
        with pytest.raises(ConfigError, match="metrics has 'largest', whose state is a maximum, and no sum"):
            hidden(limit=1.0, metrics=("largest",)).check_joins(joins)
        with pytest.raises(ConfigError, match="metrics has 'acc', which the model does not report; it reports: auc"):
            hidden(limit=1.0, metrics=("acc",)).check_joins(joins)


class InDictItself(OneVariable):
    """A metric whose result has its variable, as it is."""

    def result(self):
        return {"itself": self.held, "converted": keras.ops.convert_to_tensor(self.held)}


def test_a_result_that_is_the_variable_is_that_of_the_state():
    """Not what the model's own variable holds, which no client writes."""
    count = lambda held, p: held + keras.ops.sum(p)  # noqa: E731
    made = built(lambda: OneVariable(count), lambda: InDictItself(count, name="two"))
    state = MetricState(np.array([7.0]), (("sum", 1),))
    assert Meter.of(made, EXAMPLES).results("test", {"one": state, "two": state}) == {
        "one": 7.0, "itself": 7.0, "converted": 7.0,
    }  # fmt: skip


def test_a_state_joins_as_it_says():
    state = MetricState(np.array([1.0, 2.0, 3.0]), (("sum", 1), ("max", 1), ("min", 1)))
    other = MetricState(np.array([5.0, 1.0, 1.0]), state.joins)
    assert state + other == other + state == MetricState(np.array([6.0, 2.0, 1.0]), state.joins)
    with pytest.raises(ValueError, match="not of one metric"):
        state + MetricState(np.zeros(3), (("sum", 3),))


def test_a_vector_is_shown_one_number_at_a_time():
    values = {"a": 1.0, "one": (2.0,), "f1": (0.5, 0.25), "matrix": ((1.0, 2.0), (3.0, 4.0))}
    assert scalars(values) == {
        "a": 1.0, "one": 2.0, "f1_0": 0.5, "f1_1": 0.25,
        "matrix_0_0": 1.0, "matrix_0_1": 2.0, "matrix_1_0": 3.0, "matrix_1_1": 4.0,
    }  # fmt: skip


def test_the_largest_of_nothing_is_infinite():
    assert Largest("largest").result() == -np.inf
