"""The types in which everything else is written. Read this first.

An update is a vector: everything federated is one flat float32 vector w ∈ R^d in the order of `model.weights`.
Sums travel; the mean is taken once, by `Total.mean`. What acts on these values is in `core/protocols.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .reading.directions import NO_DIRECTIONS, Directions

Vector = np.ndarray  # float32, shape (d,)
State = Any  # nested tuples, named tuples, dicts, numbers and arrays: what `core.serial` can write
NOTHING = np.zeros(0, np.float32)  # the empty vector
NOBODY = np.zeros(0, np.int64)  # no clients
UNAVAILABLE = "unavailable"  # reason of a client's failure when it could not be reached, or no longer
Value = float | tuple  # value of a metric: a number, or nested tuples of numbers (a vector, a matrix)
Join = Literal["sum", "max", "min"]  # operation that joins the numbers of two states


@dataclass(frozen=True, slots=True)
class Weighted:
    """A sum and the weight behind it; a mean only when asked for one."""

    sum: float
    count: float

    def __add__(self, other: Weighted) -> Weighted:
        return Weighted(self.sum + other.sum, self.count + other.count)

    def mean(self) -> float:
        """Return sum / count; NaN when nothing was counted."""
        return self.sum / self.count if self.count else float("nan")


@dataclass(frozen=True, eq=False, slots=True)
class MetricState:
    """The state of a metric that is more than one mean (AUC's tables, a confusion matrix).

    States of disjoint examples add up to the state of all of them. Only who holds the model makes a value of one.
    """

    numbers: np.ndarray  # the metric's own sums: float64, shape (n,); 0 in a sum: nothing was measured
    joins: tuple[tuple[Join, int], ...]  # how the first so many numbers join, then the next, …; counts sum to n

    def __add__(self, other: MetricState) -> MetricState:
        """Return the state of the examples of both. Errors: ValueError for states of different metrics."""
        if self.joins != other.joins:
            raise ValueError(f"states that join as {self.joins} and {other.joins} are not of one metric")
        if len(self.joins) == 1 and self.joins[0][0] == "sum":
            return MetricState(self.numbers + other.numbers, self.joins)
        joined, start = np.empty_like(self.numbers), 0
        for join, count in self.joins:
            part = slice(start, start + count)
            joined[part] = JOINS[join](self.numbers[part], other.numbers[part])
            start += count
        return MetricState(joined, self.joins)

    def __eq__(self, other: object) -> bool:
        """Return whether all numbers are equal, and join alike."""
        if not isinstance(other, MetricState):
            return NotImplemented
        return self.joins == other.joins and np.array_equal(self.numbers, other.numbers)


JOINS: Mapping[Join, Any] = {"sum": np.add, "max": np.maximum, "min": np.minimum}

Metrics = Mapping[str, Weighted | MetricState]


def add_metrics(one: Metrics, other: Metrics) -> dict[str, Weighted | MetricState]:
    """Sum two metric mappings, key by key. Commutative; the empty mapping is zero."""
    total: dict[str, Any] = dict(one)
    for name, value in other.items():
        total[name] = total[name] + value if name in total else value
    return total


def scalars(metrics: Mapping[str, Value]) -> dict[str, float]:
    """Return metric values as numbers by name, for whoever shows one number at a time.

    A vector f1 of n > 1 numbers is f1_0 to f1_(n-1), a matrix f1_i_j; what has one number keeps its name.
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        array = np.asarray(value, float)
        if array.size == 1:
            flat[name] = float(array.item())
        else:
            flat |= {"_".join([name, *map(str, place)]): float(array[place]) for place in np.ndindex(array.shape)}
    return flat


OWN_LOSS = "own_loss"  # key of a client's loss as one mean, where its metric "loss" is the state of a metric


def loss_of(metrics: Metrics) -> float | None:
    """Return a client's mean loss; None where it reports none."""
    loss = metrics.get(OWN_LOSS, metrics.get("loss"))
    return loss.mean() if isinstance(loss, Weighted) else None


class ClientUpdate(NamedTuple):
    """One client's contribution to a round."""

    delta: Vector  # local − global, float32, shape (d,)
    extra: Vector  # what an algorithm sends besides the model, of fixed length; empty for most
    weight: float  # the client's say in the mean: its number of examples, or 1.0
    metrics: Metrics  # sums over the client's training


class CodedUpdate(NamedTuple):
    """A ClientUpdate as a codec sends it."""

    payload: bytes  # the encoded delta
    extra: Vector  # the update's extra as it is: in what an algorithm keeps count with, losses would add up
    weight: float
    metrics: Metrics

    @property
    def nbytes(self) -> int:
        """Number of bytes that this update puts on the wire."""
        return len(self.payload) + self.extra.nbytes


class Mean(NamedTuple):
    """A round as a strategy sees it: the weighted mean of the cohort."""

    delta: Vector
    extra: Vector
    metrics: Mapping[str, Value]  # the cohort's metrics by the names that Keras logs them under
    # The cohort's share of all weight: |S| / N for uniform weights; under differential privacy the expected one.
    participation: float = 1.0


class Total(NamedTuple):
    """The sum over a cohort's updates."""

    delta: Vector  # Σ weight·delta
    extra: Vector  # Σ weight·extra
    weight: float  # Σ weight; under differential privacy the public divisor
    clients: int  # number of updates in the sum
    metrics: Metrics  # Σ metrics

    def mean(self) -> Mean:
        """Return the weighted mean of the cohort. The only division in the project.

        Errors: ZeroDivisionError when the total weight is 0; callers refuse such a round before.
        """
        if not self.weight:
            raise ZeroDivisionError("a total of weight 0 has no mean")
        divisor = np.float32(self.weight)
        means = {name: value.mean() for name, value in self.metrics.items() if isinstance(value, Weighted)}
        return Mean(self.delta / divisor, self.extra / divisor, means)


class Shape(NamedTuple):
    """Lengths of an encoded update's vectors."""

    delta: int
    extra: int


class Broadcast(NamedTuple):
    """All that a client receives at the start of its round."""

    round: int  # 1 for the first
    params: Vector
    extra: Vector  # what Strategy.broadcast returned
    transforms: State  # state of the experiment's transforms
    learning_rate: float | None  # the clients' learning rate in this round; None: the model's own optimizer decides


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
    """Losses that clients reported when they last took part: arrays of shape (clients,)."""

    losses: np.ndarray  # float32: mean training loss; NaN for a client that was never heard
    rounds: np.ndarray  # int32: round in which each client last took part; 0 for never


class Reweighed(NamedTuple):
    """State that a server keeps where clients are reweighted."""

    heard: State  # Heard, or ()
    weights: State  # state of the reweighting


class Knowledge(NamedTuple):
    """Knowledge of the clients that a sampler that learns chooses by: arrays of shape (clients,)."""

    round: int  # number of the round that is about to begin
    losses: np.ndarray  # mean training losses as in Heard; empty unless needs_losses
    heard: np.ndarray  # rounds as in Heard; empty unless needs_losses
    seconds: np.ndarray  # time that a round should take each device, on the virtual clock; 0 without devices


class RoundResult(NamedTuple):
    """All that was collected from one cohort."""

    total: Total
    failures: Sequence[Failure]
    bytes_up: int  # bytes of update payloads, clients to server
    bytes_down: int  # bytes of broadcasts, server to clients
    losses: Mapping[int, float] = {}  # each client's mean training loss, where the summation asks for it
    is_spoiled: bool = False  # whether a hidden sum was spoiled after it was revealed, so that nothing of it counts

    @staticmethod
    def of_nobody() -> RoundResult:
        """Return the result of a cohort without clients: nothing was sent."""
        return RoundResult(Total(NOTHING, NOTHING, 0.0, 0, {}), (), 0, 0, {})

    @property
    def is_of_nobody(self) -> bool:
        """Return whether nobody counts: nobody was sampled, none who were could be reached, or their sum is spoiled."""
        return self.is_spoiled or (
            not self.total.clients and all(failure.reason == UNAVAILABLE for failure in self.failures)
        )


class ClientMetrics(NamedTuple):
    """A federated evaluation: the cohort's sum, and each client's own values."""

    total: Metrics
    # Values by metric, named as in `scalars`: float64, shape (clients evaluated,); NaN where a client has none.
    per_client: Mapping[str, np.ndarray]
    clients: np.ndarray = NOBODY  # numbers of those clients, in the same order: int64, shape (clients evaluated,)


class ClientValues(NamedTuple):
    """Values that each client measured in one evaluation on its own validation examples."""

    round: int
    clients: np.ndarray  # the clients' numbers: int64, shape (clients evaluated,)
    values: Mapping[str, np.ndarray]  # {metric, "validation_…": float64 of that shape, NaN where a client has none}


class Landing(NamedTuple):
    """One update in an asynchronous round among real devices: all that it takes to have it again in a simulation."""

    number: int  # place of this work among all that the run gave out, from 0
    client: int
    round: int  # round of the broadcast that it began from
    wave: int  # wave of the clients that began from that broadcast: 0 for the first


class RoundRecord(NamedTuple):
    """One finished round, as history, store and `--json` show it."""

    round: int
    clients: int  # number of updates in the sum; under a plan whose cohort is secret, the expected number
    failures: int  # number of clients that failed; 0 under such a plan, whatever happened
    metrics: Mapping[str, Value]  # train_…, test_…, validation_…
    # Time from the choice of the cohort to the new params; 0, for untold, where it would tell of a secret cohort.
    seconds: float
    eval_seconds: float | None
    bytes_up: int | None
    bytes_down: int | None
    epsilon: float | None
    directions: Directions = NO_DIRECTIONS  # which of the model's metrics are to fall, which to rise
    trainable_bytes: int | None = None  # length of the vector, where variables besides it are frozen and do not travel
    landings: tuple[Landing, ...] = ()  # in the order in which they arrived; () where that follows from the seed

    @staticmethod
    def of(flat: Mapping[str, Any]) -> RoundRecord:
        """Return the record whose fields are in a mapping, as JSON has left them."""
        return RoundRecord(**{**flat, "landings": tuple(Landing(*one) for one in flat.get("landings", ()))})

    @property
    def numbers(self) -> dict[str, float]:
        """Metrics of the round, one number at a time: a vector f1 as f1_0, f1_1, …; see `scalars`."""
        return scalars(self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Return one flat object; the contract's names are always there, None where not measured.

        trainable_bytes: only of a model of which something is frozen.
        """
        flat = self._asdict() | {"train_loss": None, "test_loss": None, "test_accuracy": None} | self.numbers
        del flat["metrics"], flat["directions"], flat["landings"]
        if self.trainable_bytes is None:
            del flat["trainable_bytes"]
        return flat


Trains = Literal["all", "shared", "personal"]  # variables of the federated vector, or those that stay at home


class Phase(NamedTuple):
    """A part of a client's round: passes over its examples in which some variables are trained, the others frozen.

    Each begins with the optimizer as it was compiled. Statistics (BatchNorm) move in every phase: no gradient moves
    them.
    """

    epochs: int | None = None  # None: as many as Local says; 0: the phase is left out
    trains: Trains = "all"


class OwnModel(NamedTuple):
    """A second model of the federated vector's shape that a client keeps: what its rule remembers.

    After each of the client's rounds it is trained too, along gradient + proximal·(v − params). At first it is params.
    """

    epochs: int | None = None  # None: as many as Local says
    proximal: float = 0.0


def json_float(value: Value) -> float | str | list:
    """Return a number as JSON can hold it.

    NaN and the infinities become text that `float` reads, in the words of JavaScript; nested tuples become lists.
    """
    if isinstance(value, tuple):
        return [json_float(part) for part in value]
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
