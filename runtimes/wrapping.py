"""A runtime around another: the common base of wrappers, so that each says only what it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from ..core.examples import Examples
from ..core.experiment import Experiment
from ..core.parts.private import SecureAggregation
from ..core.protocols import Memory
from ..core.reading.directions import Measures
from ..core.runtime import Arrival, Assignment, Opened, Runtime
from ..core.summation import Summation
from ..core.sums import ClientSum, Meeting, ServerSum
from ..core.types import NOTHING, ClientMetrics, Metrics, Value, Vector


class Wrapping:
    """A runtime with everything as `runtime` has it.

    Where a subclass has a member of its own, that is what it changes.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.is_live = runtime.is_live

    def open(self, experiment: Experiment, memory: Memory, choices: Mapping[str, str] | None = None) -> Opened:
        """Same as `Runtime.open`."""
        return self.runtime.open(experiment, memory, choices)

    @property
    def figures(self) -> Mapping[str, int]:
        """Same as `Runtime.figures`."""
        return self.runtime.figures

    def describe(self) -> Mapping[str, str]:
        """Same as `Runtime.describe`."""
        return self.runtime.describe()

    def measures(self) -> Measures:
        """Same as `Runtime.measures`."""
        return self.runtime.measures()

    def initial_params(self) -> Vector:
        """Same as `Runtime.initial_params`."""
        return self.runtime.initial_params()

    def client_ids(self) -> Sequence[int]:
        """Same as `Runtime.client_ids`."""
        return self.runtime.client_ids()

    def train(self, work: Iterable[Assignment | None], summation: Summation) -> Iterator[Arrival]:
        """Same as `Runtime.train`."""
        return self.runtime.train(work, summation)

    def hidden_sum(
        self, aggregation: SecureAggregation, meeting: Meeting, cohort: Sequence[int]
    ) -> tuple[ServerSum, Callable[[int], ClientSum] | None]:
        """Same as `Runtime.hidden_sum`."""
        return self.runtime.hidden_sum(aggregation, meeting, cohort)

    def ask(self, messages: Mapping[int, bytes], reply_bytes: int) -> Iterator[Arrival]:
        """Same as `Runtime.ask`."""
        return self.runtime.ask(messages, reply_bytes)

    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """Same as `Runtime.evaluate`."""
        return self.runtime.evaluate(params, examples)

    def results(self, step: Literal["train", "test"], metrics: Metrics) -> Mapping[str, Value]:
        """Same as `Runtime.results`."""
        return self.runtime.results(step, metrics)

    def evaluate_clients(self, params: Vector, clients: Sequence[int], extra: Vector = NOTHING) -> ClientMetrics:
        """Same as `Runtime.evaluate_clients`."""
        return self.runtime.evaluate_clients(params, clients, extra)

    def close(self) -> None:
        """Same as `Runtime.close`."""
        self.runtime.close()
