"""Ghost clipping with one backward pass: which layers allow it, and what they leave behind for it.

A forward pass notes what goes into each layer and what comes out; a backward pass gives the loss's gradient there. Both
together are all that norms and clipped sums of the examples' gradients take (`contributions`).

Source: Bu, Wang, Zha, Karypis 2023: Differentially Private Optimization on Large Model at Small Cost.
https://arxiv.org/abs/2210.00038
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.models.functional import Functional

from .compat import axis_of
from .contributions import Contribution, Lookup, Whole, filtered, outer, places

layers, losses = keras.layers, keras.losses

# Layers that look at one example at a time, and have nothing to learn.
PLAIN = {
    *(layers.InputLayer, layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.GaussianNoise, layers.GaussianDropout),
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector, layers.Rescaling, layers.Identity),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.AveragePooling1D, layers.AveragePooling2D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D),
    *(layers.UpSampling1D, layers.UpSampling2D),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum),
}

# Losses that are a mean over examples of what each would have alone.
MEANS = {
    *(losses.SparseCategoricalCrossentropy, losses.CategoricalCrossentropy, losses.BinaryCrossentropy),
    *(losses.BinaryFocalCrossentropy, losses.CategoricalFocalCrossentropy, losses.KLDivergence, losses.Poisson),
    *(losses.MeanSquaredError, losses.MeanAbsoluteError, losses.Huber, losses.LogCosh, losses.CosineSimilarity),
    *(losses.Hinge, losses.SquaredHinge, losses.CategoricalHinge),
}
MEAN_NAMES = {
    *("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy", "mse", "mae"),
    *("mean_squared_error", "mean_absolute_error", "huber", "log_cosh", "kl_divergence", "poisson", "hinge"),
}


class Use(NamedTuple):
    """A variable's use in the forward pass: where its output is, and what a gradient there contributes."""

    variable: keras.Variable
    output: tf.Tensor
    contribution: Callable[[tf.Tensor], Contribution]


def can_ghost(model: keras.Model) -> bool:
    """Say whether `contributions` gives what examples alone would: every layer, activation and loss has to be known."""
    if type(model) not in (keras.Sequential, Functional) or not is_known_loss(model.loss):
        return False
    parts = list(operations(model))
    has_known_shapes = not any(None in tuple(one.shape)[1:] for one in model.inputs)
    convolves = any(isinstance(part, (layers.Conv1D, layers.Conv2D)) for part in parts)
    return all(map(is_known, parts)) and (has_known_shapes or not convolves)


def operations(model: keras.Model) -> Iterator[Any]:
    """Yield every layer and operation of a Sequential or functional model, models in it opened."""
    for part in model.layers if isinstance(model, keras.Sequential) else model.operations:
        if type(part) in (keras.Sequential, Functional):
            yield from operations(part)
        else:
            yield part


def is_known(layer: Any) -> bool:
    """Return whether `uses_of` can stand in for this layer, or it needs no standing in for."""
    kind = type(layer)
    if getattr(layer, "activity_regularizer", None) is not None or not has_known_activation(layer):
        return False
    if kind in (layers.Concatenate, layers.Softmax):
        return isinstance(layer.axis, int) and (layer.axis == -1 or layer.axis > 0)  # not along the batch
    if kind in PLAIN:
        return True
    if kind is layers.BatchNormalization:
        return not layer.trainable  # frozen, it does not look at the batch
    return kind in STAND_INS and is_ordinary(layer)


def has_known_activation(layer: Any) -> bool:
    """Return whether a layer's activation is one of Keras's own: another might look at the whole batch."""
    activation = getattr(layer, "activation", None)
    return activation is None or activation in KNOWN_ACTIVATIONS or type(activation) in PLAIN


def is_ordinary(layer: Any) -> bool:
    """Return whether a layer has none of the settings that the stand-ins leave out."""
    refused = (
        getattr(layer, "lora_enabled", False),
        getattr(layer, "quantization_mode", None) is not None,
        getattr(layer, "mask_zero", False),
        getattr(layer, "groups", 1) != 1 and isinstance(layer, (layers.Conv1D, layers.Conv2D)),
        getattr(layer, "data_format", "channels_last") != "channels_last",
        getattr(layer, "padding", "valid") not in ("valid", "same"),
        getattr(layer, "axis", -1) not in (-1, [-1]),
        getattr(layer, "rms_scaling", False),
    )
    return not any(refused)


def is_known_loss(loss: Any) -> bool:
    """Return whether a compiled loss, or each of several, is a mean over examples."""
    if isinstance(loss, (dict, list, tuple)):
        return all(is_known_loss(one) for one in (loss.values() if isinstance(loss, dict) else loss))
    if isinstance(loss, str):
        return loss in MEAN_NAMES
    is_mean = getattr(loss, "reduction", None) == "sum_over_batch_size"
    return type(loss) in MEANS and is_mean and getattr(loss, "ignore_class", None) is None and along_classes(loss)


def along_classes(loss: Any) -> bool:
    """Return whether a loss looks along its last axis alone: along the first it would look at the whole batch."""
    return axis_of(loss) == -1


@contextlib.contextmanager
def uses_of(model: keras.Model) -> Iterator[list[Use]]:
    """Yield a list in which a forward pass inside notes every use of a trainable variable."""
    found: list[Use] = []
    replaced = [one for one in dict.fromkeys(operations(model)) if type(one) in STAND_INS and one.trainable_variables]
    for layer in replaced:
        object.__setattr__(layer, "call", STAND_INS[type(layer)](layer, found))
    try:
        yield found
    finally:
        for layer in replaced:
            object.__delattr__(layer, "call")


