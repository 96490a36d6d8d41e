"""Privacy plans: a budget, and the sampler, transform and ledger event that keep it, all from one set of numbers.

plan = PrivacyPlan.calibrate(epsilon=2.0, delta=1e-6, rounds=500, population=1_000_000, sampling_rate=1e-3,
                             clip_norm=0.5)
Experiment(..., plan=plan)      # uses plan.sampler and plan.transform, and keeps the ledger of plan.round_event
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

from ..core.bases import Sampler
from ..core.errors import IncompatibleError
from ..core.parts.private import Protected, SecureAggregation
from ..core.parts.sampling import AllClients, FixedCohort, PoissonCohort
from ..core.traits import Trait
from ..core.validation import require, require_count
from . import accounting, budget
from .adaptive import AdaptiveClip
from .central import CentralGaussian
from .distributed import DistributedSkellam
from .events import FixedCohortGaussian, Gaussian, LocalRelease, SkellamSum, require_sampling_rate
from .local import LocalGaussian
from .secure_sum import SecureSum


class CentralPlan(budget.BudgetPlan):
    """A plan whose server adds the noise, once and to the sum, whoever takes part."""

    clip_norm: float | AdaptiveClip
    clients_release = False

    @property
    def fixed_clip_norm(self) -> float | None:
        """Clip norm; None where it adapts."""
        return None if isinstance(self.clip_norm, AdaptiveClip) else self.clip_norm

    def deviation(self, clients: int) -> float:
        """Return noise multiplier · clip norm, whoever takes part; infinite where the clip norm adapts."""
        return self.calibrated_noise * (self.fixed_clip_norm or math.inf)


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan(CentralPlan):
    """Central differential privacy of whole clients, each taking part in a round with probability sampling_rate.

    Whoever sees all models of the run learns of any one client at most (epsilon, delta): neighbours differ by one
    client's presence. The server sees the sum before the noise, and is trusted with it.

    Parameters
    ----------
    rounds
        The number that the budget is to last. The budget, not this, ends a run: fewer cost less.
    population
        Number of clients.
    clip_norm
        A number, or an AdaptiveClip.
    noise_multiplier
        The standard deviation of the noise on the sum, over the clip norm; None: calibrated to the budget when first
        needed.
    rounding
        By how much the experiment's aggregation may round a number, `budget.step_of(aggregation)`; 0 without one.
    secret_cohort
        Whether nobody but the server knows who takes part in a round, by which sampling amplifies. False where clients
        are told, as by SecureSum: then each is taken to be in all rounds, at a higher price.

    Raises
    ------
    ConfigError
        For a value out of bounds; for a budget that no noise keeps when the noise is calibrated.
    """

    epsilon: float
    delta: float
    rounds: int
    population: int
    sampling_rate: float
    clip_norm: float | AdaptiveClip
    noise_multiplier: float | None = None
    rounding: float = 0.0
    secret_cohort: bool = True

    def __post_init__(self) -> None:
        require_sampling_rate(self.sampling_rate)
        budget.check_numbers(self)
        _ = self.transform  # checks the rest

    @property
    def expected_cohort(self) -> float:
        """Expected number of clients in a round: the public divisor of the sum."""
        return self.sampling_rate * self.population

    @property
    def sampler(self) -> PoissonCohort:
        """Sampler that draws who takes part, each client on its own."""
        return PoissonCohort(self.sampling_rate)

    @property
    def transform(self) -> CentralGaussian:
        """Transform with clipping, noise and divisor."""
        return CentralGaussian(self.clip_norm, budget.noise_of(self), self.expected_cohort, self.rounding)

    @property
    def round_event(self) -> Gaussian:
        """Event that a round releases."""
        return Gaussian(float(budget.noise_of(self)), self._amplifying_rate)

    @property
    def _amplifying_rate(self) -> float:
        """Probability, in the eyes of whom the promise is towards, that a client is in a round's sum."""
        return self.sampling_rate if self.secret_cohort else 1.0

    def find_noise(self) -> float:
        """Compute the noise multiplier with which `rounds` rounds cost epsilon."""
        found = accounting.calibrate(self.epsilon, self.delta, self.rounds, self._amplifying_rate)
        if isinstance(self.clip_norm, AdaptiveClip):
            self.clip_norm.update_noise(found, self.expected_cohort)
        return found

    def check(self, experiment: Protected) -> None:
        """Raise ConfigError or IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_aggregation(
            experiment.secure_aggregation, self.clip_norm, self.rounding, self._amplifying_rate < 1
        )


@dataclass(frozen=True, kw_only=True)
class FixedCohortPlan(CentralPlan):
    """Same as PrivacyPlan, for cohorts of exactly `cohort` clients, drawn without replacement.

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
    secret_cohort: bool = True

    def __post_init__(self) -> None:
        require_count("cohort", self.cohort)
        budget.check_numbers(self)
        require(self.cohort <= self.population, f"expected cohort={self.cohort} ≤ population={self.population}")
        _ = self.transform  # checks the rest

    @property
    def drawn_from(self) -> int:
        """Least number of clients to draw a cohort from: from fewer, each would be in it more often."""
        return self.population

    @property
    def sampler(self) -> FixedCohort:
        """Sampler that draws who takes part: `cohort` clients."""
        return FixedCohort(self.cohort)

    @property
    def transform(self) -> CentralGaussian:
        """Transform with clipping, noise and divisor."""
        return CentralGaussian(self.clip_norm, budget.noise_of(self), float(self.cohort), self.rounding)

    @property
    def round_event(self) -> FixedCohortGaussian:
        """Event that a round releases."""
        return self._event(float(budget.noise_of(self)))

    def _event(self, noise_multiplier: float) -> FixedCohortGaussian:
        return FixedCohortGaussian(noise_multiplier, self._drawn, self.population)

    @property
    def _drawn(self) -> int:
        """Number of clients in a round's sum, in the eyes of whom the promise is towards."""
        return self.cohort if self.secret_cohort else self.population

    def find_noise(self) -> float:
        """Compute the noise multiplier with which `rounds` rounds cost epsilon."""
        found = accounting.smallest_noise(self._event, self.epsilon, self.delta, self.rounds)
        if isinstance(self.clip_norm, AdaptiveClip):
            self.clip_norm.update_noise(found, self.cohort)
        return found

    def check(self, experiment: Protected) -> None:
        """Raise ConfigError or IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_aggregation(
            experiment.secure_aggregation, self.clip_norm, self.rounding, self._drawn < self.population
        )


@dataclass(frozen=True, kw_only=True)
class LocalPlan(budget.BudgetPlan):
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
    covers = Trait.NORM_BOUND  # noise that a client adds after clipping covers whatever becomes of its update later

    def __post_init__(self) -> None:
        budget.check_numbers(self)
        _ = self.transform  # checks the rest

    @property
    def transform(self) -> LocalGaussian:
        """Transform with clipping and noise, on the client."""
        return LocalGaussian(self.clip_norm, budget.noise_of(self))

    @property
    def round_event(self) -> LocalRelease:
        """Event that a round releases of each client in it."""
        return self.transform.event

    @property
    def fixed_clip_norm(self) -> float:
        """Clip norm of an update."""
        return self.clip_norm

    def deviation(self, clients: int) -> float:
        """Return the standard deviation of the noise of `clients` clients together."""
        return self.calibrated_noise * self.clip_norm * math.sqrt(clients)

    def find_noise(self) -> float:
        """Compute the noise multiplier with which `rounds` rounds cost epsilon."""
        return accounting.local_noise(self.epsilon, self.delta, self.rounds)

    def check(self, experiment: Protected) -> None:
        """Raise ConfigError or IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_metrics(experiment.secure_aggregation)


