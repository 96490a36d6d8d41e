"""Building the user's model: the same names and the same initial weights in every worker and every process."""

from __future__ import annotations

import collections
import hashlib
import inspect
import json
import random
import re
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import zip_longest
from typing import Any, NamedTuple

import keras
import numpy as np
from keras.src.backend.common import global_state

from ...core.errors import ConfigError
from ...core.examples import Examples, leaves, map_arrays
from ...core.random import Key
from ...core.reading.fingerprints import digest_of
from ...core.spec import settle
from ...core.validation import callable_name, lacking
from .serialized import without_tensorflow

# Held while a model is built or traced: Keras's names, Python's random numbers and what is replaced for a trace are the
# process's, and runs may be side by side in threads.
BUILDING = threading.RLock()

# Keras numbers layers ("dense", "dense_1") by a counter that lasts as long as the process.
NAME_COUNTERS = "object_name_uids"


class Built(NamedTuple):
    """A model that is ready to be trained."""

    model: keras.Model
    moved: frozenset[int]  # places in model.weights of the variables that its train_step assigns
    origin: str  # digest of the model as its builder returned it; empty for one that was given as it is


def build_model(
    make: Callable[[], Any] | keras.Model, sample: Examples, key: Key, create: Callable[[Any, Examples], frozenset[int]]
) -> Built:
    """Build make()'s model, its optimizer and its metrics, with weights drawn from key.

    make: a function, or a compiled model: one like it is built from its configuration, with its weights as they are.

    sample: at least one example, of the shapes the model will be trained on. create: creates all variables that the
    backend makes lazily, for a batch, and returns the places of those that a training step assigns. Errors: ConfigError
    for something that is not a compiled Keras model or does not fit the sample, with Keras's own words.
    """
    name = repr(make) if isinstance(make, keras.Model) else f"{callable_name(make)}()"
    with fresh_names(), seeded_initializers(key):
        model = make_model(make)
        origin = origin_of(model, make)
        if not isinstance(model, keras.Model):
            raise ConfigError(f"expected model={name} to return a Keras model, got {type(model).__name__}")
        if not getattr(model, "compiled", False) or model.optimizer is None:
            raise ConfigError(
                f"model={name} is not compiled; call model.compile(optimizer=…, loss=…) before returning it"
            )
        one = for_batches(model, sample)
        check_labels(model, sample)
        try:
            moved = create(model, one)
        except ConfigError:
            raise
        except Exception as error:
            hint = "; the examples have no y, and the model has a loss" if sample.y is None and model.loss else ""
            raise ConfigError(
                f"model={name} does not train on an example of {shapes(one)}: {reason(error)}{hint}"
            ) from error
        check_inputs(model, sample)
    return Built(model, moved, origin)


def origin_now(make: Callable[[], Any] | keras.Model, key: Key) -> str:
    """Return the origin that `build_model` would find now.

    It tells whether a builder still makes the same model, whatever it reads: files, the environment, Keras's settings.
    """
    if isinstance(make, keras.Model):
        return ""
    with BUILDING, fresh_names(), seeded_initializers(key):
        return origin_of(make_model(make), make)


def origin_of(model: Any, make: Callable[[], Any] | keras.Model) -> str:
    """Describe the configuration and the weights, by their digests, of a model that make() returned; see `Built`."""
    if not isinstance(model, keras.Model) or isinstance(make, keras.Model):
        return ""
    weights = [digest_of(keras.ops.convert_to_numpy(weight)) for weight in model.weights]
    return (
        f"{describe_model(model)} {vocabularies_of(model)} {keras.config.floatx()} {keras.config.epsilon()} {weights}"
    )


def made(make: Callable[[], Any], name: str) -> Any:
    """Return make()'s result. Errors: ConfigError for whatever it raises, with the line of its file that did."""
    try:
        return make()
    except ConfigError:
        raise
    except Exception as error:
        lines = [
            f" at {frame.filename}, line {frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == file_of(make)
        ]
        where = lines[-1] if lines else ""
        raise ConfigError(f"model={name}() failed{where}: {type(error).__name__}: {reason(error)}") from error


