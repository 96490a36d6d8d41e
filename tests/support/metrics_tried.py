"""Every class of keras.metrics, and metrics of one's own, by the kind of targets that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

K = keras.metrics
Makers = Mapping[str, Callable[[], Any]]  # makers of metrics by the name that each is compiled under


class StartsAtTen(K.Metric):
    """Metric that is a sum from 10 on, and on reset forgets its second variable, as Keras lets one."""

    def __init__(self, name):
        super().__init__(name=name)
        self.total = self.add_variable((), keras.initializers.Constant(10.0), name="total")
        self.seen = self.add_variable((), keras.initializers.Constant(5.0), name="seen")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(keras.ops.sum(keras.ops.cast(y_pred, "float32")))

    def reset_state(self):
        self.total.assign(10.0)

    def result(self):
        return self.total + self.seen


class Largest(K.Metric):
    """Metric of a maximum, and of a minimum that begins at infinity."""

    def __init__(self, name):
        super().__init__(name=name)
        self.high = self.add_variable((), keras.initializers.Constant(-np.inf), name="high")
        self.low = self.add_variable((), keras.initializers.Constant(np.inf), name="low")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.high.assign(keras.ops.maximum(self.high, keras.ops.max(y_pred)))
        self.low.assign(keras.ops.minimum(self.low, keras.ops.min(y_pred)))

    def reset_state(self):
        self.high.assign(-np.inf)
        self.low.assign(np.inf)

    def result(self):
        return self.high - self.low


class InDict(K.Metric):
    """Metric of two values by name."""

    def __init__(self, name):
        super().__init__(name=name)
        self.total = self.add_variable((), "zeros", name="total")
        self.squares = self.add_variable((), "zeros", name="squares")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        values = keras.ops.cast(y_pred, "float32")
        self.total.assign_add(keras.ops.sum(values))
        self.squares.assign_add(keras.ops.sum(values**2))
        self.count.assign_add(keras.ops.cast(keras.ops.size(values), "float32"))

    def result(self):
        mean = self.total / self.count
        return {"predicted_mean": mean, "predicted_variance": self.squares / self.count - mean**2}


class Moments(K.Metric):
    """Metric that is a matrix: the mean products of outputs."""

    def __init__(self, name, size):
        super().__init__(name=name)
        self.products = self.add_variable((size, size), "zeros", name="products")
        self.count = self.add_variable((), "zeros", dtype="int64", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        values = keras.ops.cast(y_pred, "float32")
        self.products.assign_add(keras.ops.matmul(keras.ops.transpose(values), values))
        self.count.assign_add(keras.ops.cast(keras.ops.shape(values)[0], "int64"))

    def result(self):
        return self.products / keras.ops.cast(self.count, "float32")


def batch_share(y_true, y_pred):
    """Return a number for each batch, in place of one for each example."""
    return keras.ops.mean(y_pred) ** 2


def over_examples(y_true, y_pred):
    """Return a number for each output: over axis 0."""
    return keras.ops.max(keras.ops.abs(y_pred), axis=0)


def custom(outputs: int) -> Makers:
    """Make metrics of one's own."""
    return {
        "starts_at_ten": lambda: StartsAtTen("starts_at_ten"),
        "largest": lambda: Largest("largest"),
        "batch_share": lambda: K.MeanMetricWrapper(batch_share, name="batch_share"),
        "over_examples": lambda: K.MeanMetricWrapper(over_examples, name="over_examples"),
        "in_dict": lambda: InDict("in_dict"),
        "moments": lambda: Moments("moments", outputs),
    }


def of(*classes: type, **more: Callable[[str], Any]) -> dict[str, Callable[[], Any]]:
    """Make metrics by their class's name; others by one that says how they differ."""
    makers: dict[str, Callable[[], Any]] = {one.__name__: lambda one=one: one(name=one.__name__) for one in classes}
    return makers | {name: lambda name=name, make=make: make(name) for name, make in more.items()}


