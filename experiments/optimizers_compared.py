"""Optimizers and learning rates of clients on handwritten digits: one table, one plot.

umbel compare optimizers_compared --seeds 2 --target 0.9 --plot optimizers.png

Clients with SGD, momentum 0.9, Adam or Nadam; each with a constant learning rate, one that is halved after 8 and 16
rounds, one along a cosine, and one that tunes itself: for SGD Δ-SGD, whose clients find their own, for the others one
that is halved whenever the training loss stops falling. Measured: test accuracy after 24 rounds of 20 out of 100
clients, with the partition of digits_fedavg.
"""

import dataclasses

from umbel import Local
from umbel.server.schedules import Constant, Cosine, ReduceOnPlateau, StepDecay

from .digits_fedavg import build_model
from .digits_fedavg import experiment as digits

ROUNDS = 24


def compiled_with(optimizer):
    """Build the model of digits_fedavg with another optimizer."""
    model = build_model()
    model.compile(optimizer, model.loss, metrics=["accuracy"])
    return model


def momentum():
    import keras

    return compiled_with(keras.optimizers.SGD(momentum=0.9))


def adam():
    return compiled_with("adam")


def nadam():
    return compiled_with("nadam")


def delta_sgd():
    from umbel.clients.optimizers import DeltaSGD

    return compiled_with(DeltaSGD())


experiment = dataclasses.replace(digits, name="optimizers_compared", rounds=ROUNDS)
rates = {"SGD": (build_model, 0.5), "momentum": (momentum, 0.1), "Adam": (adam, 0.01), "Nadam": (nadam, 0.01)}
experiments = {}
for name, (model, rate) in rates.items():
    for kind, schedule in (
        ("constant", Constant(rate)),
        ("step", StepDecay(rate, ROUNDS // 3, 0.5)),
        ("cosine", Cosine(rate, ROUNDS, rate / 10)),
        ("self-tuned", ReduceOnPlateau(rate, "train_loss", patience=2)),
    ):
        experiments[f"{name}/{kind}"] = dataclasses.replace(experiment, model=model, local=Local(5, 8, schedule))
experiments["SGD/self-tuned"] = dataclasses.replace(experiment, model=delta_sgd, local=Local(5, 8, 0.2))
