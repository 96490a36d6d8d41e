"""What an Experiment refuses because parts of it could never do what they promise together.

Nothing here loads data: a population's number of clients counts where it is known without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .chain import flattened
from .errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    from .experiment import Experiment


def check_fold(experiment: Experiment, clients: int | None = None) -> None:
    """Errors: ConfigError for rounds that never have as many updates as the fold needs.

    clients: of the population; None: as many as can be told without loading it.
    """
    fold, sampler = experiment.fold, experiment.sampler
    needed, most = getattr(fold, "min_clients", 1), _most_updates(experiment, clients)
    if most is not None and most < needed:
        source = experiment.strategy if getattr(experiment.strategy, "buffer", None) == most else sampler
        raise ConfigError(
            f"{fold!r} needs {needed} updates a round; {source!r} gives {most} at most. Enlarge the cohort, or expect "
            "fewer attackers"
        )


def check_pooling(experiment: Experiment) -> None:
    """Errors: IncompatibleError where pooled statistics would not be those of all examples.

    A transform with `pools_statistics` works on the mean of whole updates as they were trained. What has
    `by_coordinate`, a fold or a transform, mixes or scales each number of an update in its own way.
    """
    transforms = list(flattened(experiment.transforms))
    pooling = next((one for one in transforms if getattr(one, "pools_statistics", False)), None)
    if pooling is None:
        return
    if transforms[0] != pooling or transforms.count(pooling) > 1:
        raise IncompatibleError(
            f"{pooling!r} works on updates as they were trained; put it first in transforms, and once"
        )
    apart = next((one for one in (experiment.fold, *transforms) if getattr(one, "by_coordinate", False)), None)
    if apart is not None:
        raise IncompatibleError(
            f"{pooling!r} pools means and variances that belong together; {apart!r} treats each number on its own"
        )
    if getattr(experiment.strategy, "mixes_models", False):
        raise IncompatibleError(f"{pooling!r} is for one mean over all clients; {experiment.strategy!r} takes others")
    if experiment.codec is not None:
        raise IncompatibleError(
            f"{pooling!r} squares the clients' mean, and {experiment.codec!r} loses a part of it; drop one of them"
        )


def check_released(experiment: Experiment) -> None:
    """Errors: IncompatibleError for a plan, and clients whose inputs are standardised by what the plan does not cover.

    A population with `statistics` says what these cost: 0 where they are public, infinity without noise.
    """
    plan = experiment.plan
    for statistics in released(experiment.population):
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


def released(population: Any) -> list[Any]:
    """The statistics that a population, or one that it is made from, is standardised by."""
    found = []
    while population is not None:
        if hasattr(population, "statistics"):
            found.append(population.statistics)
        division = getattr(population, "division", None)
        population = getattr(population, "population", getattr(division, "population", None))
    return found


def spent(experiment: Experiment, ledger: Mapping[str, int]) -> float | None:
    """ε of everything that was released of the clients' data: the ledger's, and that of the statistics which
    standardise their inputs. None without a plan. Holds at `delta_of`."""
    if experiment.plan is None:
        return None
    return experiment.plan.spent(ledger) + price_of(experiment.population)[0]


def delta_of(experiment: Experiment) -> float | None:
    """δ of everything released. None without a plan."""
    if experiment.plan is None:
        return None
    return experiment.plan.delta + price_of(experiment.population)[1]


def price_of(population: Any) -> tuple[float, float]:
    """ε and δ of the statistics that standardise a population's inputs: sums, by sequential composition."""
    found = released(population)
    return sum(one.epsilon for one in found), sum(one.delta for one in found)


def _most_updates(experiment: Experiment, clients: int | None) -> int | None:
    """That a round can have; None where nothing bounds them."""
    sampler: Any = experiment.sampler
    while hasattr(sampler, "sampler"):  # InTime, whose own size is a guess
        sampler = sampler.sampler
    known = _known_clients(experiment.population) if clients is None else clients
    bounds = (getattr(experiment.strategy, "buffer", None), getattr(sampler, "size", None), known)
    is_asynchronous = hasattr(experiment.strategy, "receive")
    # A buffer may hold more than are at work at any time, and the same client twice.
    counted = bounds[:1] if is_asynchronous else bounds[1:]
    return min((bound for bound in counted if bound is not None), default=None)


def _known_clients(population: Any) -> int | None:
    """Their number where it is a field, or the length of one."""
    clients = getattr(population, "clients", None)
    if isinstance(clients, int):
        return clients
    return len(clients) if isinstance(clients, Sequence) else None
