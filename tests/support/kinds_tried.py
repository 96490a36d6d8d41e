"""Kinds of models, each with examples and with the metrics that are for its targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from .metrics_tried import BINARY, CLASSES, LABELS, NUMBERS, Makers, Stepped, custom

BY_BATCH = frozenset({"batch_share", "over_examples"})


class Kind(NamedTuple):
    """A kind of model, its examples, and what it measures."""

    build: Callable[[list], keras.Model]  # makes the model, compiled with these metrics
    examples: Callable[[int, int], tuple]  # (how many, seed) → examples
    metrics: Makers
    more: tuple[str, ...] = ()  # further values that the model reports
    by_batch: frozenset[str] = BY_BATCH  # metrics of which clients' own batches give other values than `evaluate`'s
    is_random: bool = False  # whether training draws otherwise than `fit` does


def features(count: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    """Make inputs, and the generator for targets."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 5)).astype(np.float32), generator


def binary(count: int, seed: int) -> tuple:
    """Make targets 0 and 1, sorted, so that chunks differ."""
    x, generator = features(count, seed)
    y = np.sort((generator.random(count) < 0.3).astype(np.float32))[:, None]
    return x + y, y


def labels(count: int, seed: int) -> tuple:
    """Make numbers of four classes, sorted."""
    x, generator = features(count, seed)
    y = np.sort(generator.integers(0, 4, count)).astype(np.int32)
    x[:, :4] += 0.7 * np.eye(4, dtype=np.float32)[y]
    return x, y


def one_hot(count: int, seed: int) -> tuple:
    """Make the classes of `labels` as vectors."""
    x, y = labels(count, seed)
    return x, np.eye(4, dtype=np.float32)[y]


def numbers(count: int, seed: int) -> tuple:
    """Make two positive numbers, those of the last rows much larger."""
    x, generator = features(count, seed)
    y = np.abs(x[:, :2] + 0.3 * generator.normal(size=(count, 2))).astype(np.float32) + 0.1
    y[-count // 5 :] *= 5
    return x, y


def weighted(examples: Callable[[int, int], tuple]) -> Callable[[int, int], tuple]:
    """Add weights to examples."""
    return lambda count, seed: (*examples(count, seed), np.linspace(0.2, 2, count).astype(np.float32))


def dense(outputs: int, activation: str | None, loss: Any, *layers: Callable[[], Any], **compiled: Any):
    """Make a function that builds a small model. compiled: weighted=True for weighted_metrics, optimizer, a class."""

    def build(metrics: list) -> keras.Model:
        made = [layer() for layer in layers]
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(6, "tanh"), *made, keras.layers.Dense(outputs, activation)]
        )
        kind = "weighted_metrics" if compiled.get("weighted") else "metrics"
        model.compile(compiled.get("optimizer", keras.optimizers.SGD)(), loss, **{kind: metrics})
        return model

    return build


def stepped(metrics: list) -> keras.Model:
    """Make a model with steps of its own."""
    model = Stepped()
    model.compile("sgd", "binary_crossentropy", metrics=metrics)
    return model


def tokens(count: int, seed: int) -> tuple:
    """Make sequences of ten numbers of words, padded with 0, and a target 0 or 1 for each word."""
    generator = np.random.default_rng(seed)
    words = generator.integers(1, 20, (count, 10))
    words[np.arange(10) >= generator.integers(2, 11, count)[:, None]] = 0
    return words.astype(np.int32), (words % 3 == 0).astype(np.float32)[..., None]


