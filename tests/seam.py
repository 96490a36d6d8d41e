"""Experiments of every kind of round, which a runtime has to carry, and the likeness of two histories."""

from __future__ import annotations

from typing import Any

import numpy as np

import umbel.strategies as strategies
from federations import FEATURES, blobs, federation
from umbel import (
    Agnostic,
    AllClients,
    Experiment,
    FixedCohort,
    History,
    Local,
    Oort,
    PoissonCohort,
    PowerOfChoice,
    data,
)
from umbel.core.parts.devices import Around, Deadline, Devices
from umbel.core.parts.sampling import WeightedCohort
from umbel.privacy import Homomorphic, SecureSum

CLIENTS = 20


def some_are_lost() -> data.Partitioned:
    """Make 20 clients, of which about four, at random, find NaN in what they hold."""
    x, y = blobs(120)
    x[np.random.default_rng(4).choice(len(x), 4, replace=False)] = np.nan
    return data.Partitioned(data.Arrays(x, y), by=data.Iid(), clients=CLIENTS)


POPULATION = some_are_lost()


def small() -> Any:
    """Make a model of 43 numbers."""
    import keras

    layers = [keras.Input((FEATURES,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def experiment(**changes: Any) -> Experiment:
    """Make two rounds of all clients; fields replaced by changes."""
    fields = {"population": POPULATION, "model": small, "sampler": AllClients(), "rounds": 2, "test": None}
    return federation(**fields | {"local": Local(1, 4, learning_rate=0.1)} | changes)


PERSONAL = {strategies.FedRep: {"personal": ("dense_1",)}}
DEVICES = {"devices": Devices(Around(10.0, 1.0), dropout=0.2)}
HIDDEN = {"weighting": "uniform", "min_clients": 3}
CASES = {
    **{
        make.__name__: {"strategy": make(), **PERSONAL.get(make, {})}
        for make in strategies.ALL_STRATEGIES
        if make is not strategies.FedRep
    },
    "FedRep": {"strategy": strategies.FedRep(1), "personal": ("dense_1",), "local": Local(2, 4, learning_rate=0.1)},
    **{repr(codec): {"codec": codec} for codec in strategies.ALL_CODECS[::2]},
    **{type(aggregator).__name__: {"aggregator": aggregator} for aggregator in strategies.ALL_AGGREGATORS},
    **{
        type(sampler).__name__: {"sampler": sampler}
        for sampler in (FixedCohort(9), PoissonCohort(0.5), WeightedCohort(9), PowerOfChoice(9, 12), Oort(9))
    },
    "Agnostic": {"reweighting": Agnostic(0.2)},
    "Agnostic, late": {"reweighting": Agnostic(0.2), **DEVICES, "deadline": Deadline(2.0)},
    "IFCA, Median": {"strategy": strategies.IFCA(2), "aggregator": strategies.Median()},
    "SecureSum": {"secure_aggregation": SecureSum(2.0), **HIDDEN},
    "SecureSum, Scaffold": {"secure_aggregation": SecureSum(2.0, max_weight=20), "strategy": strategies.Scaffold()},
    "Homomorphic": {"secure_aggregation": Homomorphic(2.0), **HIDDEN},
    "SplitFed 1": {"strategy": strategies.SplitFed("dense")},
    "SplitFed 2": {"strategy": strategies.SplitFed("dense", 2)},
    "FedBuff": {"strategy": strategies.FedBuff(5), **DEVICES},
    "FedBuff, nobody waits": {"strategy": strategies.FedBuff(7), "sampler": FixedCohort(3)},
    "FedAsync": {"strategy": strategies.FedAsync(), **DEVICES, "seed": 3},
    "SemiSynchronous": {"strategy": strategies.SemiSynchronous(3.0), **DEVICES},
}


def same(one: History, other: History) -> None:
    """Assert that two histories are equal in all but how long they took."""
    assert one.params_sha256 == other.params_sha256
    for mine, theirs in zip(one.rounds, other.rounds, strict=True):
        assert mine._replace(seconds=0, eval_seconds=None) == theirs._replace(seconds=0, eval_seconds=None)