def contributions(uses: list[Use], gradients: list[tf.Tensor | None]) -> dict[int, Contribution]:
    """Return the examples' contributions to each variable, by its id. gradients: the loss's, at the uses' outputs."""
    found: dict[int, list[Contribution]] = {}
    for use, gradient in zip(uses, gradients, strict=True):
        if gradient is not None:
            found.setdefault(id(use.variable), []).append(use.contribution(tf.cast(gradient, tf.float32)))
    # A variable used twice: its uses' gradients add up, and their norms do not.
    return {
        variable: parts[0] if len(parts) == 1 else Whole(tf.add_n([part.per_example() for part in parts]))
        for variable, parts in found.items()
    }


def shift(variable: keras.Variable, output: tf.Tensor) -> Use:
    """Return the use of a variable that is added to every place."""
    return Use(variable, output, lambda gradient: Whole(tf.reduce_sum(places(gradient), 1)))


def dense(layer: Any, found: list[Use]) -> Callable[..., Any]:
    """Make a stand-in for Dense.call that lists its uses."""

    def call(inputs: Any, training: bool | None = None) -> Any:
        output = keras.ops.matmul(inputs, layer.kernel)
        if layer.bias is not None:
            output = keras.ops.add(output, layer.bias)
            found.append(shift(layer.bias, output))
        rows = places(inputs)
        found.append(Use(layer._kernel, output, lambda gradient: outer(rows, places(gradient))))
        return output if layer.activation is None else layer.activation(output)

    return call


def convolution(layer: Any, found: list[Use]) -> Callable[..., Any]:
    """Make a stand-in for Conv1D.call or Conv2D.call that lists its uses."""

    def call(inputs: Any) -> Any:
        output = layer.convolution_op(inputs, layer.kernel)
        if layer.use_bias:
            output = keras.ops.add(output, layer.bias)
            found.append(shift(layer.bias, output))
        found.append(Use(layer._kernel, output, lambda gradient: image_of(layer, inputs, gradient)))
        return output if layer.activation is None else layer.activation(output)

    return call


def image_of(layer: Any, inputs: tf.Tensor, gradient: tf.Tensor) -> Contribution:
    """Return what a convolution's inputs contribute to its kernel, given the gradient at its output."""
    size, strides, rates = layer.kernel_size, layer.strides, layer.dilation_rate
    inputs, gradient = tf.cast(inputs, tf.float32), tf.cast(gradient, tf.float32)
    if len(size) == 1:  # an image of one row
        inputs, gradient, size, strides, rates = (
            inputs[:, None],
            gradient[:, None],
            (1, *size),
            (1, *strides),
            (1, *rates),
        )
    return filtered(inputs, gradient, tuple(layer._kernel.shape), size, strides, rates)


def embedding(layer: Any, found: list[Use]) -> Callable[..., Any]:
    """Make a stand-in for Embedding.call that lists its use."""

    def call(inputs: Any) -> Any:
        ids = tf.cast(inputs, tf.int32)
        output = tf.cast(tf.gather(tf.convert_to_tensor(layer.embeddings), ids), layer.compute_dtype)
        flat = tf.reshape(ids, [tf.shape(ids)[0], -1 if None in ids.shape[1:] else ids.shape[1:].num_elements()])
        found.append(Use(layer._embeddings, output, lambda gradient: Lookup(flat, places(gradient), layer.input_dim)))
        return output

    return call


def normalisation(layer: Any, found: list[Use]) -> Callable[..., Any]:
    """Make a stand-in for LayerNormalization.call or GroupNormalization.call that lists its uses."""

    def call(inputs: Any) -> Any:
        output = normalised = standardised(layer, inputs)
        if layer.gamma is not None:
            output = output * keras.ops.cast(layer.gamma, output.dtype)
        if layer.beta is not None:
            output = output + keras.ops.cast(layer.beta, output.dtype)
            found.append(shift(layer.beta, output))
        if layer.gamma is not None:
            rows = places(normalised)
            found.append(Use(layer.gamma, output, lambda gradient: Whole(tf.reduce_sum(rows * places(gradient), 1))))
        return output

    return call


def standardised(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    """Compute a normalisation's output before scale and shift."""
    if isinstance(layer, layers.LayerNormalization):
        return keras.ops.layer_normalization(inputs, None, None, layer.axis, layer.epsilon)
    before = layer.scale, layer.center
    layer.scale = layer.center = False
    try:
        return type(layer).call(layer, inputs)
    finally:
        layer.scale, layer.center = before


STAND_INS: dict[type, Callable[[Any, list[Use]], Callable[..., Any]]] = {
    layers.Dense: dense,
    layers.Conv1D: convolution,
    layers.Conv2D: convolution,
    layers.Embedding: embedding,
    layers.LayerNormalization: normalisation,
    layers.GroupNormalization: normalisation,
}
known = keras.activations
KNOWN_ACTIVATIONS = {
    *(known.relu, known.relu6, known.leaky_relu, known.elu, known.selu, known.gelu, known.silu, known.mish),
    *(known.softplus, known.softsign, known.tanh, known.sigmoid, known.hard_sigmoid, known.exponential),
    *(known.linear, known.softmax, known.log_softmax),
}
