"""Base of all privacy plans: it keeps a ledger, prices it, stops before it is exceeded, refuses what breaks a plan.

A plan is made of numbers alone. Its noise is calibrated when first needed and not when it is built: importing an
experiment that has a plan does not import dp_accounting.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import BudgetSpent, IncompatibleError
from ..core.parts.chain import flattened
from ..core.parts.discretion import has_secret_cohort
from ..core.parts.private import Plan, Protected, SecureAggregation
from ..core.validation import require, require_count, require_real
from . import accounting, composition
from .adaptive import AdaptiveClip
from .events import Event, Ledger, compose, require_noise_multiplier

NEAR = 1e-3  # relative excess over the budget up to which ε is found from scratch: no round is lost to a fourth digit


class BudgetPlan(Plan):
    """Base of all plans with a ledger.

    A leaf is a frozen dataclass with the fields epsilon, delta, rounds, population and noise_multiplier.
    """

    if TYPE_CHECKING:  # fields of the leaves, in whose way properties would be

        @property
        def rounds(self) -> int: ...
        @property
        def noise_multiplier(self) -> float | None: ...

    @property
    @abc.abstractmethod
    def round_event(self) -> Event:
        """Event that a round releases, `releases_per_round` times."""

    @property
    def releases_per_round(self) -> int:
        """Number of times that a round releases its event."""
        return 1

    @property
    def unit(self) -> str:
        """Unit of the budget: each client, or each example."""
        return "client"

    @abc.abstractmethod
    def find_noise(self) -> float:
        """Compute the noise multiplier with which `rounds` rounds cost epsilon."""

    @classmethod
    def calibrate(cls, **numbers: Any) -> Self:
        """Build the plan of these numbers, calibrated now rather than when first needed: a bad budget fails here."""
        plan = cls(**numbers)
        float(noise_of(plan))
        return plan

    @property
    def promised_epsilon(self) -> float:
        """Budget ε of the plan: epsilon."""
        return self.epsilon

    @property
    def calibrated_noise(self) -> float:
        """The noise multiplier; found now if it was not yet."""
        return float(noise_of(self))

    def charge(self, ledger: Ledger) -> dict[str, int]:
        """Return the ledger with one more round of this plan in it."""
        return compose(ledger, self.round_event, self.releases_per_round)

    def spent(self, ledger: Ledger) -> float:
        """Return ε of everything in the ledger, at the plan's δ: an upper bound, to 3 digits.

        The first call takes up to two seconds, later ones on a ledger that grew a few milliseconds.
        """
        found = composition.spent(ledger, self.delta, self.rounds * self.releases_per_round)
        if not is_near(found, self.epsilon):
            return found
        return min(found, from_scratch(frozenset(ledger.items()), self.delta))

    def check_budget(self, ledger: Ledger) -> None:
        """Raise BudgetSpent when the ledger, with a round that has not begun yet, is over the budget."""
        found = self.spent(ledger)
        if found > self.epsilon:
            event, releases = str(self.round_event), self.releases_per_round
            before = self.spent({**ledger, event: ledger.get(event, releases) - releases})
            number = sum(ledger.values()) // releases
            raise BudgetSpent(
                f"the privacy budget is spent: {number - 1} rounds cost ε={before:.4g} per {self.unit}, and another "
                f"would make it {found:.4g}, above epsilon={self.epsilon:g} at delta={self.delta:g}. The model so far "
                "is kept; for more rounds begin a new run with a larger epsilon, or with a plan for more rounds, which "
                "has more noise"
            )


@dataclass(frozen=True)
class Calibrated:
    """A plan's noise multiplier: a number as soon as one is needed, `float(calibrated)`."""

    plan: BudgetPlan

    def __float__(self) -> float:
        return found_noise(self.plan)


@lru_cache(maxsize=64)
def found_noise(plan: BudgetPlan) -> float:
    """Return plan.find_noise(), computed once."""
    return plan.find_noise()


def noise_of(plan: BudgetPlan) -> float | Calibrated:
    """Return the plan's own noise multiplier, or the one to be calibrated."""
    return Calibrated(plan) if plan.noise_multiplier is None else plan.noise_multiplier