@dataclass(frozen=True, kw_only=True)
class DistributedPlan(budget.BudgetPlan):
    """Distributed differential privacy: the clients' shares of noise are in the sum that secure aggregation reveals.

    Whoever sees the sums, the server included, learns of any one client's data at most (epsilon, delta), as long as
    survivors_floor clients of each round are honest and stay. Neighbours differ by one client's data, replaced, since
    the server sees who takes part; for the same reason sampling amplifies nothing.

    Parameters
    ----------
    cohort
        Clients per round.
    limit
        The limit of the experiment's SecureSum, which needs metrics=() and minimum_clients ≥ survivors_floor too.

    Raises
    ------
    ConfigError
        As PrivacyPlan does; and, when a run begins, where limit cannot hold the noise.
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
    covers = Trait.NORM_BOUND

    def __post_init__(self) -> None:
        require_count("cohort", self.cohort)
        budget.check_numbers(self)
        require(self.cohort <= self.population, f"expected cohort={self.cohort} ≤ population={self.population}")
        _ = self.transform  # checks the rest
        require(
            self.survivors_floor <= self.cohort,
            f"expected survivors_floor={self.survivors_floor} ≤ cohort={self.cohort}",
        )

    @property
    def sampler(self) -> FixedCohort:
        """Sampler that draws who takes part: `cohort` clients."""
        return FixedCohort(self.cohort)

    @property
    def transform(self) -> DistributedSkellam:
        """Transform with clipping, rounding and a share of the noise, on the client."""
        return DistributedSkellam(self.clip_norm, budget.noise_of(self), self.survivors_floor, self.limit)

    @property
    def round_event(self) -> SkellamSum:
        """Event that a round releases."""
        return self.transform.event

    @property
    def fixed_clip_norm(self) -> float:
        """Clip norm of an update."""
        return self.clip_norm

    def deviation(self, clients: int) -> float:
        """Return the standard deviation of the shares of noise of `clients` clients together."""
        return self.calibrated_noise * self.clip_norm * math.sqrt(clients / self.survivors_floor)

    def find_noise(self) -> float:
        """Compute the noise multiplier with which `rounds` rounds cost epsilon."""
        event = partial(SkellamSum, norm=self.transform.norm)
        return accounting.smallest_noise(event, self.epsilon, self.delta, self.rounds)

    def check(self, experiment: Protected) -> None:
        """Raise ConfigError or IncompatibleError for an experiment that would not keep what the plan promises."""
        budget.check(self, experiment)
        budget.check_metrics(experiment.secure_aggregation)
        check_secure_sum(self, experiment.secure_aggregation)


def check_secure_sum(plan: DistributedPlan, aggregation: SecureAggregation | None) -> None:
    """Raise unless single shares of noise stay hidden, on the plan's own grid, and too few are never summed."""
    if not isinstance(aggregation, SecureSum):
        raise IncompatibleError(
            f"a share of noise hides nothing alone: expected secure_aggregation=SecureSum(…), got {aggregation!r}"
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
