"""Defaults of an experiment and of a run, named by the package that knows every layer.

The core does not know of strategies, nor the server of runtimes; `umbel` names FedAvg and Simulation when it is
imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..parts.algorithms import Strategy
from ..parts.sampling import AllClients, FixedCohort

NAME = "experiment"
COHORT = 10  # clients a round, of a population that has more
_strategy: Callable[[], Strategy] | None = None
_runtime: Callable[[], Any] | None = None


def use(strategy: Callable[[], Strategy], runtime: Callable[[], Any]) -> None:
    """Name what makes a strategy, and a runtime, where none is given."""
    global _strategy, _runtime
    _strategy, _runtime = strategy, runtime


def default_strategy() -> Strategy:
    """The strategy of an experiment without one."""
    if _strategy is None:
        raise ConfigError("expected a strategy, such as FedAvg()")
    return _strategy()


def default_sampler(clients: int) -> FixedCohort | AllClients:
    """The sampler of an experiment without one: 10 clients a round, or all where there are no more."""
    return FixedCohort(COHORT) if clients > COHORT else AllClients()


def default_runtime() -> Any:
    """The runtime of a run without one."""
    if _runtime is None:
        raise ConfigError("expected a runtime, such as Simulation()")
    return _runtime()
