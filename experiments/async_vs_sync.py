"""Synchronous against asynchronous rounds on 100,000 simulated devices, by the virtual clock.

umbel compare async_vs_sync --target 0.85 --over virtual_seconds --plot async_vs_sync.png

Each device holds 16 consecutive images of scikit-learn's digits in the order of their labels: one digit, seldom two.
Speeds and bandwidths are log-normal with σ = 1, and one client in twenty gives up. 100 clients are at work at a time. A
synchronous round waits for the slowest of them; one with over-selection for 100 of 130; FedBuff never waits.
"""

import dataclasses
import functools

import numpy as np

from umbel import Experiment, FedAvg, FixedCohort, Local, derive
from umbel.core.parts.devices import Around, Deadline, Devices
from umbel.data import Digits, Generated
from umbel.strategies.fedbuff import FedBuff

from .digits_fedavg import build_model

CLIENTS, EXAMPLES = 100_000, 16


@functools.cache
def by_label():
    """Return the training images in the order of their labels."""
    digits = Digits("train").load()
    order = np.argsort(digits.y, kind="stable")
    return digits.x[order], digits.y[order]


def make(client):
    """Return the images of one device."""
    x, y = by_label()
    first = derive(0, "digits", client).generator().integers(len(y))
    rows = np.arange(first, first + EXAMPLES) % len(y)
    return x[rows], y[rows]


synchronous = Experiment(
    name="async_vs_sync",
    model=build_model,
    population=Generated(CLIENTS, make, EXAMPLES),
    strategy=FedAvg(),
    sampler=FixedCohort(100),
    local=Local(epochs=2, batch_size=8, learning_rate=0.1),
    devices=Devices(Around(20.0, sigma=1.0), Around(1e5, sigma=1.0), Around(2e4, sigma=1.0), dropout=0.05),
    rounds=60,
    test=Digits("test"),
)
over_selected = dataclasses.replace(synchronous, sampler=FixedCohort(130), deadline=Deadline(over_selection=1.3))
buffered = dataclasses.replace(synchronous, strategy=FedBuff(buffer=10), rounds=400, evaluate_every=5)

experiments = {"synchronous": synchronous, "over-selected": over_selected, "asynchronous": buffered}
experiment = synchronous
