"""Privacy plans: a budget, and the sampler, transform and ledger event that keep it, all from one set of numbers.

plan = PrivacyPlan.calibrate(epsilon=2.0, delta=1e-6, rounds=500, population=1_000_000, sampling_rate=1e-3,
                             clip_norm=0.5)
Experiment(..., plan=plan)      # uses plan.sampler and plan.transform, and keeps the ledger of plan.round_event
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from ..core.errors import IncompatibleError
from ..core.protocols import Sampler
from ..core.sampling import AllClients, FixedCohort, PoissonCohort
from ..core.validation import require, require_count
from . import accounting, budget
from .adaptive import AdaptiveClip
from .central import CentralGaussian
from .distributed import DistributedSkellam
from .events import FixedCohortGaussian, Gaussian, LocalRelease, SkellamSum, require_sampling_rate
from .local import LocalGaussian
from .secure_sum import SecureSum


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """Central differential privacy of whole clients, each taking part in a round with probability sampling_rate.

    Whoever sees all models of the run learns of any one client at most (epsilon, delta): neighbours differ by one
    client's presence. The server sees the sum before the noise, and is trusted with it.

    rounds: that the budget is to last. The budget, not this, ends a run: fewer cost less.
    population: number of clients. clip_norm: a number, or an AdaptiveClip.
    noise_multiplier: of the noise on the sum, over the clip norm; None: calibrated to the budget when first needed.
    rounding: by how much the experiment's aggregation may round a number, `budget.step_of(aggregation)`; 0 without one.

    Errors: ConfigError for a value out of bounds; for a budget that no noise keeps when the noise is calibrated.
    """

    epsilon: float
    delta: float
    rounds: int
    population: int
    sampling_rate: float
    clip_norm: float | AdaptiveClip
    noise_multiplier: float | None = None
    rounding: float = 0.0

    clients_release = False

    def __post_init__(self) -> None:
        require_sampling_rate(self.sampling_rate)
        budget.check_numbers(self)
        _ = self.transform  # checks the rest

    @classmethod
    def calibrate(cls, **numbers: Any) -> Self:
        """The plan of these numbers, calibrated now rather than when first needed, so that a bad budget is refused."""
        return budget.calibrated(cls(**numbers))

    @property
    def expected_cohort(self) -> float:
        """The public divisor."""
        return self.sampling_rate * self.population

    @property
    def sampler(self) -> PoissonCohort:
        """Who takes part."""
        return PoissonCohort(self.sampling_rate)

    @property
    def transform(self) -> CentralGaussian:
        """Clipping, noise, divisor."""
        return CentralGaussian(self.clip_norm, budget.noise_of(self), self.expected_cohort, self.rounding)

    @property
    def round_event(self) -> Gaussian:
        """What a round releases."""
        return Gaussian(float(budget.noise_of(self)), self.sampling_rate)

    def find_noise(self) -> float:
        """The noise multiplier with which `rounds` rounds cost epsilon."""
        found = accounting.calibrate(self.epsilon, self.delta, self.rounds, self.sampling_rate)
        if isinstance(self.clip_norm, AdaptiveClip):
            self.clip_norm.update_noise(found, self.expected_cohort)
        return found

    def check(self, experiment: Any) -> None:
        """Errors: ConfigError, IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_aggregation(experiment.aggregation, self.clip_norm, self.rounding)

    charge, spent, check_budget = budget.charge, budget.spent, budget.check_budget


