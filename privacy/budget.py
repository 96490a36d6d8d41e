"""What all privacy plans do alike: keep a ledger, price it, stop before it is exceeded, refuse what breaks them.

A plan is made of numbers alone. Its noise is calibrated when first needed and not when it is built: importing an
experiment that has a plan does not import dp_accounting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ..core.chain import flattened
from ..core.errors import BudgetSpent, IncompatibleError
from ..core.folds import WeightedSum
from ..core.protocols import Sampler, UpdateTransform
from ..core.validation import require, require_count, require_real
from . import accounting, composition
from .adaptive import AdaptiveClip
from .events import Event, Ledger, compose, require_noise_multiplier

NEAR = 1e-3  # beyond the budget: there ε is computed from scratch, so that no round is lost to a bound's fourth digit


class Budgeted(Protocol):
    """What the functions below need to know of a plan."""

    @property
    def epsilon(self) -> float: ...
    @property
    def delta(self) -> float: ...
    @property
    def rounds(self) -> int: ...
    @property
    def population(self) -> int: ...
    @property
    def noise_multiplier(self) -> float | None: ...
    @property
    def sampler(self) -> Sampler: ...
    @property
    def transform(self) -> UpdateTransform: ...
    @property
    def round_event(self) -> Event: ...
    def find_noise(self) -> float:
        """The noise multiplier with which `rounds` rounds cost epsilon."""


@dataclass(frozen=True)
class Calibrated:
    """A plan's noise multiplier: a number as soon as one is needed, `float(calibrated)`."""

    plan: Any

    def __float__(self) -> float:
        return found_noise(self.plan)


@lru_cache(maxsize=64)
def found_noise(plan: Budgeted) -> float:
    """plan.find_noise(), once."""
    return plan.find_noise()


def noise_of(plan: Budgeted) -> float | Calibrated:
    """The plan's own noise multiplier, or the one to be calibrated."""
    return Calibrated(plan) if plan.noise_multiplier is None else plan.noise_multiplier


def check_numbers(plan: Budgeted) -> None:
    """Raise ConfigError unless the numbers that all plans have are within their bounds."""
    require_real("epsilon", plan.epsilon, above=0)
    require_count("rounds", plan.rounds)
    require_count("population", plan.population)
    accounting.require_delta(plan.delta, plan.population)
    if plan.noise_multiplier is not None:
        require_noise_multiplier(plan.noise_multiplier)


def calibrated(plan: Any) -> Any:
    """The plan, its noise calibrated now. Errors: ConfigError for a budget that no noise keeps."""
    float(noise_of(plan))
    return plan


def charge(plan: Budgeted, ledger: Ledger) -> dict[str, int]:
    """The ledger with one more round of this plan in it."""
    return compose(ledger, plan.round_event)


def spent(plan: Budgeted, ledger: Ledger) -> float:
    """ε of everything in the ledger, at the plan's δ: an upper bound, to 3 digits.

    The first call takes up to two seconds, later ones on a ledger that grew a few milliseconds.
    """
    found = composition.spent(ledger, plan.delta, plan.rounds)
    return min(found, from_scratch(frozenset(ledger.items()), plan.delta)) if is_near(found, plan.epsilon) else found


def is_near(found: float, epsilon: float) -> bool:
    """Whether a bound is over the budget by no more than it may be too high."""
    return epsilon < found <= epsilon * (1 + NEAR)


@lru_cache(maxsize=16)
def from_scratch(ledger: frozenset[tuple[str, int]], delta: float) -> float:
    """ε as `accounting` computes it. Kept: a round asks twice."""
    return accounting.epsilon(dict(ledger), delta).pld


def check_budget(plan: Budgeted, ledger: Ledger) -> None:
    """Raise BudgetSpent when the ledger, with a round that has not begun yet, is over the budget."""
    found = spent(plan, ledger)
    if found > plan.epsilon:
        number = sum(ledger.values())
        before = spent(plan, {**ledger, str(plan.round_event): ledger.get(str(plan.round_event), 1) - 1})
        raise BudgetSpent(
            f"the privacy budget is spent: {number - 1} rounds cost ε={before:.4g}, and another would make it "
            f"{found:.4g}, above epsilon={plan.epsilon:g} at delta={plan.delta:g}. The model so far is kept; for more "
            "rounds begin a new run with a larger epsilon, or with a plan for more rounds, which has more noise"
        )


def check(plan: Budgeted, experiment: Any) -> None:
    """Raise ConfigError, or IncompatibleError, for an experiment that would not keep what the plan promises."""
    own, chain = plan.transform, list(flattened(experiment.transforms))
    if chain.count(own) != 1 or chain[-1] != own:
        raise IncompatibleError(f"expected the plan's {type(own).__name__} once, last in transforms={chain!r}")
    others = [one for one in chain[:-1] if hasattr(one, "noise_multiplier")]
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
    clients = len(experiment.population)
    require(
        clients == plan.population, f"expected plan.population={plan.population} to be the {clients} clients there are"
    )
    if type(experiment.fold) is not WeightedSum:
        raise IncompatibleError(f"a plan adds noise to plain sums; {experiment.fold!r} is another: drop the fold")
    if experiment.validation is not None:
        raise IncompatibleError(
            "validation reports clients' metrics, which are releases that the plan does not pay for; "
            "evaluate on the server's test examples instead"
        )


def check_metrics(aggregation: Any) -> None:
    """Raise unless no metrics of clients travel in the sum."""
    if aggregation is not None and aggregation.metrics:
        raise IncompatibleError(
            f"the clients' metrics={aggregation.metrics!r} are releases that the plan does not pay for; "
            "set aggregation.metrics to ()"
        )


def check_aggregation(aggregation: Any, clip_norm: float | AdaptiveClip, rounding: float) -> None:
    """Raise unless what is aggregated stays within the clip norm, and no metrics travel with it.

    rounding: what the plan's transform allows for.
    """
    if aggregation is None:
        return
    check_metrics(aggregation)
    name, step, limit = type(aggregation).__name__, step_of(aggregation), aggregation.limit
    require(
        rounding >= step,
        f"{name} rounds each number by up to {step!r} after it was clipped; expected rounding={rounding!r} of the plan "
        "to be at least that",
    )
    if isinstance(clip_norm, AdaptiveClip):
        require(limit >= 0.5, f"expected limit={limit!r} of {name} ≥ 0.5, the size of adaptive clipping's count")


def step_of(aggregation: Any) -> float:
    """How far the aggregation may move a number by rounding it. Errors: IncompatibleError where it does not say."""
    step = getattr(aggregation, "step", None)
    if step is None:
        raise IncompatibleError(
            f"{type(aggregation).__name__} does not say how far it rounds a number after clipping (no `step`), "
            "which a plan has to allow for"
        )
    return float(step)