def file_of(make: Callable[[], Any]) -> str:
    """Return the file that a function was defined in; empty for what is no function."""
    code = getattr(inspect.unwrap(make), "__code__", None)
    return "" if code is None else str(code.co_filename)


def make_model(make: Callable[[], Any] | keras.Model) -> Any:
    """Return make()'s result or, where make is a model, another model like it."""
    return like(make) if isinstance(make, keras.Model) else made(make, callable_name(make))


def like(model: keras.Model) -> keras.Model:
    """Build another model of the same configuration and weights; its optimizer begins anew.

    Errors: ConfigError for one that is not compiled, or cannot be built from its configuration alone.
    """
    if not getattr(model, "compiled", False):
        raise ConfigError(f"model={model!r} is not compiled; call model.compile(optimizer=…, loss=…) first")
    if not model.built:
        raise ConfigError(
            f"model={model!r} has no weights yet: call it on an example, or give a function that builds it"
        )
    try:
        with without_lambda_warnings(), without_tensorflow():
            config = keras.saving.serialize_keras_object(model)
        other = keras.saving.deserialize_keras_object(config, safe_mode=False)
        copy_adapted(other, model)
        check_alike(other, model)
        other.set_weights(model.get_weights())
        settle(other)
    except Exception as error:
        raise ConfigError(
            f"model={model!r} cannot be built again from its configuration ({reason(error)}); give a function that "
            "builds it: model=build_model"
        ) from error
    if not getattr(other, "compiled", False):
        raise ConfigError(
            f"model={model!r} was compiled with what its configuration does not hold, a loss or metric of its own say; "
            "give a function that builds it: model=build_model"
        )
    # A layer's configuration holds whether the layer is trained, and not whether each of its variables is.
    for new, old in zip(other.weights, model.weights, strict=True):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    return other


def copy_adapted(other: keras.Model, model: keras.Model) -> None:
    """Give other's lookups the words that adapt() taught model's: no configuration and no weight holds them."""
    for new, old in zip(lookups_of(other), lookups_of(model), strict=True):
        learnt: dict[str, Any] = {}
        old.save_own_variables(learnt)
        new.load_own_variables(learnt)
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def is_one_object(make: Callable[[], Any] | keras.Model, model: keras.Model) -> bool:
    """Return whether make returns that very model whenever it is called, as `lambda: model` does."""
    if isinstance(make, keras.Model):
        return False
    with fresh_names():
        return make_model(make) is model


def vocabularies_of(model: keras.Model) -> list[list[Any]]:
    """Return the words of the model's lookups, which they were given or have learnt: these are no weights."""
    return [list(layer.get_vocabulary()) for layer in lookups_of(model)]


def lookups_of(model: keras.Model) -> list[Any]:
    """List the layers of a model that number words, or other values."""
    return [layer for layer in model._flatten_layers() if not lacking(layer, ("adapt", "get_vocabulary"))]


def check_alike(other: keras.Model, model: keras.Model) -> None:
    """Raise ValueError where other's variables are not model's, in their order: values would go to the wrong ones."""
    kinds = [[(one.name, tuple(one.shape), str(one.dtype)) for one in each.weights] for each in (other, model)]
    for new, old in zip_longest(*kinds):
        if new != old:
            raise ValueError(f"it has {old} where the configuration gives {new}")


def reason(error: Exception) -> str:
    """Return the line of a Keras error that says what is wrong: not the first, which says in which layer's call."""
    plain = re.sub(r"\x1b\[\d*m|\{\{.*?\}\}", "", str(error))  # without colours and the names of TensorFlow's nodes
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    inner = lines[1:] if lines and lines[0].startswith("Exception encountered when calling") else lines
    return inner[0] if inner else type(error).__name__


def as_keras(examples: Examples) -> Examples:
    """Return examples as `fit` would take them: floats of any width as `keras.config.floatx()`, all else as it is.

    Arrays of that type, and tensors, are not copied.
    """
    floatx = keras.config.floatx()

    def cast(array: Any) -> Any:
        is_other = isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.dtype != floatx
        return array.astype(floatx) if is_other else array

    return Examples(*(map_arrays(cast, part) for part in examples))


