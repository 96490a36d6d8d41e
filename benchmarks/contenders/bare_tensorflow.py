"""The floor: the same steps written by hand in plain TensorFlow, as little else as possible.

A client is one compiled call over raw variables; two threads, each with variables and a running sum of its own, and one
thread per operation. XLA or not is decided by a trial of six steps.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
import workload

WORKERS = 2
TRIAL_STEPS = 6
TRIALS = 3


def forward(model: str, weights: list[Any], x: tf.Tensor) -> tf.Tensor:
    """Compute the logits."""
    if model == "cnn":
        for kernel, bias in (weights[0:2], weights[2:4]):
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x = tf.reshape(x, (-1, 3136))
        weights = weights[4:]
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = tf.nn.relu(x @ kernel + bias)
    return x @ weights[-2] + weights[-1]


class Worker:
    """One thread's variables, and the compiled round of one client over them."""

    def __init__(self, model: str, x: tf.Tensor, y: tf.Tensor, xla: bool) -> None:
        self.model, self.x, self.y = model, x, y
        self.local = [tf.Variable(array) for array in workload.initial(model)]
        self.sum = [tf.Variable(tf.zeros_like(array)) for array in self.local]
        self.client = tf.function(self._client, jit_compile=xla)

    def cohort(self, params: list[tf.Tensor], orders: list[np.ndarray]) -> list[tf.Tensor]:
        """Return Σ delta over the clients whose rows are `orders`."""
        for total in self.sum:
            total.assign(tf.zeros_like(total))
        for order in orders:
            self.client(params, tf.constant(order, tf.int32))
        return [total.read_value() for total in self.sum]

    def _client(self, params: list[tf.Tensor], order: tf.Tensor) -> None:
        """Train one epoch over the rows in `order`; the delta goes into the sum."""
        for variable, value in zip(self.local, params, strict=True):
            variable.assign(value)
        full, rest = divmod(order.shape[0], workload.BATCH)

        def body(step: tf.Tensor) -> tuple[tf.Tensor]:
            self._step(tf.slice(order, [step * workload.BATCH], [workload.BATCH]))
            return (step + 1,)

        tf.while_loop(lambda step: step < full, body, (tf.constant(0),))
        if rest:
            self._step(order[-rest:])
        for total, variable, value in zip(self.sum, self.local, params, strict=True):
            total.assign_add(variable - value)

    def _step(self, rows: tf.Tensor) -> None:
        weights = [variable.read_value() for variable in self.local]
        x, y = tf.gather(self.x, rows), tf.gather(self.y, rows)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = forward(self.model, weights, x)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        for variable, gradient in zip(self.local, tape.gradient(loss, weights), strict=True):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=workload.LEARNING_RATE, delta=gradient)


def trial(worker: Worker) -> float:
    """Time a few steps, compiled before, in seconds: the best of a few times, or one that took long."""
    params = [variable.read_value() for variable in worker.local]
    order = np.arange(TRIAL_STEPS * workload.BATCH)
    worker.cohort(params, [order])
    best = np.inf
    for _ in range(TRIALS):
        began = time.perf_counter()
        worker.cohort(params, [order])
        best = min(best, time.perf_counter() - began)
        if best > 1:
            break
    return best


def main() -> None:
    options = workload.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    digits, rows = workload.load(options.model), workload.partition()
    x, y = tf.constant(digits.x), tf.constant(digits.y)
    xla = trial(Worker(options.model, x, y, True)) < trial(Worker(options.model, x, y, False))
    workers = [Worker(options.model, x, y, xla) for _ in range(WORKERS)]
    params = [tf.constant(array) for array in workload.initial(options.model)]
    generator = np.random.default_rng(3)
    with ThreadPoolExecutor(WORKERS) as pool:
        for round in range(1, options.rounds + 1):
            began = time.perf_counter()
            orders = [generator.permutation(rows[client]) for client in workload.cohort(round)]
            shares = [orders[i::WORKERS] for i in range(WORKERS)]
            parts = list(pool.map(Worker.cohort, workers, [params] * WORKERS, shares))
            params = [old + sum(sums) / len(orders) for old, *sums in zip(params, *parts, strict=True)]
            params[-1].numpy()
            seconds = time.perf_counter() - began
            if round < options.rounds:
                workload.report(round, seconds)
    accuracy = workload.accuracy(lambda batch: forward(options.model, params, tf.constant(batch)), digits)
    workload.report(round, seconds, accuracy, "XLA" if xla else "graph")


if __name__ == "__main__":
    main()