def check_numbers(plan: BudgetPlan) -> None:
    """Raise ConfigError unless the numbers that all plans have are within their bounds."""
    require_real("epsilon", plan.epsilon, above=0)
    require_count("rounds", plan.rounds)
    require_count("population", plan.population)
    accounting.require_delta(plan.delta, plan.population)
    if plan.noise_multiplier is not None:
        require_noise_multiplier(plan.noise_multiplier)


def is_near(found: float, epsilon: float) -> bool:
    """Return whether a bound is over the budget by no more than it may be too high."""
    return epsilon < found <= epsilon * (1 + NEAR)


@lru_cache(maxsize=16)
def from_scratch(ledger: frozenset[tuple[str, int]], delta: float) -> float:
    """Return ε as `accounting` computes it. Kept: a round asks twice."""
    return accounting.epsilon(dict(ledger), delta).pld


def check(plan: BudgetPlan, experiment: Protected) -> None:
    """Raise ConfigError, or IncompatibleError, for an experiment that would not keep what the plan promises."""
    own, chain = plan.transform, list(flattened(experiment.transforms))
    if chain.count(own) != 1 or chain[-1] != own:
        raise IncompatibleError(f"expected the plan's {type(own).__name__} once, last in transforms={chain!r}")
    others = [one for one in chain[:-1] if one.adds_noise]
    if others:
        raise IncompatibleError(f"{others[0]!r} adds noise that the plan does not account for; drop it from transforms")
    if experiment.sampler != plan.sampler:
        raise IncompatibleError(
            f"the plan accounts for {plan.sampler!r}, not for sampler={experiment.sampler!r}; drop the sampler"
        )
    require(
        experiment.weighting == "uniform",
        f"expected weighting={experiment.weighting!r} to be 'uniform': a plan bounds what each client can say",
    )
    if has_secret_cohort(experiment) and experiment.min_clients > 1:
        raise IncompatibleError(
            f"min_clients={experiment.min_clients} ends a run for who was sampled and who failed, which the plan takes "
            "to be unknown; leave it at 1: a round of few clients has the same noise as any other"
        )
    clients = len(experiment.population)
    require(
        clients == plan.population, f"expected plan.population={plan.population} to be the {clients} clients there are"
    )


def check_metrics(aggregation: SecureAggregation | None) -> None:
    """Raise unless no metrics of clients travel in the sum."""
    if aggregation is not None and aggregation.metrics:
        raise IncompatibleError(
            f"the clients' metrics={aggregation.metrics!r} are releases that the plan does not pay for; "
            "set secure_aggregation.metrics to ()"
        )


def check_aggregation(
    aggregation: SecureAggregation | None, clip_norm: float | AdaptiveClip, rounding: float, secret_cohort: bool
) -> None:
    """Raise unless what is aggregated stays within the clip norm, and no metrics travel with it.

    rounding: what the plan's transform allows for. secret_cohort: whether the price counts on nobody knowing who is in.
    """
    if aggregation is None:
        return
    if aggregation.clients_decrypt:
        raise IncompatibleError(
            f"{aggregation!r} has some clients decrypt a round's sum before the plan's noise is on it, and the plan "
            "promises something towards clients; use SecureSum, or a plan whose clients add the noise: LocalPlan"
        )
    check_metrics(aggregation)
    name, step, limit = type(aggregation).__name__, step_of(aggregation), aggregation.magnitude_limit
    require(
        rounding >= step,
        f"{name} rounds each number by up to {step!r} after it was clipped; expected rounding={rounding!r} of the plan "
        "to be at least that",
    )
    if secret_cohort and aggregation.tells_cohort:
        raise IncompatibleError(
            f"{aggregation!r} tells each client of a round who else is in it, and the plan promises something towards "
            "clients at a price that counts on nobody knowing; give the plan secret_cohort=False, which counts no "
            "amplification by sampling"
        )
    if isinstance(clip_norm, AdaptiveClip):
        require(limit >= 0.5, f"expected limit={limit!r} of {name} ≥ 0.5, the size of adaptive clipping's count")


def step_of(aggregation: SecureAggregation) -> float:
    """Return how far the aggregation may move a number by rounding it.

    Errors: IncompatibleError where it does not say.
    """
    if aggregation.step is None:
        raise IncompatibleError(
            f"{type(aggregation).__name__} does not say how far it rounds a number after clipping (no `step`), "
            "which a plan has to allow for"
        )
    return float(aggregation.step)
