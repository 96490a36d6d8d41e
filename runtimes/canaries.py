"""WithCanaries: a runtime with additional clients whose updates are known in advance, to see if training shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.protocols import Memory
from ..core.recipe import Recipe, extra_size
from ..core.runtime import WAIT, Arrival, Assignment, Opened, Runtime, bytes_of
from ..core.summation import Summation
from ..core.traits import Trait
from ..core.types import ClientUpdate, Vector
from .wrapping import Wrapping

Direction = Callable[[int], Vector]  # canary's number ↦ direction of its update: unit norm, shape (d,)


class WithCanaries(Wrapping):
    """The clients of `runtime`, then `count` canaries, sampled, transformed and summed as they are.

    A canary's update is its direction times `norm`, whatever it receives. It is transformed (clipped, noised) as every
    update, but travels without a codec.
    """

    def __init__(self, runtime: Runtime, count: int, direction: Direction, norm: float):
        super().__init__(runtime)
        self.count, self.direction, self.norm = count, direction, norm
        self._experiment: Recipe | None = None

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Bind the runtime to experiment, without its plan and its hidden sum.

        Errors: ConfigError for an aggregator that is no sum.
        """
        if Trait.EACH_UPDATE in (aggregator := experiment.resolved.aggregator).needs:
            raise ConfigError(f"canaries need an aggregator that sums; {aggregator!r} does not")
        self._experiment = experiment.resolved
        # Summed in the open: secure aggregation, of whichever clients were sampled beside canaries, could refuse them
        # for being too few, and changes no sum beyond rounding.
        inside = dataclasses.replace(experiment.filled_in, plan=None, secure_aggregation=None)
        return self.runtime.open(inside, memory, choices)

    def client_ids(self) -> Sequence[int]:
        """Return the clients, then the canaries."""
        return range(len(self.runtime.client_ids()) + self.count)

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Yield the clients' arrivals; those of canaries after them, once the work is done."""
        clients = len(self.runtime.client_ids())
        canaries: list[Assignment] = []

        def others() -> Iterator[Assignment | None]:
            for assignment in work:
                if assignment is WAIT or assignment.client < clients:
                    yield assignment
                else:
                    canaries.append(assignment)

        # A run of clients that is not full cannot be followed by canaries.
        yield from self.runtime.train(others(), dataclasses.replace(summation, subtotals=False))
        for assignment in canaries:
            update = self._update(assignment, assignment.client - clients)
            down = bytes_of(assignment.broadcast)
            yield Arrival((assignment.client,), update, {}, bytes_of(update), down)

    def _update(self, assignment: Assignment, number: int) -> ClientUpdate:
        experiment, broadcast = self._experiment, assignment.broadcast
        assert experiment is not None
        extra = np.zeros(extra_size(experiment.rule, len(broadcast.params)), np.float32)
        weight = 1.0
        if experiment.weighting == "examples":
            weight = float(experiment.population.sizes().mean())
        update = ClientUpdate(self.direction(number) * np.float32(self.norm), extra, weight, {})
        return experiment.transforms.encode(broadcast.transforms, update, assignment.key.derive("canary", number))
