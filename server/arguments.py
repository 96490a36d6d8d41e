"""Checks of the arguments of `run` and `play`, made before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.experiment import Experiment
from ..core.parts.algorithms import AsynchronousStrategy
from ..core.protocols import Elsewhere, Watcher
from ..core.reading.adapted import plain_of
from ..core.reading.fingerprint import is_users_own
from ..core.recipe import Recipe
from ..core.validation import require, require_methods, shown
from .progress import default_watchers

if TYPE_CHECKING:  # SQLAlchemy is imported when a run has a store
    from .store import Store

WATCHER = ("on_start", "on_round", "on_end")


def check_arguments(experiment: Any, runtime: Any, store: str | Store | None, resume: Any) -> None:
    """Raise ConfigError for an argument of `run` or `play` of another kind than it takes."""
    check_experiment(experiment)
    if not isinstance(runtime, Elsewhere) or isinstance(runtime, type):
        require_methods("runtime", runtime, ("open", "train", "evaluate"), "Simulation()")
    is_store = store is None or isinstance(store, str) or hasattr(store, "commit_round")
    require(is_store, f'expected store={shown(store)} to be a URL, such as "sqlite:///runs.db", or an open Store')
    require(
        resume is None or isinstance(resume, str), f'expected resume={shown(resume)} to be a run\'s id, or "latest"'
    )
    require(
        resume is None or store is not None or isinstance(runtime, Elsewhere),  # which has a store of its own
        f"cannot resume run {resume!r} without a store; name the one it was kept in",
    )


def with_progress(runtime: Any, watchers: Sequence[Watcher] | None, progress: bool | None) -> Sequence[Watcher] | None:
    """Return the watchers of a run, with one that prints its rounds where that is wanted.

    Errors: ConfigError for progress that is neither True nor False, and for False where the runtime prints.
    """
    require(progress in (None, True, False), f"expected progress={shown(progress)} to be True or False")
    check_watchers(watchers)
    if progress is None:
        return watchers
    is_elsewhere = isinstance(runtime, Elsewhere) and not isinstance(runtime, type)
    require(
        progress or not is_elsewhere, "progress=False is of a run in this process; Flower(…, quiet=True) prints nothing"
    )
    return (*(watchers or ()), *(default_watchers() if progress and not is_elsewhere else ()))


def check_experiment(experiment: Any) -> None:
    """Raise ConfigError for anything but an Experiment; a name is looked up by the command line alone."""
    remedy = "umbel.experiments has those that come with Umbel" if isinstance(experiment, str) else "Experiment(…)"
    require(
        isinstance(experiment, Experiment), f"expected experiment={shown(experiment)} to be an Experiment: {remedy}"
    )


def check_cohort(recipe: Recipe) -> None:
    """Raise ConfigError for a round that wants more clients than there are."""
    clients = len(recipe.population)
    is_ours = not is_users_own(type(plain_of(recipe.sampler)))  # whose `size` is a cohort's
    size = recipe.sampler.most_clients if is_ours else None
    if size is not None:
        require(size <= clients, f"expected sampler.size={size} ≤ {clients} clients; lower sampler.size or add clients")
    most = clients if size is None else size
    require(
        recipe.min_clients <= most or isinstance(recipe.strategy, AsynchronousStrategy),
        f"expected min_clients={recipe.min_clients} ≤ {most} clients of a round",
    )
    if recipe.secure_aggregation is not None:
        least, _ = recipe.secure_aggregation.cohort_bounds
        require(least <= most, f"{recipe.secure_aggregation!r} needs {least} clients; a round has {most} at most")


def check_watchers(watchers: Any) -> None:
    """Raise ConfigError for one watcher in place of several, a class, or what cannot watch."""
    if watchers is None:
        return
    require(isinstance(watchers, (list, tuple)), f"expected watchers={shown(watchers)} to be a list: [Progress()]")
    for watcher in watchers:
        is_watcher = not isinstance(watcher, type) and all(hasattr(watcher, method) for method in WATCHER)
        require(is_watcher, f"expected watchers={shown(watchers)} of values with {', '.join(WATCHER)}: [Progress()]")
