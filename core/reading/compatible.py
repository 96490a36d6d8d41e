"""Refusals of an experiment besides those that its parts declare (core/traits.py): numbers, and orders of parts.

Nothing here loads data: a population's number of clients counts where it is known without.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..bases import Population
from ..errors import ConfigError, IncompatibleError
from ..parts.algorithms import AsynchronousStrategy
from ..parts.chain import flattened
from ..recipe import Recipe, course_of, declared
from ..traits import check_compatible
from ..validation import lacking


def check_together(recipe: Recipe) -> None:
    """Raise ConfigError or IncompatibleError for parts that could never do together what each promises."""
    check_compatible(declared(recipe))
    _check_division(recipe)
    if recipe.deadline is not None and recipe.devices is None:
        raise ConfigError(f"{recipe.deadline!r} needs devices, whose speeds say who is late")
    check_aggregator(recipe)
    _check_order(recipe)
    _check_released(recipe)
    _check_phases(recipe)
    if recipe.plan is not None:
        recipe.plan.check(recipe)


def _check_division(recipe: Recipe) -> None:
    """Raise ConfigError where an example could be in both training and validation."""
    divisions = [None if one is None else one.part_of for one in (recipe.population, recipe.validation)]
    if None not in divisions and divisions[0] != divisions[1]:
        raise ConfigError("population and validation are parts of different divisions; examples would be in both")


def check_aggregator(recipe: Recipe, clients: int | None = None) -> None:
    """Raise ConfigError for rounds that never have as many updates as the aggregator needs.

    clients: number of clients in the population; None: as many as can be told without loading it.
    """
    aggregator, most = recipe.aggregator, _most_updates(recipe, clients)
    if most is not None and most < aggregator.min_clients:
        source = recipe.strategy if recipe.strategy.buffer == most else recipe.sampler
        raise ConfigError(
            f"{aggregator!r} needs {aggregator.min_clients} updates a round; {source!r} gives {most} at most. Enlarge "
            "the cohort, or expect fewer attackers"
        )


def _most_updates(recipe: Recipe, clients: int | None) -> int | None:
    """Return the upper bound on the updates in a round; None where nothing bounds them."""
    if isinstance(recipe.strategy, AsynchronousStrategy):
        return recipe.strategy.buffer  # may be more than are at work at any time, and the same client twice
    bounds = (recipe.sampler.most_clients, recipe.population.known_clients if clients is None else clients)
    return min((bound for bound in bounds if bound is not None), default=None)


def _check_order(recipe: Recipe) -> None:
    """Raise IncompatibleError where pooled statistics would not be those of whole updates as they were trained."""
    transforms = list(flattened(recipe.transforms))
    pooling = next((one for one in transforms if one.pools_statistics), None)
    if pooling is not None and (transforms[0] != pooling or transforms.count(pooling) > 1):
        raise IncompatibleError(
            f"{pooling!r} works on updates as they were trained; put it first in transforms, and once"
        )


def _check_released(recipe: Recipe) -> None:
    """Raise IncompatibleError for a plan, and clients whose inputs are standardised by what the plan does not cover.

    A population with `statistics` says what these cost: 0 where they are public, infinity without noise.
    """
    plan = recipe.plan
    for statistics in recipe.population.released:
        if plan is None or statistics.epsilon == 0:
            continue
        if statistics.epsilon == float("inf"):
            raise IncompatibleError(
                f"{statistics!r} were released without noise, which the plan does not cover; compute them with a plan "
                "of their own, federated_statistics(…, plan=…), or give public ones, FeatureStatistics(mean, deviation)"
            )
        if statistics.plan != type(plan).__name__:
            raise IncompatibleError(
                f"ε of a {statistics.plan}, of the statistics, and ε of a {type(plan).__name__} are of different "
                "promises, and do not add up; compute the statistics with a plan of the experiment's kind"
            )


def _check_phases(recipe: Recipe) -> None:
    """Raise ConfigError for phases that the other parts leave nothing to do, and nothing to learn from."""
    if {what for _, what in course_of(recipe).parts} != {"all"} and not recipe.personal:
        raise ConfigError(
            f'{recipe.rule!r} trains what stays at home apart from the rest: say what it is, personal=("…",)'
        )
    tune = recipe.fine_tune
    if tune is None:
        return
    if recipe.validation is None:
        raise ConfigError(f"{tune!r} is for what clients hold out; give a validation population, as from split_clients")
    if tune.learning_rate is None and not lacking(recipe.local.learning_rate, ("at",)):
        raise ConfigError(f"{tune!r} needs a learning_rate of its own: local.learning_rate changes with the rounds")


def spent(recipe: Recipe, ledger: Mapping[str, int]) -> float | None:
    """Return ε of everything that was released of the clients' data, None without a plan. It holds at `delta_of`.

    That is the ledger's, and that of the statistics which standardise the clients' inputs.
    """
    if recipe.plan is None:
        return None
    return recipe.plan.spent(ledger) + price_of(recipe.population)[0]


def delta_of(recipe: Recipe) -> float | None:
    """Return δ of everything that was released of the clients' data, None without a plan."""
    if recipe.plan is None:
        return None
    return recipe.plan.delta + price_of(recipe.population)[1]


def has_noise(recipe: Recipe) -> bool:
    """Return whether noise is on what is released, with a plan that prices it or without."""
    adds_noise = any(one.adds_noise for one in flattened(recipe.transforms))
    return recipe.plan is not None or recipe.local.per_example is not None or adds_noise


def check_fresh(recipe: Recipe) -> None:
    """Errors: ConfigError, asked of real devices, for released statistics whose noise follows from a seed.

    A seed is in the experiment's file, which all parties have, and whoever has it takes the noise off.
    """
    for statistics in recipe.population.released:
        if statistics.noise == "seeded" and statistics.epsilon > 0:
            raise ConfigError(
                f"the noise on {statistics!r} follows from a public seed, and hides nothing of real clients; compute "
                "them anew with federated_statistics(…, seed=None), and keep the result"
            )


def price_of(population: Population) -> tuple[float, float]:
    """Return ε and δ of the statistics that standardise a population's inputs: sums, by sequential composition."""
    released = population.released
    return sum(one.epsilon for one in released), sum(one.delta for one in released)
