"""Building the user's model: the same names and the same initial weights in every worker and every process."""

from __future__ import annotations

import collections
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from ..core.errors import ConfigError
from ..core.examples import Examples, leaves
from ..core.random import Key

# Keras numbers layers ("dense", "dense_1") by a counter that lasts as long as the process.
NAME_COUNTERS = "object_name_uids"


def build_model(make: Callable[[], Any], sample: Examples, key: Key) -> keras.Model:
    """Build make()'s model, its optimizer and its metrics, with weights drawn from key.

    sample: at least one example, of the shapes the model will be trained on. One training step on it creates whatever
    Keras creates lazily; weights are then put back. Errors: ConfigError for something that is not a compiled Keras
    model or does not fit the sample, with Keras's own words.
    """
    name = getattr(make, "__qualname__", repr(make))
    with fresh_names(), seeded_initializers(key):
        model = make()
        if not isinstance(model, keras.Model):
            raise ConfigError(f"expected model={name}() to return a Keras model, got {type(model).__name__}")
        if not getattr(model, "compiled", False) or model.optimizer is None:
            raise ConfigError(
                f"model={name}() is not compiled; call model.compile(optimizer=…, loss=…) before returning it"
            )
        one = sample.take(slice(0, 1))
        check_labels(model, sample)
        try:
            create_variables(model, one)
        except Exception as error:
            raise ConfigError(
                f"model={name}() does not train on an example of {shapes(one)}: {reason(error)}"
            ) from error
    if getattr(model.optimizer, "use_ema", False):
        raise ConfigError(
            f"model={name}() uses an optimizer with use_ema=True, whose averages outlive a client's round"
        )
    return model


def create_variables(model: keras.Model, one: Examples) -> None:
    """Create what Keras creates lazily, in one training step on one example; every value is put back after it."""
    if not model.built:
        model(one.x)
    model.optimizer.build(model.trainable_variables)
    with kept([*model.weights, *model.optimizer.variables]):
        model.train_step(batch_of(one))
    model.reset_metrics()


def check_test(model: keras.Model, examples: Examples) -> None:
    """Evaluate the first test example; every value is put back. Errors: ConfigError, before a round is spent."""
    try:
        check_labels(model, examples)
        one = examples.take(slice(0, 1))
        with kept(model.non_trainable_variables):
            model.test_step(batch_of(one))
            model.reset_metrics()
    except ConfigError as error:
        raise ConfigError(f"test: {error}") from error
    except Exception as error:
        raise ConfigError(f"the model does not fit a test example of {shapes(one)}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The line of a Keras error that says what is wrong: not the first, which says in which layer's call."""
    plain = re.sub(r"\x1b\[\d*m|\{\{.*?\}\}", "", str(error))  # without colours and the names of TensorFlow's nodes
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    inner = lines[1:] if lines and lines[0].startswith("Exception encountered when calling") else lines
    return inner[0] if inner else type(error).__name__


@contextmanager
def kept(variables: Sequence[Any]) -> Iterator[None]:
    """Put the variables' values back after, whatever happens inside."""
    before = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def batch_of(examples: Examples) -> tuple:
    """What Keras's train_step takes: (x,), (x, y) or (x, y, sample_weight)."""
    if examples.sample_weight is not None:
        return tuple(examples)
    return (examples.x,) if examples.y is None else (examples.x, examples.y)


def shapes(examples: Examples) -> str:
    """Shapes and types of examples without their first axis, for messages."""
    parts = zip(("x", "y", "sample_weight"), examples, strict=True)
    return ", ".join(
        f"{name}: {' + '.join(f'{array.dtype}{list(array.shape[1:])}' for array in leaves(part))}"
        for name, part in parts
        if part is not None
    )


def check_labels(model: keras.Model, examples: Examples) -> None:
    """Raise ConfigError when integer class labels do not fit a single-output model's classes.

    Compiled by XLA, TensorFlow answers a label out of range with NaN, and without it only with the batch at hand.
    """
    loss = model.loss
    is_sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or loss in (
        "sparse_categorical_crossentropy",
    )
    outputs = getattr(model, "outputs", None)
    if (
        not is_sparse
        or not outputs
        or len(outputs) != 1
        or not isinstance(examples.y, np.ndarray)
        or not examples.count
    ):
        return
    labels = examples.y
    if labels.dtype.kind not in "iufb":
        raise ConfigError(
            f"labels are of type {labels.dtype}, and sparse_categorical_crossentropy takes the numbers of classes: "
            "y = np.unique(y, return_inverse=True)[1]"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ConfigError("labels are not all finite: NaN is no class; drop those examples")
    classes = outputs[0].shape[-1]
    ignored = getattr(loss, "ignore_class", None)
    low, high = int(labels.min()), int(labels.max())
    if classes is not None and ignored is None and (low < 0 or high >= classes):
        worst = low if low < 0 else high
        raise ConfigError(
            f"label {worst} is out of range: the model has {classes} outputs, so labels must be 0 to {classes - 1}"
        )


def describe_model(model: keras.Model) -> str:
    """A digest of the architecture, loss, metrics and optimizer settings, hex."""
    parts = {"compile": keras.saving.serialize_keras_object(model.get_compile_config() or {})}
    try:
        parts["architecture"] = model.get_config()
    except NotImplementedError:  # a subclassed model without get_config: its variables stand for it
        parts["architecture"] = [(weight.path, list(weight.shape)) for weight in model.weights]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def fresh_names() -> Iterator[None]:
    """Count layer names from zero inside, and put the counters back after."""
    before = global_state.get_global_attribute(NAME_COUNTERS)
    global_state.set_global_attribute(NAME_COUNTERS, collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(NAME_COUNTERS, before)


@contextmanager
def seeded_initializers(key: Key) -> Iterator[None]:
    """Keras draws an initializer's missing seed from Python's generator: seed it inside, and put it back after."""
    before = random.getstate()
    random.seed(key.digest)
    try:
        yield
    finally:
        random.setstate(before)
