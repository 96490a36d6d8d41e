"""FedJAX: its own `federated_averaging`, on its jit backend (its pmap backend fails on CPU devices in round 2)."""

from __future__ import annotations

import time
from functools import partial

import fedjax
import jax
import jax.numpy as jnp
import workload
from jax_forward import forward, loss

jax.tree_map = jax.tree_util.tree_map  # FedJAX 0.0.17 calls what JAX 0.6 removed; with an older JAX it is no faster


def main() -> None:
    options = workload.arguments()
    digits = workload.load(options.model)
    clients = [fedjax.ClientDataset({"x": digits.x[own], "y": digits.y[own]}) for own in workload.partition()]
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        lambda params, batch, rng: jax.grad(partial(loss, options.model))(params, batch["x"], batch["y"]),
        fedjax.optimizers.sgd(workload.LEARNING_RATE),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=workload.BATCH, num_epochs=1),
    )
    state = algorithm.init([jnp.asarray(array) for array in workload.initial(options.model)])
    for round in range(1, options.rounds + 1):
        began = time.perf_counter()
        keys = jax.random.split(jax.random.PRNGKey(round), workload.COHORT)
        cohort = [(client, clients[client], key) for client, key in zip(workload.cohort(round), keys, strict=True)]
        state, _ = algorithm.apply(state, cohort)
        jax.block_until_ready(state.params)
        seconds = time.perf_counter() - began
        if round < options.rounds:
            workload.report(round, seconds)
    predict = jax.jit(partial(forward, options.model, state.params))
    workload.report(round, seconds, workload.accuracy(predict, digits), "XLA")


if __name__ == "__main__":
    main()
