"""The work that every contender does. NumPy and the standard library only, so that it loads in any environment.

MNIST dealt to 100 clients of 600 examples, 10 clients a round, batches of 32 (the nineteenth holds 24), one local
epoch, SGD 0.1, float32. Every contender starts from the same weights and reports one JSON line a round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLIENTS, EXAMPLES, COHORT = 100, 600, 10
BATCH, LEARNING_RATE = 32, 0.1
STEPS = math.ceil(EXAMPLES / BATCH)
MODELS = ("mlp", "cnn")

# Kernels as Keras lays them out: (in, out) and (height, width, in, out), each followed by its bias.
SHAPES = {
    "mlp": ((784, 200), (200,), (200, 200), (200,), (200, 10), (10,)),
    "cnn": ((5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)),
}


class Digits(NamedTuple):
    """Examples of digits: x float32 in [0, 1], (n, 784) for the MLP and (n, 28, 28, 1) for the CNN; y int32, (n,)."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def mnist_file() -> Path | None:
    """Return mnist.npz in $UMBEL_DATA, else where Keras keeps it; None where there is neither."""
    folders = [os.environ.get("UMBEL_DATA"), Path.home() / ".keras" / "datasets"]
    files = (Path(folder) / "mnist.npz" for folder in folders if folder)
    return next((file for file in files if file.exists()), None)


def load(model: str) -> Digits:
    """Load MNIST, or synthetic digits of the same shapes where mnist.npz is not found."""
    file = mnist_file()
    if file:
        with np.load(file) as arrays:
            parts = [arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    else:
        parts = [*synthetic(60_000, 1), *synthetic(10_000, 2)]
    shape = (-1, 784) if model == "mlp" else (-1, 28, 28, 1)
    pixels = [(images.astype(np.float32) / 255).reshape(shape) for images in parts[::2]]
    labels = [digits.astype(np.int32) for digits in parts[1::2]]
    return Digits(pixels[0], labels[0], pixels[1], labels[1])


def synthetic(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ten smooth random patterns under heavy noise: (count, 28, 28) uint8 and (count,) uint8."""
    patterns = np.kron(np.random.default_rng(0).random((10, 7, 7)), np.ones((4, 4)))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count)
    noise = generator.standard_normal((count, 28, 28), np.float32)
    return np.clip(40 + 48 * patterns[labels] + 64 * noise, 0, 255).astype(np.uint8), labels.astype(np.uint8)


def partition() -> np.ndarray:
    """Draw the clients' rows of the training set, IID: int64, (100, 600)."""
    return np.random.default_rng(0).permutation(CLIENTS * EXAMPLES).reshape(CLIENTS, EXAMPLES)


def cohort(round: int) -> list[int]:
    """Draw ten of a hundred clients."""
    return np.random.default_rng([1, round]).choice(CLIENTS, COHORT, replace=False).tolist()


def initial(model: str) -> list[np.ndarray]:
    """Draw Glorot-uniform kernels and zero biases, in the order of SHAPES."""
    generator = np.random.default_rng(2)
    weights = []
    for shape in SHAPES[model]:
        field = math.prod(shape[:-2])
        limit = math.sqrt(6 / (field * (shape[-2] + shape[-1]))) if len(shape) > 1 else 0.0
        weights.append(generator.uniform(-limit, limit, shape).astype(np.float32))
    return weights


def build(keras: Any, model: str) -> Any:
    """Build the model, compiled, from `keras` or `tf_keras`, with the initial weights. Outputs are logits."""
    layers = keras.layers
    if model == "mlp":
        stack = [layers.Dense(200, "relu"), layers.Dense(200, "relu"), layers.Dense(10)]
    else:
        stack = [
            layers.Conv2D(32, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(512, "relu"),
            layers.Dense(10),
        ]
    built = keras.Sequential([keras.Input((784,) if model == "mlp" else (28, 28, 1)), *stack])
    built.set_weights(initial(model))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    built.compile(keras.optimizers.SGD(LEARNING_RATE), loss)
    return built


def accuracy(predict: Callable[[np.ndarray], Any], digits: Digits) -> float:
    """Return the fraction of test digits whose largest logit is theirs; predict maps a batch of 1,000 to logits."""
    batches = np.split(digits.x_test, len(digits.x_test) // 1000)
    guesses = np.concatenate([np.asarray(predict(batch)).argmax(1) for batch in batches])
    return float((guesses == digits.y_test).mean())


def mean(updates: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return the mean of lists of arrays; all clients weigh the same."""
    return [sum(arrays) / np.float32(len(updates)) for arrays in zip(*updates, strict=True)]


def arguments() -> argparse.Namespace:
    """Parse --model and --rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def report(round: int, seconds: float, accuracy: float | None = None, note: str | None = None) -> None:
    """Print one finished round on standard output. Accuracy comes with the last round, outside its seconds."""
    print(json.dumps({"round": round, "seconds": seconds, "accuracy": accuracy, "note": note}), flush=True)
