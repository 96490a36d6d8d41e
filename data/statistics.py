"""Mean and deviation of the clients' inputs, from sums alone: no client's examples leave home.

    statistics = federated_statistics(population, aggregation=SecureSum(limit=1.0), bounds=(0, 255))
    Experiment(..., population=Standardised(population, statistics), test=statistics.standardise(test))

Chan, Golub, LeVeque 1983: Algorithms for Computing the Sample Variance: Analysis and Recommendations, The American
Statistician 37(3): the corrected two-pass algorithm, here in sums over clients.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core.errors import ConfigError, IncompatibleError
from ..core.experiment import Experiment
from ..core.folds import InTheOpen, WeightedSum
from ..core.protocols import Aggregation, AggregationSession, Plan, Population
from ..core.random import Key, derive
from ..core.sampling import AllClients
from ..core.spec import ModelSpec, VariableSpec
from ..core.types import NOTHING, Broadcast, ClientUpdate, Failure, Mean, State, Total, Vector
from ..core.validation import require
from .standardised import BLOCK, FeatureStatistics, require_features

Bounds = tuple[Any, Any]


def federated_statistics(
    population: Population,
    *,
    bounds: Bounds | None = None,
    aggregation: Aggregation | None = None,
    plan: Plan | None = None,
    hiding: Literal["arithmetic", "protocol"] = "arithmetic",
    seed: int = 0,
) -> FeatureStatistics:
    """Mean and standard deviation of each feature over all clients' examples, each example counting once.

    A client sends its number of examples, Σz and Σz², z its inputs from a centre; only their sums over clients are
    used. Without a plan in two passes: about the middle of the bounds, then about the mean found, so that nothing
    cancels where the mean is far larger than the deviation. In the open all is float64.

    bounds: (least, largest) that a feature can be, numbers or arrays of the shape of one input, known beforehand and
    public; what lies outside counts as lying on them. With an aggregation or a plan they are needed, and the narrower
    the better: an aggregation rounds z and z² to its grid over them, so that SecureSum finds deviations down to about
    a thousandth of their width. A deviation that rounding or noise may have made up counts as 0.
    aggregation: what hides a client's numbers in their sum, as in an Experiment; its metrics are not asked for.
    plan: a privacy budget, of which this is one round, with all that the plan asks of an experiment. Each client's
    numbers are scaled to the plan's clip norm, whatever that is, so that none is cut off, and the plan's noise is on
    them: one pass, about the middle of the bounds. The result says what it cost. Public besides the bounds: how many
    examples the largest client has.
    hiding: "arithmetic" or the whole "protocol" of the aggregation. seed: of its rounding and of the plan's noise, as
    in a Simulation: whoever knows it can take the noise off again.

    Errors: ConfigError for inputs that are not numbers of one shape, or not finite; for missing or bad bounds; where
    noise drowns the sums. IncompatibleError, RunStopped as for an experiment with that aggregation or plan.
    """
    require(hiding in ("arithmetic", "protocol"), f"expected hiding={hiding!r} to be 'arithmetic' or 'protocol'")
    cost, shape = _cost(plan), _shape_of(population)
    bounded = _broadcast(bounds, shape)
    if bounded is None and (aggregation is not None or plan is not None):
        raise ConfigError(f"{aggregation or plan!r} needs bounds=(least, largest) of the inputs, known beforehand")
    summing = _Summing(population, shape, bounded, aggregation, plan, hiding == "protocol", seed)
    mean, variance, examples = _two_passes(summing) if plan is None else _one_pass(summing)
    return FeatureStatistics(mean, np.sqrt(variance), examples, *cost)


def _one_pass(summing: _Summing) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, variance and number of examples: about the middle of the bounds."""
    low, high = summing.limits
    centre, scale = (low + high) / 2, (high - low) / 2
    found = summing.moments(1, centre, scale)
    # No variance is larger than that of examples half of which lie on each bound.
    variance = np.clip(scale**2 * found.variance, 0, scale**2)
    return np.clip(centre + scale * found.mean, low, high), variance, found.examples


def _two_passes(summing: _Summing) -> tuple[np.ndarray, np.ndarray, float]:
    """As _one_pass, about the mean that a first pass finds; the second corrects what the first rounded."""
    low, high = summing.limits
    is_bounded = summing.bounds is not None
    centre, scale = ((low + high) / 2, (high - low) / 2) if is_bounded else (np.zeros_like(low), np.ones_like(low))
    first = summing.moments(1, centre, scale)
    centre = np.clip(centre + scale * first.mean, low, high)
    scale = np.maximum(high - centre, centre - low) if is_bounded else scale
    found = summing.moments(2, centre, scale)
    return np.clip(centre + scale * found.mean, low, high), scale**2 * found.variance, found.examples


