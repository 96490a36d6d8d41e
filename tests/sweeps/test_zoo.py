"""Models of every kind of layer under DP-SGD: clipped sums are brute force's, and no example moves one by more."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from umbel.clients.keras.one_by_one import check_model, penalised
from umbel.clients.tensorflow.clipped import Rule, ghost_sum, looped_sum
from umbel.clients.tensorflow.ghost import can_ghost
from umbel.core.errors import UmbelError
from umbel.core.examples import Examples

BATCH, RANDOM = 6, np.random.default_rng(0)
ZOO = {}


def reals(*shape):
    return RANDOM.normal(size=(BATCH, *shape)).astype("float32")


def ids(high, *shape):
    return RANDOM.integers(0, high, (BATCH, *shape)).astype("int32")


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def stack(*parts):
    return keras.Sequential(list(parts))


def compiled(model, loss=None, **options):
    model.compile(keras.optimizers.SGD(0.1), loss or cross_entropy(), **options)
    return model


def kept(make):
    ZOO[make.__name__] = make
    return make


@kept
def dense():
    return compiled(stack(layers.Input((5,)), layers.Dense(7, "relu"), layers.Dense(3))), reals(5), ids(3)


@kept
def dense_no_bias():
    return (
        compiled(stack(layers.Input((5,)), layers.Dense(7, "tanh", use_bias=False), layers.Dense(3))),
        reals(5),
        ids(3),
    )


@kept
def dense_seq_outer():
    return (
        compiled(
            stack(layers.Input((4, 40)), layers.Dense(60, "gelu"), layers.GlobalAveragePooling1D(), layers.Dense(3))
        ),
        reals(4, 40),
        ids(3),
    )


@kept
def dense_seq_whole():
    return (
        compiled(stack(layers.Input((30, 4)), layers.Dense(5, "relu"), layers.Flatten(), layers.Dense(3))),
        reals(30, 4),
        ids(3),
    )


@kept
def dense_rank4():
    return (
        compiled(stack(layers.Input((3, 4, 20)), layers.Dense(30, "relu"), layers.Flatten(), layers.Dense(3))),
        reals(3, 4, 20),
        ids(3),
    )


@kept
def conv2d_valid():
    return (
        compiled(
            stack(layers.Input((9, 9, 2)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3))
        ),
        reals(9, 9, 2),
        ids(3),
    )


@kept
def conv2d_same_stride():
    return (
        compiled(
            stack(
                layers.Input((9, 8, 2)),
                layers.Conv2D(4, (3, 2), strides=2, padding="same"),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(9, 8, 2),
        ids(3),
    )


@kept
def conv2d_stride_gt_kernel():
    return (
        compiled(
            stack(
                layers.Input((11, 11, 2)),
                layers.Conv2D(4, 2, strides=3, padding="same"),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(11, 11, 2),
        ids(3),
    )


@kept
def conv2d_valid_stride3():
    return (
        compiled(
            stack(
                layers.Input((11, 10, 2)), layers.Conv2D(4, (2, 3), strides=(3, 2)), layers.Flatten(), layers.Dense(3)
            )
        ),
        reals(11, 10, 2),
        ids(3),
    )


@kept
def conv2d_dilated():
    return (
        compiled(
            stack(
                layers.Input((11, 11, 2)),
                layers.Conv2D(4, 3, dilation_rate=(2, 3), padding="same"),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(11, 11, 2),
        ids(3),
    )


@kept
def conv2d_dilated_valid_big():
    return (
        compiled(
            stack(layers.Input((11, 11, 16)), layers.Conv2D(64, 3, dilation_rate=4), layers.Flatten(), layers.Dense(3))
        ),
        reals(11, 11, 16),
        ids(3),
    )


@kept
def conv2d_norm_path():
    return (
        compiled(
            stack(
                layers.Input((4, 4, 32)),
                layers.Conv2D(64, 3, padding="same", activation="relu"),
                layers.GlobalMaxPooling2D(),
                layers.Dense(3),
            )
        ),
        reals(4, 4, 32),
        ids(3),
    )


@kept
def conv2d_1x1():
    return (
        compiled(stack(layers.Input((4, 4, 32)), layers.Conv2D(64, 1, strides=2), layers.Flatten(), layers.Dense(3))),
        reals(4, 4, 32),
        ids(3),
    )


@kept
def conv2d_groups():
    return (
        compiled(stack(layers.Input((6, 6, 4)), layers.Conv2D(8, 3, groups=2), layers.Flatten(), layers.Dense(3))),
        reals(6, 6, 4),
        ids(3),
    )


@kept
def conv1d_causal():
    return (
        compiled(stack(layers.Input((9, 3)), layers.Conv1D(4, 3, padding="causal"), layers.Flatten(), layers.Dense(3))),
        reals(9, 3),
        ids(3),
    )


@kept
def conv1d_same_dil():
    return (
        compiled(
            stack(
                layers.Input((10, 3)),
                layers.Conv1D(4, 4, dilation_rate=2, padding="same"),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(10, 3),
        ids(3),
    )


@kept
def conv1d_stride():
    return (
        compiled(
            stack(
                layers.Input((10, 30)),
                layers.Conv1D(40, 3, strides=2, padding="same"),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(10, 30),
        ids(3),
    )


@kept
def conv3d():
    return (
        compiled(stack(layers.Input((4, 4, 4, 2)), layers.Conv3D(3, 2), layers.Flatten(), layers.Dense(3))),
        reals(4, 4, 4, 2),
        ids(3),
    )


@kept
def depthwise():
    return (
        compiled(
            stack(
                layers.Input((6, 6, 3)),
                layers.DepthwiseConv2D(3, depth_multiplier=2),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(6, 6, 3),
        ids(3),
    )


@kept
def separable():
    return (
        compiled(stack(layers.Input((6, 6, 3)), layers.SeparableConv2D(5, 3), layers.Flatten(), layers.Dense(3))),
        reals(6, 6, 3),
        ids(3),
    )


@kept
def transposed():
    return (
        compiled(
            stack(layers.Input((4, 4, 3)), layers.Conv2DTranspose(5, 3, strides=2), layers.Flatten(), layers.Dense(3))
        ),
        reals(4, 4, 3),
        ids(3),
    )


@kept
def embedding_repeats():
    return (
        compiled(
            stack(
                layers.Input((12,), dtype="int32"),
                layers.Embedding(5, 6),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3),
            )
        ),
        ids(5, 12),
        ids(3),
    )


@kept
def embedding_flat_2d():
    return (
        compiled(stack(layers.Input((3, 4), dtype="int32"), layers.Embedding(5, 6), layers.Flatten(), layers.Dense(3))),
        ids(5, 3, 4),
        ids(3),
    )


@kept
def embedding_one():
    return (
        compiled(stack(layers.Input((1,), dtype="int32"), layers.Embedding(50, 6), layers.Flatten(), layers.Dense(3))),
        ids(50, 1),
        ids(3),
    )


@kept
def embedding_mask_zero():
    return (
        compiled(
            stack(
                layers.Input((7,), dtype="int32"),
                layers.Embedding(5, 6, mask_zero=True),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3),
            )
        ),
        ids(5, 7),
        ids(3),
    )


@kept
def language_model():
    return (
        compiled(
            stack(layers.Input((7,), dtype="int32"), layers.Embedding(9, 6), layers.Dense(12, "relu"), layers.Dense(9))
        ),
        ids(9, 7),
        ids(9, 7),
    )


@kept
def lstm():
    return compiled(stack(layers.Input((5, 3)), layers.LSTM(4), layers.Dense(3))), reals(5, 3), ids(3)


@kept
def gru_bidirectional():
    return (
        compiled(stack(layers.Input((5, 3)), layers.Bidirectional(layers.GRU(4)), layers.Dense(3))),
        reals(5, 3),
        ids(3),
    )


@kept
def masked_lstm_tokens():
    return (
        compiled(
            stack(
                layers.Input((6,), dtype="int32"),
                layers.Embedding(5, 4, mask_zero=True),
                layers.LSTM(4, return_sequences=True),
                layers.Dense(5),
            )
        ),
        ids(5, 6),
        ids(5, 6),
    )


@kept
def layernorm():
    return (
        compiled(
            stack(
                layers.Input((6, 8)),
                layers.LayerNormalization(),
                layers.Dense(5, "relu"),
                layers.LayerNormalization(center=False),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(6, 8),
        ids(3),
    )


@kept
def groupnorm():
    return (
        compiled(
            stack(
                layers.Input((5, 5, 6)),
                layers.Conv2D(6, 3),
                layers.GroupNormalization(3),
                layers.Activation("relu"),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(5, 5, 6),
        ids(3),
    )


@kept
def rmsnorm():
    return (
        compiled(stack(layers.Input((6, 8)), layers.RMSNormalization(), layers.Flatten(), layers.Dense(3))),
        reals(6, 8),
        ids(3),
    )


@kept
def unitnorm():
    return (
        compiled(stack(layers.Input((6, 8)), layers.UnitNormalization(axis=0), layers.Flatten(), layers.Dense(3))),
        reals(6, 8),
        ids(3),
    )


@kept
def attention():
    i = layers.Input((5, 8))
    h = layers.MultiHeadAttention(2, 4)(i, i)
    h = layers.LayerNormalization()(i + h)
    h = layers.GlobalAveragePooling1D()(h)
    return compiled(keras.Model(i, layers.Dense(3)(h))), reals(5, 8), ids(3)


@kept
def shared_dense():
    i = layers.Input((6,))
    d = layers.Dense(6, "tanh")
    return compiled(keras.Model(i, layers.Dense(3)(d(d(d(i)))))), reals(6), ids(3)


@kept
def shared_conv_two_sizes():
    i = layers.Input((8, 8, 3))
    c = layers.Conv2D(3, 3, padding="same", activation="relu")
    a = layers.Flatten()(c(i))
    b = layers.Flatten()(c(layers.MaxPooling2D()(i)))
    return compiled(keras.Model(i, layers.Dense(3)(layers.Concatenate()([a, b])))), reals(8, 8, 3), ids(3)


@kept
def shared_embedding():
    a, b = layers.Input((4,), dtype="int32"), layers.Input((3,), dtype="int32")
    e = layers.Embedding(6, 5)
    h = layers.Concatenate()([layers.Flatten()(e(a)), layers.Flatten()(e(b))])
    return compiled(keras.Model([a, b], layers.Dense(3)(h))), [ids(6, 4), ids(6, 3)], ids(3)


@kept
def nested():
    inner = stack(layers.Input((5,)), layers.Dense(6, "relu"), layers.Dense(4))
    i = layers.Input((5,))
    return (
        compiled(keras.Model(i, layers.Dense(3)(layers.Add()([inner(i), inner(layers.Dense(5)(i))])))),
        reals(5),
        ids(3),
    )


@kept
def residual_ops():
    i = layers.Input((5,))
    h = layers.Dense(5)(i)
    return compiled(keras.Model(i, layers.Dense(3)(h * 2 + i))), reals(5), ids(3)


@kept
def batch_mixing_op():
    i = layers.Input((5,))
    h = layers.Dense(5)(i)
    h = h - keras.ops.mean(h, axis=0, keepdims=True)
    return compiled(keras.Model(i, layers.Dense(3)(h))), reals(5), ids(3)


@kept
def batch_mixing_lambda():
    return (
        compiled(
            stack(
                layers.Input((5,)),
                layers.Dense(5),
                layers.Lambda(lambda t: t / (1e-3 + keras.ops.std(t, axis=0, keepdims=True))),
                layers.Dense(3),
            )
        ),
        reals(5),
        ids(3),
    )


@kept
def batch_mixing_activation():
    return (
        compiled(
            stack(
                layers.Input((5,)),
                layers.Dense(5, activation=lambda t: t - keras.ops.mean(t, axis=0, keepdims=True)),
                layers.Dense(3),
            )
        ),
        reals(5),
        ids(3),
    )


@kept
def batchnorm_frozen():
    m = stack(layers.Input((5,)), layers.Dense(5), layers.BatchNormalization(trainable=False), layers.Dense(3))
    return compiled(m), reals(5), ids(3)


@kept
def batchnorm():
    return (
        compiled(stack(layers.Input((5,)), layers.Dense(5), layers.BatchNormalization(), layers.Dense(3))),
        reals(5),
        ids(3),
    )


@kept
def spectral():
    return (
        compiled(stack(layers.Input((5,)), layers.SpectralNormalization(layers.Dense(5)), layers.Dense(3))),
        reals(5),
        ids(3),
    )


@kept
def constraint():
    return (
        compiled(
            stack(
                layers.Input((5,)),
                layers.Dense(7, kernel_constraint="non_neg", bias_constraint=keras.constraints.MaxNorm(0.1)),
                layers.Dense(3),
            )
        ),
        reals(5),
        ids(3),
    )


@kept
def regularised():
    return (
        compiled(
            stack(
                layers.Input((5,)),
                layers.Dense(7, kernel_regularizer="l2", bias_regularizer="l1"),
                layers.Dense(3, kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02)),
            )
        ),
        reals(5),
        ids(3),
    )


@kept
def activity():
    return (
        compiled(
            stack(layers.Input((5,)), layers.Dense(7, activity_regularizer=keras.regularizers.L2(0.5)), layers.Dense(3))
        ),
        reals(5),
        ids(3),
    )


class Adds(layers.Layer):
    def call(self, x):
        self.add_loss(0.3 * keras.ops.mean(keras.ops.square(x)))
        return x


@kept
def add_loss():
    return compiled(stack(layers.Input((5,)), layers.Dense(7), Adds(), layers.Dense(3))), reals(5), ids(3)


class AddsSum(layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.sum(keras.ops.square(keras.ops.sum(x, axis=0))))
        return x


@kept
def add_loss_over_batch():
    return compiled(stack(layers.Input((5,)), layers.Dense(7), AddsSum(), layers.Dense(3))), reals(5), ids(3)


@kept
def weights():
    return (
        compiled(stack(layers.Input((5,)), layers.Dense(7, "relu"), layers.Dense(3))),
        reals(5),
        ids(3),
        RANDOM.uniform(0, 50, BATCH).astype("float32"),
    )


@kept
def weights_mean():
    return (
        compiled(
            stack(layers.Input((5,)), layers.Dense(3)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        ),
        reals(5),
        ids(3),
        RANDOM.uniform(0, 50, BATCH).astype("float32"),
    )


@kept
def sum_reduction():
    return (
        compiled(
            stack(layers.Input((5,)), layers.Dense(3)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        ),
        reals(5),
        ids(3),
    )


@kept
def outputs():
    i = layers.Input((5,))
    h = layers.Dense(6, "relu")(i)
    m = keras.Model(i, {"a": layers.Dense(3, name="a")(h), "b": layers.Dense(1, name="b")(h)})
    return (
        compiled(m, {"a": cross_entropy(), "b": "mse"}, loss_weights={"a": 1.0, "b": 9.0}),
        reals(5),
        {"a": ids(3), "b": reals(1)},
    )


@kept
def unused_output():
    i = layers.Input((5,))
    h = layers.Dense(6, "relu")(i)
    m = keras.Model(i, [layers.Dense(3, name="a")(h), layers.Dense(1, name="b")(h)])
    return compiled(m, [cross_entropy(), None]), reals(5), [ids(3), reals(1)]


@kept
def bfloat16():
    p = "mixed_bfloat16"
    return (
        compiled(stack(layers.Input((5,)), layers.Dense(7, "relu", dtype=p), layers.Dense(3, dtype=p))),
        reals(5),
        ids(3),
    )


@kept
def bfloat16_conv():
    p = "mixed_bfloat16"
    return (
        compiled(
            stack(
                layers.Input((8, 8, 2)),
                layers.Conv2D(7, 3, activation="relu", dtype=p),
                layers.Flatten(),
                layers.Dense(3, dtype=p),
            )
        ),
        reals(8, 8, 2),
        ids(3),
    )


@kept
def float64_model():
    return (
        compiled(
            stack(
                layers.Input((5,), dtype="float64"),
                layers.Dense(7, "relu", dtype="float64"),
                layers.Dense(3, dtype="float64"),
            )
        ),
        reals(5),
        ids(3),
    )


@kept
def cosine_axis0():
    return (
        compiled(
            stack(layers.Input((5,)), layers.Dense(7, "relu"), layers.Dense(4)), keras.losses.CosineSimilarity(axis=0)
        ),
        reals(5),
        reals(4),
    )


@kept
def categorical_axis0():
    return (
        compiled(
            stack(layers.Input((5,)), layers.Dense(7, "relu"), layers.Dense(4)),
            keras.losses.CategoricalCrossentropy(from_logits=True, axis=0),
        ),
        reals(5),
        np.eye(4, dtype="float32")[RANDOM.integers(0, 4, BATCH)],
    )


@kept
def focal_axis0():
    return (
        compiled(
            stack(layers.Input((5,)), layers.Dense(7, "relu"), layers.Dense(4, "sigmoid")),
            keras.losses.CategoricalFocalCrossentropy(axis=0),
        ),
        reals(5),
        np.eye(4, dtype="float32")[RANDOM.integers(0, 4, BATCH)],
    )


@kept
def cosine():
    return (
        compiled(stack(layers.Input((5,)), layers.Dense(7, "relu"), layers.Dense(4)), keras.losses.CosineSimilarity()),
        reals(5),
        reals(4),
    )


@kept
def binary():
    return (
        compiled(stack(layers.Input((5,)), layers.Dense(4, "sigmoid")), "binary_crossentropy"),
        reals(5),
        ids(2, 4).astype("float32"),
    )


@kept
def huber_seq():
    return compiled(stack(layers.Input((6, 5)), layers.Dense(4)), keras.losses.Huber(0.5)), reals(6, 5), reals(6, 4)


@kept
def kl():
    return (
        compiled(stack(layers.Input((5,)), layers.Dense(4, "softmax")), "kl_divergence"),
        reals(5),
        RANDOM.dirichlet(np.ones(4), BATCH).astype("float32"),
    )


@kept
def softmax_axis1():
    return (
        compiled(
            stack(layers.Input((6, 5)), layers.Dense(4), layers.Softmax(axis=1), layers.Flatten(), layers.Dense(3))
        ),
        reals(6, 5),
        ids(3),
    )


@kept
def upsample_pad_crop():
    return (
        compiled(
            stack(
                layers.Input((4, 4, 2)),
                layers.ZeroPadding2D(1),
                layers.Conv2D(4, 3),
                layers.UpSampling2D(),
                layers.Cropping2D(1),
                layers.AveragePooling2D(2),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(4, 4, 2),
        ids(3),
    )


@kept
def prelu():
    return compiled(stack(layers.Input((5,)), layers.Dense(7), layers.PReLU(), layers.Dense(3))), reals(5), ids(3)


@kept
def einsum():
    return (
        compiled(
            stack(
                layers.Input((4, 5)),
                layers.EinsumDense("abc,cd->abd", output_shape=(4, 6), bias_axes="d"),
                layers.Flatten(),
                layers.Dense(3),
            )
        ),
        reals(4, 5),
        ids(3),
    )


@kept
def timedistributed():
    return (
        compiled(
            stack(layers.Input((4, 5)), layers.TimeDistributed(layers.Dense(6)), layers.Flatten(), layers.Dense(3))
        ),
        reals(4, 5),
        ids(3),
    )


@kept
def frozen_first():
    d = layers.Dense(7, "relu")
    d.trainable = False
    return compiled(stack(layers.Input((5,)), d, layers.Dense(3))), reals(5), ids(3)


@kept
def variable_length():
    return (
        compiled(
            stack(layers.Input((None, 5)), layers.Dense(6, "relu"), layers.GlobalAveragePooling1D(), layers.Dense(3))
        ),
        reals(7, 5),
        ids(3),
    )


@kept
def cancelling_sequence():
    x = reals(2, 40)
    x[:, 1] = -x[:, 0] * (1 + 1e-4)
    return (
        compiled(stack(layers.Input((2, 40)), layers.Dense(60), layers.GlobalAveragePooling1D(), layers.Dense(3))),
        x,
        ids(3),
    )


FEW = ("batch_mixing_op", "cancelling_sequence", "conv1d_causal", "cosine_axis0", "embedding_repeats", "weights")
MAY_BE_REFUSED = {"batch_mixing_activation", "batch_mixing_lambda", "batch_mixing_op", "batchnorm", "spectral"}


def taken(structure, rows):
    return tf.nest.map_structure(lambda array: tf.gather(array, rows), structure)


def brute(model, batch, clip_norm):
    """(sum of clipped gradients, their norms): example by example, in float64, as the definition says."""
    total, norms = 0.0, []
    for row in range(BATCH):
        x, y, *weight = taken(batch, [row])
        with tf.GradientTape() as tape:
            prediction = model(x, training=True)
            loss = model.compute_loss(
                x=x, y=y, y_pred=prediction, sample_weight=weight[0] if weight else None, training=True
            )
            for variable in penalised(model):
                loss = loss - tf.cast(variable.regularizer(variable), loss.dtype)
        gradients = tape.gradient(
            loss,
            [variable.value for variable in model.trainable_variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        one = flat(gradients)
        norm = np.linalg.norm(one)
        norms.append(norm if np.isfinite(norm) else 0.0)
        if np.isfinite(norm):  # an example without a finite gradient adds nothing
            total = total + one * min(1, clip_norm * (1 - 2**-10) / max(norm, 1e-30))
    return total, np.array(norms)


def flat(gradients):
    dense = [np.asarray(tf.convert_to_tensor(gradient)).astype("float64").ravel() for gradient in gradients]
    return np.concatenate(dense)


def clipping(way, model):
    """The clipped sum of a batch by one of the two ways, traced once for each number of examples."""

    @tf.function(reduce_retracing=False)
    def inside(batch, counted, clip_norm):
        return way(model, batch, Rule(counted, clip_norm, tf.constant(1.0)))

    return lambda batch, clip_norm: flat(
        inside(batch, tf.ones(len(tf.nest.flatten(batch)[0]), tf.bool), tf.constant(clip_norm))
    )


@pytest.mark.parametrize("name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in ZOO])
def test_a_clipped_sum_is_brute_forces_and_no_example_moves_it_by_more_than_the_clip_norm(name):
    keras.utils.set_random_seed(1)
    model, *batch = ZOO[name]()
    batch = tuple(tf.nest.map_structure(tf.constant, part) for part in batch)
    try:
        model(taken(batch[0], [0]))
        check_model(model, Examples(*(tf.nest.map_structure(lambda array: array[:1].numpy(), part) for part in batch)))
    except UmbelError:
        assert name in MAY_BE_REFUSED
        return
    way = ghost_sum if can_ghost(model) else looped_sum
    _, norms = brute(model, batch, 1e9)
    clip_norm = float(np.median(norms[norms > 0])) if (norms > 0).any() else 1.0
    wanted, _ = brute(model, batch, clip_norm)
    clipped = clipping(way, model)
    found = clipped(batch, clip_norm)
    scale = max(np.linalg.norm(wanted), clip_norm)
    assert np.linalg.norm(found - wanted) <= 5e-3 * scale
    for left_out in range(BATCH):
        rest = [row for row in range(BATCH) if row != left_out]
        moved = np.linalg.norm(found - clipped(taken(batch, rest), clip_norm))
        assert moved <= 1.0001 * clip_norm
