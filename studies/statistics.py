"""Mean and deviation of the clients' inputs, from sums alone: no client's examples leave home.

    statistics = federated_statistics(population, secure_aggregation=SecureSum(limit=1.0), bounds=(0, 255))
    Experiment(..., population=Standardised(population, statistics), test=statistics.standardise(test))

Chan, Golub, LeVeque 1983: Algorithms for Computing the Sample Variance: Analysis and Recommendations, The American
Statistician 37(3): the corrected two-pass algorithm, here in sums over clients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from ..core.bases import Aggregator, Population
from ..core.errors import ConfigError, IncompatibleError
from ..core.experiment import Experiment
from ..core.parts.algorithms import Strategy
from ..core.parts.private import Plan, SecureAggregation
from ..core.parts.sampling import AllClients
from ..core.random import Key, derive
from ..core.reading.old_words import taking_arguments
from ..core.recipe import Recipe
from ..core.runtime import FORGETFUL, WAIT, Arrival, Assignment, Opened, Parties, Runtime, bytes_of
from ..core.spec import ModelSpec, VariableSpec
from ..core.summation import Summation, summation_of
from ..core.sums import ClientSum, Meeting, ServerSum
from ..core.types import NOTHING, Broadcast, ClientUpdate, Failure, Mean, ServerState, State, Total, Vector
from ..core.validation import require
from ..data.standardised import BLOCK, FeatureStatistics, require_features
from ..server.rounds import RoundSetup, collected

Bounds = tuple[Any, Any]


@taking_arguments(aggregation="secure_aggregation")
def federated_statistics(
    population: Population,
    *,
    bounds: Bounds | None = None,
    secure_aggregation: SecureAggregation | None = None,
    plan: Plan | None = None,
    hiding: Literal["arithmetic", "protocol"] = "arithmetic",
    seed: int | None = 0,
) -> FeatureStatistics:
    """Compute mean and standard deviation of each feature over all clients' examples, each example counting once.

    A client sends its number of examples, Σz and Σz², z its inputs from a centre; only their sums over clients are
    used. Without a plan it takes two passes: about the middle of the bounds, then about the mean found, so that nothing
    cancels where the mean is far larger than the deviation. In the open all is float64.

    Parameters
    ----------
    population
        Clients whose inputs are measured.
    bounds
        (least, largest) that a feature can be, numbers or arrays of the shape of one input, known beforehand and
        public; what lies outside counts as lying on them. With secure aggregation or a plan they are needed, and the
        narrower the better: an aggregation rounds z and z² to its grid over them, so that SecureSum finds deviations
        down to about a thousandth of their width. A deviation that rounding or noise may have made up counts as 0.
    secure_aggregation
        What hides a client's numbers in their sum, as in an Experiment; its metrics are not asked for.
    plan
        Privacy budget, of which this is one round, with all that the plan asks of an experiment. Each client's numbers
        are scaled to the plan's clip norm, whatever that is, so that none is cut off, and the plan's noise is on them:
        one pass, about the middle of the bounds. The result says what it cost. Public besides the bounds: how many
        examples the largest client has.
    hiding
        "arithmetic" or the whole "protocol" of the aggregation.
    seed
        Seed of its rounding and of the plan's noise, as in a Simulation: whoever knows it can take the noise off again,
        and a run on real devices refuses statistics with such noise. None: from the operating system's entropy, another
        result each time.

    Raises
    ------
    ConfigError
        For inputs that are not numbers of one shape, or not finite; for missing or bad bounds; where noise drowns the
        sums.
    IncompatibleError, RunStopped
        As for an experiment with that aggregation or plan.
    """
    require(hiding in ("arithmetic", "protocol"), f"expected hiding={hiding!r} to be 'arithmetic' or 'protocol'")
    cost, shape = _cost(plan), _shape_of(population)
    bounded = _broadcast(bounds, shape)
    if bounded is None and (secure_aggregation is not None or plan is not None):
        raise ConfigError(
            f"{secure_aggregation or plan!r} needs bounds=(least, largest) of the inputs, known beforehand"
        )
    summing = _Summing(population, shape, bounded, secure_aggregation, plan, hiding == "protocol", seed)
    mean, variance, examples = _two_passes(summing) if plan is None else _one_pass(summing)
    noise: Literal["", "seeded", "operating system"] = "operating system" if seed is None else "seeded"
    return FeatureStatistics(mean, np.sqrt(variance), examples, *cost, noise if plan is not None else "")


def _one_pass(summing: _Summing) -> tuple[np.ndarray, np.ndarray, float]:
    """Compute mean, variance and number of examples about the middle of the bounds."""
    low, high = summing.limits
    centre, scale = (low + high) / 2, (high - low) / 2
    found = summing.moments(1, centre, scale)
    # No variance is larger than that of examples half of which lie on each bound.
    variance = np.clip(scale**2 * found.variance, 0, scale**2)
    return np.clip(centre + scale * found.mean, low, high), variance, found.examples


def _two_passes(summing: _Summing) -> tuple[np.ndarray, np.ndarray, float]:
    """Compute the same as _one_pass about the mean that a first pass finds.

    The second pass corrects what the first rounded.
    """
    low, high = summing.limits
    is_bounded = summing.bounds is not None
    centre, scale = ((low + high) / 2, (high - low) / 2) if is_bounded else (np.zeros_like(low), np.ones_like(low))
    first = summing.moments(1, centre, scale)
    centre = np.clip(centre + scale * first.mean, low, high)
    scale = np.maximum(high - centre, centre - low) if is_bounded else scale
    found = summing.moments(2, centre, scale)
    return np.clip(centre + scale * found.mean, low, high), scale**2 * found.variance, found.examples


class _Moments(NamedTuple):
    """Moments of z over all examples."""

    examples: float  # number of examples, with the plan's noise where there is one
    mean: np.ndarray  # mean of z
    square: np.ndarray  # mean of z²
    doubt: float  # bound on what noise and rounding moved mean and square by: four standard deviations

    @property
    def variance(self) -> np.ndarray:
        """Variance of z; 0 where it cannot be told from doubt: what is divided by its root must not be noise."""
        found = self.square - self.mean**2
        return np.where(found > self.doubt * (1 + 2 * np.abs(self.mean)), found, 0.0)


@dataclass(frozen=True)
class _Summing:
    """Round of sums of (examples, Σz, Σz²): an experiment's round, but for training."""

    population: Population
    shape: tuple[int, ...]
    bounds: tuple[np.ndarray, np.ndarray] | None
    aggregation: Any
    plan: Plan | None
    is_real: bool
    seed: int | None

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of each feature; infinite ones where there are none."""
        return self.bounds or (np.full(self.shape, -np.inf), np.full(self.shape, np.inf))

    def moments(self, round: int, centre: np.ndarray, scale: np.ndarray) -> _Moments:
        """Sum the moments of z = (x − centre)/scale. Errors: ConfigError where noise leaves no examples."""
        experiment = self._experiment()
        key = Key.fresh() if self.seed is None else derive(self.seed, "statistics", round)
        cohort = experiment.sampler.sample(range(len(self.population)), self.population.sizes, key.derive("cohort"))
        size = 1 + 2 * math.prod(self.shape)
        spec = ModelSpec((VariableSpec("moments", (size,), "float32", False, 0),))
        state = experiment.transforms.init(spec)
        broadcast = Broadcast(round, np.zeros(size, np.float32), NOTHING, state, None)
        unit = self._unit(experiment.secure_aggregation, size)
        runtime = _Reporting(self, experiment, lambda client: unit * self._vector(client, centre, scale))
        table = RoundSetup(experiment, cast(Runtime, runtime), runtime.opened(spec), FORGETFUL)
        result = collected(table, ServerState(0, broadcast.params, (), state, {}), broadcast, cohort, key)
        require(not result.is_spoiled, "a client spoiled the hidden sum of the statistics; the log names it if it can")
        total = result.total
        _, total = experiment.transforms.decode(state, total, key.derive("decode"))
        count, first, second = np.split(total.delta.astype(np.float64) / unit, [1, 1 + math.prod(self.shape)])
        if not count[0] > 0:
            raise ConfigError("the noise drowned the number of examples; use more clients or a larger epsilon")
        mean, square = (part.reshape(self.shape) / count[0] for part in (first, second))
        doubt = 4 * self._deviation(experiment.secure_aggregation, len(cohort)) / unit / float(count[0])
        return _Moments(float(count[0] * self._most), mean, square, doubt)

    @property
    def is_rounded(self) -> bool:
        """Return whether numbers are float32, or on a grid."""
        return self.aggregation is not None or self.plan is not None

    @cached_property
    def _most(self) -> float:
        """Number that a client's sums are divided by, so that none is above 1."""
        return float(self.population.sizes().max()) if self.is_rounded else 1.0

    def _experiment(self) -> Recipe:
        """Return an experiment that is refused for whatever one with this aggregation and plan is refused for."""
        aggregation = self.aggregation
        if aggregation is not None and aggregation.metrics:
            aggregation = dataclasses.replace(aggregation, metrics=())
        experiment = Experiment(
            name="statistics",
            model=_no_model,
            population=self.population,
            strategy=_NoStrategy(),
            sampler=AllClients() if self.plan is None else self.plan.sampler,
            plan=self.plan,
            secure_aggregation=aggregation,
            weighting="uniform",
            rounds=1,
            seed=self.seed or 0,
        )
        return experiment.resolved

    def _unit(self, aggregation: SecureAggregation | None, size: int) -> float:
        """Return the number that stands for 1 in a sum.

        With a plan it is such that no client's numbers are clipped, else it is the aggregation's limit.
        """
        limit = 1.0 if aggregation is None else aggregation.magnitude_limit
        if self.plan is None:
            return limit
        assert self.plan.fixed_clip_norm is not None  # see _cost
        unit = self.plan.fixed_clip_norm / math.sqrt(size)
        if aggregation is not None and limit < unit:
            raise ConfigError(f"expected limit={limit!r} of the aggregation ≥ {unit:.4g}, the clip norm's share")
        return unit

    def _deviation(self, aggregation: SecureAggregation | None, clients: int) -> float:
        """Return the standard deviation of what noise and rounding add to each sum."""
        step = 0.0 if aggregation is None else aggregation.step or 0.0
        rounding = step / 2 * math.sqrt(clients)
        return rounding if self.plan is None else math.hypot(rounding, self.plan.deviation(clients))

    def _vector(self, client: int, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Compute (examples, Σz, Σz²)/most of one client: float64."""
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


class _Reporting:
    """Part of a Runtime that one round needs, for clients that hold no model: each reports a vector."""

    is_live = False

    def __init__(self, summing: _Summing, experiment: Recipe, report: Callable[[int], np.ndarray]):
        self._summing, self._experiment, self._report = summing, experiment, report
        self._parties = Parties()

    def opened(self, spec: ModelSpec) -> Opened:
        """Return what a round needs to know; sums in the open are of float64."""
        summation = summation_of(self._experiment, spec)
        return Opened(
            spec, summation if self._summing.is_rounded else dataclasses.replace(summation, aggregator=_Exact())
        )

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Yield each client's report; see Runtime.train. Errors: ConfigError for a report that cannot be summed."""
        for assignment in work:
            assert assignment is not WAIT
            client, key = assignment.client, assignment.key.derive("client", assignment.client)
            vector = self._report(client)
            if self._summing.is_rounded:
                vector = vector.astype(np.float32)
            update = ClientUpdate(vector, NOTHING, 1.0, {})
            transforms = self._experiment.transforms
            content: Any = transforms.encode(assignment.broadcast.transforms, update, key.derive("transforms"))
            if assignment.opening is not None:
                content = self._parties.hide(assignment.opening, client, content, key.derive("aggregation"))
            if isinstance(content, Failure):
                raise ConfigError(f"client {client}: {content.detail}")
            yield Arrival((client,), content, {}, bytes_of(content), 0)

    def hidden_sum(
        self, aggregation: SecureAggregation, meeting: Meeting, cohort: Sequence[int]
    ) -> tuple[ServerSum, Callable[[int], ClientSum] | None]:
        """Make both halves of a hidden sum; see Runtime.hidden_sum."""
        return aggregation.rehearse(meeting, cohort, self._summing.is_real)

    def ask(self, messages: Mapping[int, bytes], reply_bytes: int) -> Iterator[Arrival]:
        """Yield the clients' answers to messages; see Runtime.ask."""
        return self._parties.ask(messages)


class _Exact(Aggregator):
    """Aggregator that adds in float64."""

    def zero(self, size: int) -> Total:
        """Return the empty sum over vectors of `size` numbers."""
        return Total(np.zeros(size), NOTHING, 0.0, 0, {})

    def add(self, accumulator: Total, update: ClientUpdate) -> Total:
        """Add the update, in place."""
        np.add(accumulator.delta, update.delta, out=accumulator.delta)
        return accumulator._replace(weight=accumulator.weight + 1.0, clients=accumulator.clients + 1)

    def merge(self, one: Total, other: Total) -> Total:
        """Add two sums, in place in `one`."""
        np.add(one.delta, other.delta, out=one.delta)
        return one._replace(weight=one.weight + other.weight, clients=one.clients + other.clients)

    def total(self, accumulator: Total) -> Total:
        """Return the accumulator itself: it is the total."""
        return accumulator


class _NoStrategy(Strategy):
    """Strategy for a round that trains nothing."""

    def init(self, params: Vector) -> State:
        """Return None: there is no state."""

    def broadcast(self, state: State) -> Vector:
        """Return no numbers."""
        return NOTHING

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Return state and params as they were."""
        return state, params


def _no_model() -> None:
    """Return None: nothing is trained."""


def _cost(plan: Plan | None) -> tuple[float, float, str]:
    """Return ε, δ and the kind of a plan, for one round of it.

    Errors: ConfigError, IncompatibleError for one whose noise is not on sums of vectors of a fixed norm; BudgetSpent.
    """
    if plan is None:
        return math.inf, 0.0, ""
    if plan.per_example is not None:
        raise IncompatibleError(
            f"{type(plan).__name__} has its noise in training steps, and statistics have none; use public ones, "
            "FeatureStatistics(mean, deviation)"
        )
    is_fixed = plan.fixed_clip_norm is not None
    require(is_fixed, f"expected the clip norm of {plan!r} to be a number: one round adapts to nothing")
    ledger = plan.charge({})
    plan.check_budget(ledger)
    return plan.spent(ledger), plan.delta, type(plan).__name__


def _shape_of(population: Population) -> tuple[int, ...]:
    """Return the shape of one input."""
    x = population.examples(0).x
    require_features(x)
    shape: tuple[int, ...] = x.shape[1:]
    return shape


def _broadcast(bounds: Bounds | None, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return bounds of each feature. Errors: ConfigError unless each is two finite numbers, the first less."""
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
