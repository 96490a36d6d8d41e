"""Keras in one process: one compiled model, `fit` for each client, weights set, got and averaged."""

from __future__ import annotations

import time

import keras
import workload


def main() -> None:
    options = workload.arguments()
    digits, rows = workload.load(options.model), workload.partition()
    examples = [(digits.x[own], digits.y[own]) for own in rows]
    model = workload.build(keras, options.model)
    params = model.get_weights()
    for round in range(1, options.rounds + 1):
        began = time.perf_counter()
        updates = []
        for client in workload.cohort(round):
            model.set_weights(params)
            model.fit(*examples[client], batch_size=workload.BATCH, verbose=0)
            updates.append(model.get_weights())
        params = workload.mean(updates)
        seconds = time.perf_counter() - began
        if round < options.rounds:
            workload.report(round, seconds)
    model.set_weights(params)
    workload.report(round, seconds, workload.accuracy(model.predict_on_batch, digits))


if __name__ == "__main__":
    main()
