"""Contributions of a batch's examples to a variable's gradient: norms and weighted sums, without the gradients.

A layer a ↦ a·W has, for example i, the gradient Σ_t a_it ⊗ g_it, where t goes over places (a sequence's, an image's)
and g is the loss's gradient at the layer's output. Norms and sums of such gradients follow from a and g.

Sources: Goodfellow 2015, https://arxiv.org/abs/1510.01799 (one place); Li, Tramèr, Liang, Hashimoto 2022,
https://arxiv.org/abs/2110.05679 (sequences, tables); Bu, Mao, Xu 2022, https://arxiv.org/abs/2205.10683 (convolutions;
that a gradient may take less than its norm: theirs less memory, here less time).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import tensorflow as tf

NUMBER_COST = 50  # products that take as long as a number of a gradient, written and read: from 36 to 64, measured
GRAM_ROUNDING = 2.0**-16  # share of ‖a‖²·‖g‖²: more than float32 takes from a norm whose terms cancel


class Contribution(Protocol):
    """Contributions of a batch's examples to one variable's gradient."""

    def squared_norms(self) -> tf.Tensor:
        """Return the squared norm of each example's gradient, never less than it is: shape (batch,)."""

    def per_example(self) -> tf.Tensor:
        """Return each example's gradient: shape (batch, …)."""

    def weighted(self, factors: tf.Tensor) -> tf.Tensor:
        """Return Σ factor·gradient over the examples.

        A factor of 0 counts for nothing, also where a gradient is NaN.
        """


class Whole(NamedTuple):
    """Gradients as they are, where they take less than their norms would."""

    gradients: tf.Tensor  # each example's gradient: shape (batch, …)

    def squared_norms(self) -> tf.Tensor:
        """Sum the squares of each gradient."""
        return squares(self.gradients)

    def per_example(self) -> tf.Tensor:
        """Return the gradients themselves."""
        return self.gradients

    def weighted(self, factors: tf.Tensor) -> tf.Tensor:
        """Multiply the gradients by one row of factors."""
        shape = self.gradients.shape[1:]
        flat = tf.reshape(cleared(self.gradients, factors), [tf.shape(factors)[0], shape.num_elements()])
        return tf.reshape(tf.linalg.matvec(flat, factors, transpose_a=True), shape)


class Outer(NamedTuple):
    """Gradients Σ_t a_t ⊗ g_t of a matrix that rows a are multiplied by."""

    inputs: tf.Tensor  # a: shape (batch, T, p)
    outputs: tf.Tensor  # g: shape (batch, T, d)

    def squared_norms(self) -> tf.Tensor:
        """Compute Σ_ts (a_t·a_s)(g_t·g_s)."""
        product = squares(self.inputs) * squares(self.outputs)
        if self.inputs.shape[1] == 1:
            return product
        alike = tf.matmul(self.inputs, self.inputs, transpose_b=True)
        return tf.reduce_sum(alike * gram(self.outputs), [1, 2]) + GRAM_ROUNDING * product

    def per_example(self) -> tf.Tensor:
        """Compute aᵀ·g for each example."""
        return tf.matmul(self.inputs, self.outputs, transpose_a=True)

    def weighted(self, factors: tf.Tensor) -> tf.Tensor:
        """Compute one product over all examples and places."""
        scaled = cleared(self.outputs, factors) * factors[:, None, None]
        rows = [tf.reshape(part, [-1, part.shape[-1]]) for part in (cleared(self.inputs, factors), scaled)]
        return tf.matmul(*rows, transpose_a=True)


class Lookup(NamedTuple):
    """Gradients of a table's rows: each of an example's ids adds its g to the row of that id."""

    ids: tf.Tensor  # numbers of rows: shape (batch, T)
    outputs: tf.Tensor  # g: shape (batch, T, d)
    table: int  # the table's number of rows

    def squared_norms(self) -> tf.Tensor:
        """Sum g_t·g_s over pairs of places with the same id."""
        if self.ids.shape[1] == 1:
            return squares(self.outputs)
        same = tf.cast(self.ids[:, :, None] == self.ids[:, None, :], tf.float32)
        places = tf.cast(tf.shape(self.ids)[1], tf.float32)
        return tf.reduce_sum(same * gram(self.outputs), [1, 2]) + GRAM_ROUNDING * places * squares(self.outputs)

    def per_example(self) -> tf.Tensor:
        """Return tables, all but a few rows of which are 0."""
        return tf.matmul(tf.one_hot(self.ids, self.table), self.outputs, transpose_a=True)

    def weighted(self, factors: tf.Tensor) -> tf.Tensor:
        """Return one table."""
        scaled = cleared(self.outputs, factors) * factors[:, None, None]
        scaled = tf.reshape(scaled, [-1, self.outputs.shape[-1]])
        return tf.math.unsorted_segment_sum(scaled, tf.reshape(self.ids, [-1]), self.table)


