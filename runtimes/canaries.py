"""WithCanaries: a runtime with clients more whose updates are known in advance, to see whether training shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..core.clusters import fold_of
from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.experiment import Experiment, extra_size
from ..core.folds import add_scaled
from ..core.protocols import Memory, Runtime
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.types import Broadcast, ClientMetrics, ClientUpdate, Metrics, RoundResult, Total, Vector

Direction = Callable[[int], Vector]  # of a canary's update, by its number: unit norm, shape (d,)


class WithCanaries:
    """The clients of `runtime`, then `count` canaries, sampled, transformed and summed as they are.

    A canary's update is its direction times `norm`, whatever it receives. It is transformed (clipped, noised) as every
    update; that it is added to the sum after it was formed changes no sum beyond rounding.
    """

    def __init__(self, runtime: Runtime, count: int, direction: Direction, norm: float):
        self.is_live = runtime.is_live
        self.runtime, self.count, self.direction, self.norm = runtime, count, direction, norm
        self._experiment: Experiment | None = None

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> ModelSpec:
        """Errors: IncompatibleError for a fold that is no sum."""
        if (fold := fold_of(experiment)).needs_individual_updates:
            raise ConfigError(f"canaries need a fold that sums; {fold!r} does not")
        self._experiment = experiment
        # Summed in the open: secure aggregation, of whichever clients were sampled beside canaries, could refuse them
        # for being too few, and changes no sum beyond rounding.
        return self.runtime.open(dataclasses.replace(experiment, plan=None, aggregation=None), memory, choices)

    def describe(self) -> Mapping[str, str]:
        """As the runtime inside."""
        return self.runtime.describe()

    def initial_params(self) -> Vector:
        """As the runtime inside."""
        return self.runtime.initial_params()

    def client_ids(self) -> Sequence[int]:
        """The clients, then the canaries."""
        return range(len(self.runtime.client_ids()) + self.count)

    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """The clients' sum, and on it the canaries that were sampled."""
        clients = len(self.runtime.client_ids())
        present = [client - clients for client in cohort if client >= clients]
        result = self.runtime.collect(broadcast, [client for client in cohort if client < clients], key)
        if not present:
            return result
        total = result.total
        for number in present:
            total = self._added(total, broadcast, number, key.derive("canary", number))
        return result._replace(total=total)

    def _added(self, total: Total, broadcast: Broadcast, number: int, key: Key) -> Total:
        experiment = self._experiment
        assert experiment is not None
        extra = np.zeros(extra_size(experiment.client_rule, len(broadcast.params)), np.float32)
        weight = 1.0
        if experiment.weighting == "examples":
            weight = float(experiment.population.sizes().mean())
        update = ClientUpdate(self.direction(number) * np.float32(self.norm), extra, weight, {})
        encoded = experiment.transforms.encode(broadcast.transforms, update, key)
        own = total.extra if len(total.extra) == len(encoded.extra) else np.zeros_like(encoded.extra)
        add_scaled(total.delta, encoded.delta, encoded.weight)
        add_scaled(own, encoded.extra, encoded.weight)
        return total._replace(extra=own, weight=total.weight + encoded.weight, clients=total.clients + 1)

    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """As the runtime inside."""
        return self.runtime.evaluate(params, examples)

    def evaluate_clients(self, params: Vector, clients: Sequence[int]) -> ClientMetrics:
        """As the runtime inside; canaries hold no examples."""
        return self.runtime.evaluate_clients(params, clients)

    def close(self) -> None:
        """Close the runtime inside."""
        self.runtime.close()
