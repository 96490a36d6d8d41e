"""The types everything else is written in. Read this first.

An update is a vector: everything federated is one flat float32 vector w ∈ R^d in the order of `model.weights`.
Sums travel; the mean is taken once, by `Total.mean`. What acts on these values is in `core/protocols.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .random import Key

Vector = np.ndarray  # float32, shape (d,)
State = Any  # nested tuples, named tuples, dicts, numbers and arrays: what `core.serial` can write
NOTHING = np.zeros(0, np.float32)  # the empty vector


@dataclass(frozen=True, slots=True)
class Weighted:
    """A sum and the weight behind it; a mean only when asked for one."""

    sum: float
    count: float

    def __add__(self, other: Weighted) -> Weighted:
        return Weighted(self.sum + other.sum, self.count + other.count)

    def mean(self) -> float:
        """sum / count; NaN when nothing was counted."""
        return self.sum / self.count if self.count else float("nan")


Metrics = Mapping[str, Weighted]


def add_metrics(one: Metrics, other: Metrics) -> dict[str, Weighted]:
    """The sum of two metric mappings, key by key. Commutative; the empty mapping is zero."""
    total = dict(one)
    for name, value in other.items():
        total[name] = total[name] + value if name in total else value
    return total


class ClientUpdate(NamedTuple):
    """One client's contribution to a round."""

    delta: Vector  # local − global, float32, shape (d,)
    extra: Vector  # what an algorithm sends besides the model, of fixed length; empty for most
    weight: float  # the client's say in the mean: its number of examples, or 1.0
    metrics: Metrics  # sums over the client's training


class CodedUpdate(NamedTuple):
    """A ClientUpdate as a codec sends it."""

    payload: bytes  # delta
    extra: Vector  # as it is: in what an algorithm keeps count with, losses would add up
    weight: float
    metrics: Metrics

    @property
    def nbytes(self) -> int:
        """That travel."""
        return len(self.payload) + self.extra.nbytes


class SplitUpdate(NamedTuple):
    """A ClientUpdate where the model is cut in two: delta of the client's half, and of the server's half that it
    trained with."""

    delta: Vector
    extra: Vector
    weight: float
    metrics: Metrics
    bytes_up: int  # of the client's half of the model, and of what it sent in its steps: activations, labels, weights
    bytes_down: int  # of the client's half, and of the gradients that it got in its steps


class Mean(NamedTuple):
    """What a strategy sees of a round."""

    delta: Vector
    extra: Vector
    metrics: Mapping[str, float]
    # The cohort's share of all weight: |S| / N for uniform weights; under differential privacy the expected one.
    participation: float = 1.0


class Total(NamedTuple):
    """A cohort's sum."""

    delta: Vector  # Σ weight·delta
    extra: Vector  # Σ weight·extra
    weight: float  # Σ weight; under differential privacy the public divisor
    clients: int  # number of updates in the sum
    metrics: Metrics  # Σ metrics

    def mean(self) -> Mean:
        """The weighted mean of the cohort. The only division in the project.

        Errors: ZeroDivisionError when the total weight is 0; callers refuse such a round before.
        """
        if not self.weight:
            raise ZeroDivisionError("a total of weight 0 has no mean")
        divisor = np.float32(self.weight)
        means = {name: value.mean() for name, value in self.metrics.items()}
        return Mean(self.delta / divisor, self.extra / divisor, means)


class Shape(NamedTuple):
    """Lengths of an encoded update's vectors."""

    delta: int
    extra: int


class Broadcast(NamedTuple):
    """All that a client receives at the start of its round."""

    round: int  # 1 for the first
    params: Vector
    extra: Vector  # from Strategy.broadcast
    transforms: State  # state of the experiment's transforms
    learning_rate: float | None  # of the clients, this round; None: the model's own optimizer decides


class ServerState(NamedTuple):
    """All that a checkpoint needs. `round` is the number of rounds finished."""

    round: int
    params: Vector
    strategy: State
    transforms: State
    ledger: Mapping[str, int]  # privacy events released so far, {event: count}
    feedback: State = ()  # Heard, for a sampler that needs losses; Reweighed, for a reweighting


class Failure(NamedTuple):
    """A client whose update is not in the total, and why."""

    client: int
    reason: str  # a short code: "non_finite", "timeout", "shape", …
    detail: str


class Heard(NamedTuple):
    """What clients reported when they last took part: arrays of shape (clients,)."""

    losses: np.ndarray  # float32: mean training loss; NaN for a client that was never heard
    rounds: np.ndarray  # int32: in which round; 0 for never


class Reweighed(NamedTuple):
    """What a server keeps where clients are reweighted."""

    heard: State  # Heard, or ()
    weights: State  # of the reweighting


class Knowledge(NamedTuple):
    """What a sampler that learns chooses by: arrays of shape (clients,)."""

    round: int  # that is about to begin
    losses: np.ndarray  # see Heard; empty unless needs_losses
    heard: np.ndarray
    seconds: np.ndarray  # that a round should take each device, on the virtual clock; 0 without devices


class RoundResult(NamedTuple):
    """What a runtime collected from one cohort."""

    total: Total
    failures: Sequence[Failure]
    bytes_up: int | None  # of update payloads, clients to server; None where not measured
    bytes_down: int | None  # of broadcasts, server to clients
    losses: Mapping[int, float] | None = None  # each client's mean training loss, where the sampler needs it


class ClientMetrics(NamedTuple):
    """A federated evaluation: the cohort's sum, and each client's own means."""

    total: Metrics
    per_client: Mapping[str, np.ndarray]  # float64, shape (clients evaluated,)


class RoundRecord(NamedTuple):
    """One finished round, as history, store and `--json` show it."""

    round: int
    clients: int
    failures: int
    metrics: Mapping[str, float]  # train_…, test_…, validation_…: means
    seconds: float  # cohort to new params
    eval_seconds: float | None
    bytes_up: int | None
    bytes_down: int | None
    epsilon: float | None

    def to_json(self) -> dict[str, Any]:
        """One flat object; the contract's names always there, None where not measured."""
        flat = self._asdict() | {"train_loss": None, "test_loss": None, "test_accuracy": None} | dict(self.metrics)
        del flat["metrics"]
        return flat


class Assignment(NamedTuple):
    """A client's work in an asynchronous run."""

    broadcast: Broadcast  # from which it starts
    client: int
    key: Key  # of the clients that started with it