class Filter(NamedTuple):
    """A convolution's kernel: a matrix, with the patches of an image for its rows."""

    inputs: tf.Tensor  # shape (batch, height, width, channels), padded or cut to what the outputs are made from
    outputs: tf.Tensor  # g: shape (batch, rows, columns, filters)
    shape: tuple[int, ...]  # shape of the variable
    size: tuple[int, int]  # height and width of the kernel
    strides: tuple[int, int]
    rates: tuple[int, int]

    def squared_norms(self) -> tf.Tensor:
        """Compute the squared norms as Outer does, with the patches laid out."""
        shifted = [self.row(self.inputs, column, axis=2) for column in range(self.size[1])]
        across = tf.concat(shifted, -1)
        patches = tf.concat([self.row(across, row, axis=1) for row in range(self.size[0])], -1)
        return Outer(places(patches), places(self.outputs)).squared_norms()

    def per_example(self) -> tf.Tensor:
        """Compute one row of the kernel after another: laying out all patches at once would take longer."""
        across = tf.concat([self.row(self.inputs, column, axis=2) for column in range(self.size[1])], -1)
        outputs = places(self.outputs)
        rows = [
            tf.matmul(places(self.row(across, row, axis=1)), outputs, transpose_a=True) for row in range(self.size[0])
        ]
        return tf.reshape(tf.concat(rows, 1), [tf.shape(outputs)[0], *self.shape])

    def weighted(self, factors: tf.Tensor) -> tf.Tensor:
        """Compute a convolution's usual gradient."""
        found = tf.raw_ops.Conv2DBackpropFilter(
            input=cleared(self.inputs, factors),
            filter_sizes=[*self.size, *self.shape[-2:]],
            out_backprop=cleared(self.outputs, factors) * factors[:, None, None, None],
            strides=[1, *self.strides, 1],
            padding="VALID",
            dilations=[1, *self.rates, 1],
        )
        return tf.reshape(found, self.shape)

    def row(self, inputs: tf.Tensor, number: int, axis: int) -> tf.Tensor:
        """Return the places that the kernel's row or column meets: every stride-th along the axis, from its own on."""
        stride, first = self.strides[axis - 1], number * self.rates[axis - 1]
        last = first + (self.outputs.shape[axis] - 1) * stride + 1
        return inputs[:, first:last:stride] if axis == 1 else inputs[:, :, first:last:stride]


def cleared(values: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Return values with zeros for the examples whose factor is 0: 0·∞ would be NaN, in the sum of all."""
    counts = tf.reshape(factors != 0, [-1, *[1] * (len(values.shape) - 1)])
    return tf.where(counts, values, tf.zeros_like(values))


def outer(inputs: tf.Tensor, outputs: tf.Tensor) -> Contribution:
    """Return the contributions to a matrix: as norms alone where that takes less than gradients."""
    count, both = inputs.shape[1], Outer(inputs, outputs)
    is_cheaper = count is not None and norms_are_cheaper(count, inputs.shape[2], outputs.shape[2])
    return both if is_cheaper else Whole(both.per_example())


def filtered(
    inputs: tf.Tensor,
    outputs: tf.Tensor,
    shape: tuple[int, ...],
    size: tuple[int, int],
    strides: tuple[int, int],
    rates: tuple[int, int],
) -> Contribution:
    """Return the contributions to a convolution's kernel: as norms alone where that takes less than gradients.

    Arguments as in Filter.
    """
    for axis in (1, 2):
        needed = (outputs.shape[axis] - 1) * strides[axis - 1] + (size[axis - 1] - 1) * rates[axis - 1] + 1
        missing = max(needed - inputs.shape[axis], 0)  # only padding="same" misses any: TensorFlow's half before
        before = [[missing // 2, missing - missing // 2] if one == axis else [0, 0] for one in range(4)]
        inputs = tf.pad(inputs, before)
        inputs = inputs[:, :needed] if axis == 1 else inputs[:, :, :needed]
    count, both = outputs.shape[1] * outputs.shape[2], Filter(inputs, outputs, shape, size, strides, rates)
    return both if norms_are_cheaper(count, math.prod(shape[:-1]), shape[-1]) else Whole(both.per_example())


def norms_are_cheaper(count: int, inputs: int, outputs: int) -> bool:
    """Return whether Gram matrices of `count` places take less time than to keep gradients of shape (inputs, outputs).

    The sum after the one takes as many products as the gradients of the other.
    """
    return count**2 * (inputs + outputs) < NUMBER_COST * inputs * outputs


def places(values: tf.Tensor) -> tf.Tensor:
    """Return values as float32, shape (batch, T, last): every axis between first and last is one."""
    inner = values.shape[1:-1].num_elements()
    size = tf.shape(values)[0]
    middle = inner if inner is not None else tf.reduce_prod(tf.shape(values)[1:-1])
    return tf.cast(tf.reshape(values, [size, middle, values.shape[-1]]), tf.float32)


def squares(values: tf.Tensor) -> tf.Tensor:
    """Sum the squares of each example: shape (batch,)."""
    return tf.reduce_sum(tf.square(values), list(range(1, len(values.shape))))


def gram(values: tf.Tensor) -> tf.Tensor:
    """Multiply each example's rows with one another: shape (batch, T, T)."""
    return tf.matmul(values, values, transpose_b=True)
