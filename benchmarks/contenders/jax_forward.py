"""The two models' forward pass in JAX, for the contenders that use it."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def forward(model: str, weights: list[jax.Array], x: jax.Array) -> jax.Array:
    """Compute the logits."""
    if model == "cnn":
        for kernel, bias in (weights[0:2], weights[2:4]):
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.lax.reduce_window(jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x.reshape((-1, 3136))
        weights = weights[4:]
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = jax.nn.relu(x @ kernel + bias)
    return x @ weights[-2] + weights[-1]


def loss(model: str, weights: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Compute the mean cross-entropy of a batch."""
    logits = jax.nn.log_softmax(forward(model, weights, x))
    return -jnp.take_along_axis(logits, y[:, None], 1).mean()