@dataclass(frozen=True, kw_only=True)
class FixedCohortPlan:
    """As PrivacyPlan, for cohorts of exactly `cohort` clients, drawn without replacement.

    Neighbours differ by one client's data, replaced, which moves the sum by up to 2·clip_norm: dearer than a Poisson
    cohort of the same expected size.
    """

    epsilon: float
    delta: float
    rounds: int
    population: int
    cohort: int
    clip_norm: float | AdaptiveClip
    noise_multiplier: float | None = None
    rounding: float = 0.0

    clients_release = False

    def __post_init__(self) -> None:
        require_count("cohort", self.cohort)
        budget.check_numbers(self)
        require(self.cohort <= self.population, f"expected cohort={self.cohort} ≤ population={self.population}")
        _ = self.transform  # checks the rest

    @classmethod
    def calibrate(cls, **numbers: Any) -> Self:
        """The plan of these numbers, calibrated now rather than when first needed, so that a bad budget is refused."""
        return budget.calibrated(cls(**numbers))

    @property
    def drawn_from(self) -> int:
        """How many clients there have to be to draw a cohort from: from fewer, each would be in it more often."""
        return self.population

    @property
    def sampler(self) -> FixedCohort:
        """Who takes part."""
        return FixedCohort(self.cohort)

    @property
    def transform(self) -> CentralGaussian:
        """Clipping, noise, divisor."""
        return CentralGaussian(self.clip_norm, budget.noise_of(self), float(self.cohort), self.rounding)

    @property
    def round_event(self) -> FixedCohortGaussian:
        """What a round releases."""
        return FixedCohortGaussian(float(budget.noise_of(self)), self.cohort, self.population)

    def find_noise(self) -> float:
        """The noise multiplier with which `rounds` rounds cost epsilon."""
        event = partial(FixedCohortGaussian, cohort=self.cohort, population=self.population)
        found = accounting.smallest_noise(event, self.epsilon, self.delta, self.rounds)
        if isinstance(self.clip_norm, AdaptiveClip):
            self.clip_norm.update_noise(found, self.cohort)
        return found

    def check(self, experiment: Any) -> None:
        """Errors: ConfigError, IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_aggregation(experiment.aggregation, self.clip_norm, self.rounding)

    charge, spent, check_budget = budget.charge, budget.spent, budget.check_budget


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """Local differential privacy: clients send noisy updates, and need to trust nobody.

    Whoever sees everything that a client sends, the server included, learns of its data at most (epsilon, delta) over
    `rounds` rounds, even if it takes part in all of them. Sampling amplifies nothing. clip_norm: of an update; the
    noise hides any two of them from one another. sampler: who takes part; any will do.
    """

    epsilon: float
    delta: float
    rounds: int
    population: int
    clip_norm: float
    sampler: Sampler = field(default_factory=AllClients)
    noise_multiplier: float | None = None

    clients_release = True

    def __post_init__(self) -> None:
        budget.check_numbers(self)
        _ = self.transform  # checks the rest

    @classmethod
    def calibrate(cls, **numbers: Any) -> Self:
        """The plan of these numbers, calibrated now rather than when first needed, so that a bad budget is refused."""
        return budget.calibrated(cls(**numbers))

    @property
    def transform(self) -> LocalGaussian:
        """Clipping and noise, on the client."""
        return LocalGaussian(self.clip_norm, budget.noise_of(self))

    @property
    def round_event(self) -> LocalRelease:
        """What a round releases of each client in it."""
        return self.transform.event

    def find_noise(self) -> float:
        """The noise multiplier with which `rounds` rounds cost epsilon."""
        return accounting.local_noise(self.epsilon, self.delta, self.rounds)

    def check(self, experiment: Any) -> None:
        """Errors: ConfigError, IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_metrics(experiment.aggregation)

    charge, spent, check_budget = budget.charge, budget.spent, budget.check_budget


@dataclass(frozen=True, kw_only=True)
class DistributedPlan:
    """Distributed differential privacy: the clients' shares of noise are in the sum that secure aggregation reveals.

    Whoever sees the sums, the server included, learns of any one client's data at most (epsilon, delta), as long as
    survivors_floor clients of each round are honest and stay. Neighbours differ by one client's data, replaced, since
    the server sees who takes part; for the same reason sampling amplifies nothing.

    cohort: clients per round. limit: of the experiment's SecureSum, which needs metrics=() and
    minimum_clients ≥ survivors_floor too. Errors: as PrivacyPlan's; and where limit cannot hold the noise, when a run
    begins.
    """

    epsilon: float
    delta: float
    rounds: int
    population: int
    cohort: int
    survivors_floor: int
    clip_norm: float
    limit: float
    noise_multiplier: float | None = None

    clients_release = True

    def __post_init__(self) -> None:
        require_count("cohort", self.cohort)
        budget.check_numbers(self)
        require(self.cohort <= self.population, f"expected cohort={self.cohort} ≤ population={self.population}")
        _ = self.transform  # checks the rest
        require(
            self.survivors_floor <= self.cohort,
            f"expected survivors_floor={self.survivors_floor} ≤ cohort={self.cohort}",
        )

    @classmethod
    def calibrate(cls, **numbers: Any) -> Self:
        """The plan of these numbers, calibrated now rather than when first needed, so that a bad budget is refused."""
        return budget.calibrated(cls(**numbers))

    @property
    def sampler(self) -> FixedCohort:
        """Who takes part."""
        return FixedCohort(self.cohort)

    @property
    def transform(self) -> DistributedSkellam:
        """Clipping, rounding and a share of the noise, on the client."""
        return DistributedSkellam(self.clip_norm, budget.noise_of(self), self.survivors_floor, self.limit)

    @property
    def round_event(self) -> SkellamSum:
        """What a round releases."""
        return self.transform.event

    def find_noise(self) -> float:
        """The noise multiplier with which `rounds` rounds cost epsilon."""
        event = partial(SkellamSum, norm=self.transform.norm)
        return accounting.smallest_noise(event, self.epsilon, self.delta, self.rounds)

    def check(self, experiment: Any) -> None:
        """Errors: ConfigError, IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_metrics(experiment.aggregation)
        check_secure_sum(self, experiment.aggregation)

    charge, spent, check_budget = budget.charge, budget.spent, budget.check_budget


def check_secure_sum(plan: DistributedPlan, aggregation: Any) -> None:
    """Raise unless single shares of noise stay hidden, on the plan's own grid, and too few are never summed."""
    if not isinstance(aggregation, SecureSum):
        raise IncompatibleError(
            f"a share of noise hides nothing alone: expected aggregation=SecureSum(…), got {aggregation!r}"
        )
    require(
        aggregation.limit == plan.limit and aggregation.max_weight == 1,
        f"expected aggregation to be SecureSum(limit={plan.limit!r}, max_weight=1), on whose grid the noise is; "
        f"got limit={aggregation.limit!r}, max_weight={aggregation.max_weight}",
    )
    require(
        aggregation.minimum_clients >= plan.survivors_floor,
        f"expected minimum_clients={aggregation.minimum_clients} of SecureSum ≥ survivors_floor="
        f"{plan.survivors_floor}: a sum of fewer has too little noise",
    )