def masked(metrics: list) -> keras.Model:
    """Make a model of words that are padded, and masked."""
    layers = [keras.layers.Embedding(20, 4, mask_zero=True), keras.layers.LSTM(4, return_sequences=True)]
    model = keras.Sequential([keras.Input((10,)), *layers, keras.layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=metrics)
    return model


def two_targets(count: int, seed: int) -> tuple:
    """Make a number and a 0 or 1 for each example, by name."""
    x, y = numbers(count, seed)
    return x, {"size": y[:, :1], "sign": (x[:, :1] > 0).astype(np.float32)}


def two_outputs(metrics: list) -> keras.Model:
    """Make a model of two outputs by name, each with a loss, and metrics of equal names."""
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(6, "tanh")(inputs)
    size, sign = keras.layers.Dense(1, name="size")(hidden), keras.layers.Dense(1, "sigmoid", name="sign")(hidden)
    model = keras.Model(inputs, {"size": size, "sign": sign})
    named = {"size": [keras.metrics.RootMeanSquaredError(name="a")], "sign": [keras.metrics.AUC(name="a"), "accuracy"]}
    model.compile("sgd", {"size": "mse", "sign": "binary_crossentropy"}, metrics=named)
    return model


class Watching(keras.layers.Layer):
    """A layer that measures, and adds to the loss."""

    def __init__(self):
        super().__init__()
        self.norm = keras.metrics.Mean(name="norm")

    def call(self, x):
        self.norm.update_state(keras.ops.norm(x, axis=-1))
        self.add_loss(1e-3 * keras.ops.mean(x**2))
        return x


ONE, FOUR, TWO = custom(1), custom(4), custom(2)
SMALL = {name: BINARY[name] for name in ("AUC", "Precision", "TruePositives", "BinaryAccuracy")}
KINDS: dict[str, Kind] = {
    "binary": Kind(dense(1, "sigmoid", "binary_crossentropy"), binary, BINARY | ONE),
    "one-hot classes": Kind(dense(4, "softmax", "categorical_crossentropy"), one_hot, CLASSES | FOUR),
    "labels of classes": Kind(dense(4, "softmax", "sparse_categorical_crossentropy"), labels, LABELS | FOUR),
    "numbers": Kind(dense(2, "softplus", "mse"), numbers, NUMBERS | TWO),
    "binary, weighted": Kind(dense(1, "sigmoid", "binary_crossentropy", weighted=True), weighted(binary), BINARY),
    "numbers, weighted": Kind(dense(2, "softplus", "mae", weighted=True), weighted(numbers), NUMBERS),
    "own steps": Kind(stepped, binary, BINARY, ("perplexity", "seen", "largest")),
    "masked tokens": Kind(masked, tokens, SMALL, by_batch=frozenset({"loss"})),
    "two outputs": Kind(
        two_outputs, two_targets, {}, ("size_a", "sign_a", "sign_accuracy", "size_loss", "sign_loss"),
        frozenset({"size_loss", "sign_loss"}),
    ),
    "a layer that measures": Kind(
        dense(1, "sigmoid", "binary_crossentropy", Watching), binary, SMALL, ("norm",), frozenset({"loss"})
    ),
}  # fmt: skip
# What a model is made of, and how it is trained, beside a few metrics.
KINDS |= {
    f"with {name}": Kind(dense(1, "sigmoid", "binary_crossentropy", *layers), binary, SMALL)
    for name, layers in {
        "BatchNorm": [keras.layers.BatchNormalization],
        "LayerNorm": [keras.layers.LayerNormalization],
        "GroupNorm": [lambda: keras.layers.GroupNormalization(2)],
        "UnitNorm": [keras.layers.UnitNormalization],
        "PReLU": [keras.layers.PReLU],
        "L2": [lambda: keras.layers.Dense(6, kernel_regularizer="l2")],
        "a constraint": [lambda: keras.layers.Dense(6, kernel_constraint="max_norm")],
        "Conv1D": [lambda: keras.layers.Reshape((6, 1)), lambda: keras.layers.Conv1D(2, 3), keras.layers.Flatten],
        "MaxPooling": [lambda: keras.layers.Reshape((6, 1)), keras.layers.MaxPooling1D, keras.layers.Flatten],
        "GRU": [lambda: keras.layers.Reshape((6, 1)), lambda: keras.layers.GRU(3)],
        "LSTM": [lambda: keras.layers.Reshape((6, 1)), lambda: keras.layers.LSTM(3)],
        "EinsumDense": [lambda: keras.layers.EinsumDense("ab,bc->ac", 6)],
        "SpectralNorm": [lambda: keras.layers.SpectralNormalization(keras.layers.Dense(6))],
    }.items()
}
OF_KERAS = keras.optimizers
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    name.lower(): getattr(OF_KERAS, name)
    for name in (
        *("Adam", "AdamW", "Adamax", "Nadam", "RMSprop", "Adagrad", "Adadelta", "Adafactor", "Ftrl", "Lion", "Lamb"),
        *("Muon", "ScheduleFreeAdamW"),
    )
    if hasattr(OF_KERAS, name)
}
OPTIMIZERS |= {
    "an average": lambda: OF_KERAS.SGD(0.1, use_ema=True, ema_momentum=0.8),
    "an average under a loss scale": lambda: OF_KERAS.LossScaleOptimizer(
        OF_KERAS.Adam(0.01, use_ema=True, ema_momentum=0.8)
    ),
    "accumulated gradients": lambda: OF_KERAS.Adam(0.01, gradient_accumulation_steps=3, global_clipnorm=1.0),
    "a schedule": lambda: OF_KERAS.SGD(OF_KERAS.schedules.CosineDecay(0.1, 8, warmup_target=0.2, warmup_steps=3)),
}
KINDS |= {
    f"trained by {name}": Kind(dense(1, "sigmoid", "binary_crossentropy", optimizer=make), binary, SMALL)
    for name, make in OPTIMIZERS.items()
}
KINDS |= {
    f"loss {loss}": Kind(dense(2, "softplus", loss), numbers, {"R2Score": NUMBERS["R2Score"]})
    for loss in ("mae", "msle", "mape", "huber", "log_cosh", "poisson", "cosine_similarity")
}
KINDS["with Dropout"] = Kind(
    dense(1, "sigmoid", "binary_crossentropy", lambda: keras.layers.Dropout(0.3)), binary, SMALL, is_random=True
)