class _Moments(NamedTuple):
    """Of z over all examples."""

    examples: float
    mean: np.ndarray
    square: np.ndarray  # mean of z²
    doubt: float  # how far noise and rounding may have moved mean and square: four standard deviations

    @property
    def variance(self) -> np.ndarray:
        """0 where it cannot be told from that: what is divided by its root must not be noise."""
        found = self.square - self.mean**2
        return np.where(found > self.doubt * (1 + 2 * np.abs(self.mean)), found, 0.0)


@dataclass(frozen=True)
class _Summing:
    """A round of sums of (examples, Σz, Σz²): an experiment's, but for training."""

    population: Population
    shape: tuple[int, ...]
    bounds: tuple[np.ndarray, np.ndarray] | None
    aggregation: Any
    plan: Plan | None
    is_real: bool
    seed: int

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds; without, infinite ones."""
        return self.bounds or (np.full(self.shape, -np.inf), np.full(self.shape, np.inf))

    def moments(self, round: int, centre: np.ndarray, scale: np.ndarray) -> _Moments:
        """Of z = (x − centre)/scale. Errors: ConfigError where noise leaves no examples."""
        experiment, key = self._experiment(), derive(self.seed, "statistics", round)
        cohort = experiment.sampler.sample(range(len(self.population)), self.population.sizes, key.derive("cohort"))
        size = 1 + 2 * math.prod(self.shape)
        state = experiment.transforms.init(ModelSpec((VariableSpec("moments", (size,), "float32", False, 0),)))
        broadcast = Broadcast(round, np.zeros(size, np.float32), NOTHING, state, None)
        session = self._session(experiment, broadcast, cohort, key.derive("aggregation"))
        unit = self._unit(experiment.aggregation, size)
        for client in cohort:
            own = key.derive("client", client)
            vector = unit * self._vector(client, centre, scale)
            if self._is_rounded:
                vector = vector.astype(np.float32)
            update = ClientUpdate(vector, NOTHING, 1.0, {})
            update = experiment.transforms.encode(state, update, own.derive("transforms"))
            contribution = session.contribute(client, update, own.derive("aggregation"))
            if isinstance(contribution, Failure):
                raise ConfigError(f"client {client}: {contribution.detail}")
            session.add(client, contribution)
        _, total = experiment.transforms.decode(state, session.total(), key.derive("decode"))
        count, first, second = np.split(total.delta.astype(np.float64) / unit, [1, 1 + math.prod(self.shape)])
        if not count[0] > 0:
            raise ConfigError("the noise drowned the number of examples; use more clients or a larger epsilon")
        mean, square = (part.reshape(self.shape) / count[0] for part in (first, second))
        doubt = 4 * self._deviation(experiment.aggregation, len(cohort)) / unit / float(count[0])
        return _Moments(float(count[0] * self._most), mean, square, doubt)

    @property
    def _is_rounded(self) -> bool:
        return self.aggregation is not None or self.plan is not None

    @cached_property
    def _most(self) -> float:
        """What a client's sums are divided by, so that none is above 1."""
        return float(self.population.sizes().max()) if self._is_rounded else 1.0

    def _experiment(self) -> Experiment:
        """Whatever an experiment with this aggregation and plan is refused for, this is."""
        aggregation = self.aggregation
        if getattr(aggregation, "metrics", ()):
            aggregation = dataclasses.replace(aggregation, metrics=())
        return Experiment(
            name="statistics",
            model=_no_model,
            population=self.population,
            strategy=_NoStrategy(),
            sampler=AllClients() if self.plan is None else self.plan.sampler,
            plan=self.plan,
            aggregation=aggregation,
            weighting="uniform",
            rounds=1,
            seed=self.seed,
        )

    def _unit(self, aggregation: Any, size: int) -> float:
        """What stands for 1: with a plan such that no client's numbers are clipped, else the aggregation's limit."""
        limit = getattr(aggregation, "limit", 1.0)
        if self.plan is None:
            return float(limit)
        unit = float(self.plan.clip_norm) / math.sqrt(size)  # type: ignore[attr-defined]
        if aggregation is not None and limit < unit:
            raise ConfigError(f"expected limit={limit!r} of the aggregation ≥ {unit:.4g}, the clip norm's share")
        return unit

    def _deviation(self, aggregation: Any, clients: int) -> float:
        """Of what noise and rounding add to each sum."""
        rounding = getattr(aggregation, "step", 0.0) / 2 * math.sqrt(clients)
        if self.plan is None:
            return rounding
        own: Any = self.plan.transform
        shares = clients / getattr(own, "survivors_floor", 1) if self.plan.clients_release else 1
        return math.hypot(rounding, float(own.noise_multiplier) * own.clip_norm * math.sqrt(shares))

    def _session(self, experiment: Experiment, broadcast: Broadcast, cohort: list[int], key: Key) -> AggregationSession:
        shape = experiment.encoded_shape(broadcast)
        if experiment.aggregation is not None:
            return experiment.aggregation.session(shape, cohort, broadcast.round, key, self.is_real)
        return InTheOpen(WeightedSum(), shape.delta) if self._is_rounded else _Exact(shape.delta)

    def _vector(self, client: int, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(examples, Σz, Σz²)/most: float64."""
        x = self.population.examples(client).x
        require_features(x, self.shape)
        sums = np.zeros((2, *self.shape))
        for start in range(0, len(x), BLOCK):
            block = x[start : start + BLOCK].astype(np.float64)
            finite = np.isfinite(block).all(axis=0)
            if not finite.all():
                raise ConfigError(
                    f"client {client} has inputs that are not finite (NaN or infinity), of feature "
                    f"{np.argmin(finite.ravel())} first; fill them in, or leave such examples out"
                )
            if self.bounds is not None:
                np.clip(block, *self.bounds, out=block)
            block -= centre
            block /= scale
            sums += block.sum(axis=0), np.square(block).sum(axis=0)
        return np.concatenate([[len(x)], sums.ravel()]) / self._most


class _Exact:
    """A sum in the open, of float64."""

    def __init__(self, size: int):
        self.bytes_up = 0
        self._sum, self._clients = np.zeros(size), 0

    def contribute(self, client: int, update: ClientUpdate, key: Key) -> ClientUpdate:
        """The update itself."""
        return update

    def add(self, client: int, contribution: ClientUpdate) -> None:
        """Add it."""
        self.bytes_up += contribution.delta.nbytes
        self._sum += contribution.delta
        self._clients += 1

    def total(self) -> Total:
        """The sum."""
        return Total(self._sum, NOTHING, float(self._clients), self._clients, {})


class _NoStrategy:
    """Nothing is trained."""

    def init(self, params: Vector) -> State:
        """None."""

    def broadcast(self, state: State) -> Vector:
        """Nothing."""
        return NOTHING

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """As it was."""
        return state, params


def _no_model() -> None:
    """Nothing is trained."""


def _cost(plan: Any) -> tuple[float, float, str]:
    """ε, δ and the kind of a plan, for one round of it.

    Errors: ConfigError, IncompatibleError for one whose noise is not on sums of vectors of a fixed norm; BudgetSpent.
    """
    if plan is None:
        return math.inf, 0.0, ""
    if hasattr(plan, "per_example"):
        raise IncompatibleError(
            f"{type(plan).__name__} has its noise in training steps, and statistics have none; use public ones, "
            "FeatureStatistics(mean, deviation)"
        )
    clip_norm = getattr(plan, "clip_norm", None)
    is_fixed = isinstance(clip_norm, Real)
    require(is_fixed, f"expected clip_norm={clip_norm!r} of the plan to be a number: one round adapts to nothing")
    ledger = plan.charge({})
    plan.check_budget(ledger)
    return plan.spent(ledger), plan.delta, type(plan).__name__


def _shape_of(population: Population) -> tuple[int, ...]:
    """Of one input."""
    x = population.examples(0).x
    require_features(x)
    shape: tuple[int, ...] = x.shape[1:]
    return shape


def _broadcast(bounds: Bounds | None, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds of each feature. Errors: ConfigError unless each is two finite numbers, the first less."""
    if bounds is None:
        return None
    require(isinstance(bounds, tuple) and len(bounds) == 2, f"expected bounds={bounds!r} to be (least, largest)")
    try:
        low, high = (np.broadcast_to(np.asarray(one, np.float64), shape) for one in bounds)
    except ValueError:
        raise ConfigError(f"expected bounds of numbers, or arrays of the shape of one input, {shape}") from None
    is_sound = np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()
    require(bool(is_sound), "expected bounds of finite numbers, the least below the largest of each feature")
    return low, high
