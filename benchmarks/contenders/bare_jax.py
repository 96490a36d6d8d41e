"""The floor in JAX: a whole round as one compiled call over two CPU devices, five clients on each.

Each device scans its clients, and each client its batches; nothing comes back to Python inside a round. For the MLP
only: XLA's convolutions inside a loop take 40 s a round on a CPU.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import workload
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax_forward import forward, loss

WORKERS = jax.sharding.Mesh(np.array(jax.devices()), ("workers",))
Weights = list[jax.Array]


def epoch(model: str, x: jax.Array, y: jax.Array, weights: Weights, order: jax.Array) -> Weights:
    """Train one client's epoch over the rows in `order`."""

    def step(weights: Weights, rows: jax.Array) -> tuple[Weights, None]:
        gradient = jax.grad(partial(loss, model))(weights, x[rows], y[rows])
        return [weight - workload.LEARNING_RATE * part for weight, part in zip(weights, gradient, strict=True)], None

    full = len(order) // workload.BATCH * workload.BATCH
    weights, _ = jax.lax.scan(step, weights, order[:full].reshape((-1, workload.BATCH)))
    return step(weights, order[full:])[0]


def compiled_round(model: str) -> Callable[..., Weights]:
    """Compile a round: (x, y, params, orders of shape (cohort, 600)) ↦ the new params."""

    def part(x: jax.Array, y: jax.Array, params: Weights, orders: jax.Array) -> Weights:
        def client(total: Weights, order: jax.Array) -> tuple[Weights, None]:
            local = epoch(model, x, y, params, order)
            return [one + after - before for one, after, before in zip(total, local, params, strict=True)], None

        total, _ = jax.lax.scan(client, [jnp.zeros_like(array) for array in params], orders)
        mean = [jax.lax.psum(array, "workers") / workload.COHORT for array in total]
        return [old + step for old, step in zip(params, mean, strict=True)]

    specs = (P(), P(), P(), P("workers"))
    return jax.jit(jax.shard_map(part, mesh=WORKERS, in_specs=specs, out_specs=P(), check_vma=False))


def main() -> None:
    options = workload.arguments()
    digits, rows = workload.load(options.model), workload.partition()
    everywhere = NamedSharding(WORKERS, P())
    x, y, params = jax.device_put((digits.x, digits.y, workload.initial(options.model)), everywhere)
    play = compiled_round(options.model)
    generator = np.random.default_rng(3)
    for round in range(1, options.rounds + 1):
        began = time.perf_counter()
        orders = np.stack([generator.permutation(rows[client]) for client in workload.cohort(round)])
        params = jax.block_until_ready(play(x, y, params, orders.astype(np.int32)))
        seconds = time.perf_counter() - began
        if round < options.rounds:
            workload.report(round, seconds)
    predict = jax.jit(partial(forward, options.model, params))
    workload.report(round, seconds, workload.accuracy(predict, digits), "XLA")


if __name__ == "__main__":
    main()