def declared_batch(model: keras.Model) -> int | None:
    """Return the batch size that the model's inputs are declared with, Input(batch_shape=…); None without one."""
    sizes = {one.shape[0] for one in getattr(model, "inputs", None) or ()} - {None}
    return int(min(sizes)) if sizes else None


def for_batches(model: keras.Model, examples: Examples) -> Examples:
    """Return the first example, as often as the model's declared batch size says."""
    return examples.take(np.zeros(declared_batch(model) or 1, np.intp))


def batch_of(examples: Examples) -> tuple:
    """Return examples as Keras's train_step takes them: (x,), (x, y) or (x, y, sample_weight)."""
    if examples.sample_weight is not None:
        return tuple(examples)
    return (examples.x,) if examples.y is None else (examples.x, examples.y)


def shapes(examples: Examples) -> str:
    """Describe shapes and types of examples without their first axis, for messages."""
    parts = zip(("x", "y", "sample_weight"), examples, strict=True)
    return ", ".join(
        f"{name}: {' + '.join(f'{array.dtype}{list(array.shape[1:])}' for array in leaves(part))}"
        for name, part in parts
        if part is not None
    )


def check_inputs(model: keras.Model, examples: Examples) -> None:
    """Raise ConfigError for text, or complex numbers, where all of a model's declared inputs are real numbers.

    Keras casts them: the imaginary part is lost without a word, and text ends the first step.
    """
    declared = {str(one.dtype) for one in getattr(model, "inputs", None) or ()}
    for array in leaves(examples.x):
        kind = "complex" if np.iscomplexobj(array) else "string" if array.dtype.kind in "OSUT" else ""
        if declared and kind == "complex" and not any(one.startswith("complex") for one in declared):
            raise ConfigError(
                f"x is of type {array.dtype}, and the model's inputs are real: make two features of the real and the "
                "imaginary part, x.view(float)"
            )
        if declared and kind == "string" and "string" not in declared:
            raise ConfigError(
                "x is text, and the model's inputs are numbers: encode it, or begin the model with "
                'keras.Input((), dtype="string") and TextVectorization or StringLookup'
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
            "name them once for all clients and the test set, as data.PerClient(clients, classes=(…)) does"
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
    """Compute a digest of the architecture, loss, metrics and optimizer settings, hex."""
    with without_lambda_warnings(), without_tensorflow():
        return _digest_of(model)


def _digest_of(model: keras.Model) -> str:
    parts = {"compile": keras.saving.serialize_keras_object(model.get_compile_config() or {})}
    try:
        parts["architecture"] = model.get_config()
    except NotImplementedError:  # a subclassed model without get_config: its variables stand for it
        parts["architecture"] = [(weight.path, list(weight.shape)) for weight in model.weights]
    text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(parts, sort_keys=True, default=str))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def without_lambda_warnings() -> Iterator[None]:
    """Keep Keras from warning, inside, of code in a configuration that nobody loads from a file."""
    with BUILDING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*includes a `lambda`", category=UserWarning)
        yield


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
    """Seed the draws of initializers that have no seed of their own, inside.

    Keras takes a missing seed from Python's generator, and builders draw from NumPy's and the backend's.
    """
    with seeded_python(key), seeded_backend(key):
        yield


@contextmanager
def seeded_python(key: Key) -> Iterator[Callable[[], bool]]:
    """Seed Python's own generator and NumPy's inside, and put them back after.

    Yields a function that says whether anything has been drawn from NumPy's yet.
    """
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(key.digest)
    np.random.seed(np.frombuffer(key.digest, np.uint32))
    begin = np.random.get_state()

    def has_drawn() -> bool:
        return not all(map(np.array_equal, begin, np.random.get_state()))

    try:
        yield has_drawn
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def seeded_backend(key: Key) -> AbstractContextManager[None]:
    """Seed what draws from the backend's own generator inside; JAX has none."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    from ..tensorflow.randomness import seeded

    return seeded(key)