BINARY = of(
    K.Accuracy, K.BinaryAccuracy, K.BinaryCrossentropy, K.AUC, K.Precision, K.Recall, K.TruePositives, K.TrueNegatives,
    K.FalsePositives, K.FalseNegatives, K.Hinge, K.SquaredHinge, K.Poisson,
    PrecisionAtRecall=lambda name: K.PrecisionAtRecall(0.6, name=name),
    RecallAtPrecision=lambda name: K.RecallAtPrecision(0.6, name=name),
    SensitivityAtSpecificity=lambda name: K.SensitivityAtSpecificity(0.6, name=name),
    SpecificityAtSensitivity=lambda name: K.SpecificityAtSensitivity(0.6, name=name),
    AUC_under_PR=lambda name: K.AUC(curve="PR", name=name),
    Precision_at_three=lambda name: K.Precision([0.3, 0.5, 0.7], name=name),
    BinaryIoU=lambda name: K.BinaryIoU(name=name),
    F1Score=lambda name: K.F1Score(threshold=0.5, name=name),
)  # fmt: skip
CLASSES = of(
    K.CategoricalAccuracy, K.CategoricalCrossentropy, K.KLDivergence, K.CategoricalHinge, K.CosineSimilarity,
    TopKCategoricalAccuracy=lambda name: K.TopKCategoricalAccuracy(2, name=name),
    F1Score_macro=lambda name: K.F1Score("macro", name=name),
    F1Score_each=lambda name: K.F1Score(name=name),
    FBetaScore=lambda name: K.FBetaScore("weighted", beta=2.0, name=name),
    OneHotIoU=lambda name: K.OneHotIoU(4, [0, 2], name=name),
    OneHotMeanIoU=lambda name: K.OneHotMeanIoU(4, name=name),
    AUC_of_labels=lambda name: K.AUC(multi_label=True, num_labels=4, name=name),
)  # fmt: skip
LABELS = of(
    K.SparseCategoricalAccuracy, K.SparseCategoricalCrossentropy,
    SparseTopKCategoricalAccuracy=lambda name: K.SparseTopKCategoricalAccuracy(2, name=name),
    IoU=lambda name: K.IoU(4, [1, 3], sparse_y_pred=False, name=name),
    MeanIoU=lambda name: K.MeanIoU(4, sparse_y_pred=False, name=name),
)  # fmt: skip
NUMBERS = of(
    K.MeanSquaredError, K.MeanAbsoluteError, K.MeanAbsolutePercentageError, K.MeanSquaredLogarithmicError,
    K.LogCoshError, K.RootMeanSquaredError, K.PearsonCorrelation, K.ConcordanceCorrelation, K.R2Score,
    R2Score_weighted=lambda name: K.R2Score("variance_weighted_average", name=name),
    MeanMetricWrapper=lambda name: K.MeanMetricWrapper(keras.losses.huber, name=name),
)  # fmt: skip
OF_STEPS = {"Mean", "Sum"}  # metrics that a step updates: nobody compiles them
ABSTRACT = {"Metric"}  # metrics of which nobody makes an instance


class Stepped(keras.Model):
    """A model with steps of its own, for TensorFlow.

    It has metrics that it updates, values worked out of them, and values of no metric.
    """

    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(1, "sigmoid")
        self.seen = K.Sum(name="seen")
        self.largest = K.Mean(name="largest")
        self.idle = K.Mean(name="idle")  # never updated, never reported

    def call(self, x):
        return self.layer(x)

    def train_step(self, batch):
        import tensorflow as tf

        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self.measured(x, y, loss) | {"batch_loss": loss, "norms": tf.stack([tf.norm(one) for one in gradients])}

    def test_step(self, batch):
        x, y = batch
        return self.measured(x, y, self.compute_loss(x, y, self(x, training=False)))

    def measured(self, x, y, loss):
        rows = keras.ops.cast(keras.ops.shape(x)[0], "float32")
        self._loss_tracker.update_state(loss, sample_weight=rows)
        self.seen.update_state(keras.ops.ones_like(y))
        self.largest.update_state(keras.ops.max(x, axis=1))
        compiled = self.compute_metrics(x, y, self(x, training=False))
        del compiled["idle"]
        return compiled | {
            "loss": self._loss_tracker.result(),
            "perplexity": keras.ops.exp(self._loss_tracker.result()),
            "seen": self.seen.result(),
            "largest": self.largest.result(),
        }


def untried() -> set[str]:
    """List classes of keras.metrics that no kind of targets tries."""
    tried = {name.partition("_")[0] for makers in (BINARY, CLASSES, LABELS, NUMBERS) for name in makers} | OF_STEPS
    return {name for name, thing in vars(K).items() if isinstance(thing, type)} - tried - ABSTRACT
