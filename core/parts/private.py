"""Privacy of clients and examples: plans, noise on examples, and sums that hide what they are of."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..bases import Part, Population, Sampler, UpdateTransform
from ..errors import ConfigError
from ..random import Key
from ..sums import ClientSum, Joins, Meeting, ServerSum
from ..traits import Trait
from ..types import Vector

PLAN_NEEDS = Trait.COHORTS | Trait.INDEPENDENT_CLIENTS | Trait.ONLY_UPDATES


class SecureAggregation(Part):
    """A way of summing a cohort's updates that hides each of them: secure aggregation, homomorphic encryption."""

    @property
    def needs(self) -> Trait:
        """Cohorts of clients that send updates which can be summed, and nothing else."""
        return Trait.COHORTS | Trait.SUMMABLE | Trait.ONLY_UPDATES

    @property
    def hides(self) -> Trait:
        """Each client's update and loss."""
        return Trait.EACH_UPDATE | Trait.EACH_LOSS

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the clients' metrics that travel in the sum; the others stay with the clients."""
        return ()

    def check_joins(self, joins: Joins) -> None:
        """Raise ConfigError for a metric whose state the sum does not take: one that is more than a mean.

        joins: how the states of the metrics that the model measures in training join, by name.
        """
        for name in self.metrics:
            if joins.get(name):
                means = ", ".join(repr(other) for other, runs in joins.items() if not runs)
                raise ConfigError(
                    f"metrics has {name!r}, whose state is more than the mean that travels in a hidden sum; those that "
                    f"are means: {means}"
                )

    @property
    def step(self) -> float | None:
        """Bound on how far rounding may move a number; None where it does not say, which no plan takes."""
        return None

    @property
    def magnitude_limit(self) -> float:
        """Largest magnitude kept of a number; infinite where there is no bound."""
        return float("inf")

    @property
    def cohort_bounds(self) -> tuple[int, int | None]:
        """The fewest clients of which a sum is revealed, and the most that can be in one; None: no bound."""
        return 1, None

    @property
    def clients_decrypt(self) -> bool:
        """Return whether some clients see a round's sum before anything is done to it."""
        return False

    @property
    def tells_cohort(self) -> bool:
        """Return whether a client learns who else takes part in a round."""
        return True

    def prepare(self) -> None:
        """Load what a first round would otherwise wait for."""

    @abc.abstractmethod
    def rehearse(
        self, meeting: Meeting, cohort: Sequence[int], is_real: bool
    ) -> tuple[ServerSum, Callable[[int], ClientSum]]:
        """Return the server's half of a round's sum in one process, and the function that makes a client's half.

        is_real: every stage of the protocol, keys and masks and all; else its arithmetic alone, which gives the same
        integers. Errors: RunStopped for a cohort that is too small.
        """


class RemoteAggregation(SecureAggregation):
    """A SecureAggregation whose parties are real devices. kit: folder with what a party proves itself by."""

    @abc.abstractmethod
    def server(self, meeting: Meeting, cohort: Sequence[int], kit: Path) -> ServerSum:
        """Return the server's half.

        Errors: ConfigError for a kit that lacks something; RunStopped for a cohort too small.
        """

    @abc.abstractmethod
    def client(self, meeting: Meeting, client: int, kit: Path, home: Path) -> ClientSum:
        """Return a client's half.

        home: folder where this client remembers what it took part in. Errors: ConfigError for a kit that lacks
        something; RunStopped for a cohort that is too small.
        """

    @abc.abstractmethod
    def provision(self, server: Path, clients: Mapping[int, Path]) -> None:
        """Complete the kits of a federation whose every party is set up from here: keys that they share or list."""


class PerExamplePrivacy(Part):
    """Keeps single examples private while a client trains (DP-SGD).

    A step's gradient: each example's clipped to clip_norm, their sum plus noise, over the expected batch.
    """

    if TYPE_CHECKING:  # a field of the leaves, in whose way a property would be

        @property
        def clip_norm(self) -> float:
            """Largest L2 norm of one example's gradient, all trainable variables together; > 0."""

    @property
    def needs(self) -> Trait:
        """One training of all variables, by clients that send what comes of it and nothing else."""
        return Trait.ONE_TRAINING | Trait.ONLY_UPDATES

    @property
    def hides(self) -> Trait:
        """Losses: clients report none."""
        return Trait.EACH_LOSS

    @property
    def steps(self) -> int | None:
        """Optimizer steps of every client in every round; None: as many as its epochs have batches."""
        return None

    @abc.abstractmethod
    def noise(self, key: Key, expected_batch: float) -> Callable[[Vector], None]:
        """Return a function that overwrites a float32 vector with the noise's next numbers, divided by expected_batch.

        key: key of one client's round, for the noise alone.
        """

    def grid_step(self, expected_batch: float) -> float:
        """The step of the grid that a sum with its noise is rounded to, a power of two; 0 for no grid.

        What it is rounded to must depend on the noise alone: a float32 sum tells by its low bits what is in it.
        """
        return 0.0


class Training(Protocol):
    """The part of a client's training that a plan looks at."""

    @property
    def per_example(self) -> PerExamplePrivacy | None: ...
    @property
    def batch_size(self) -> int | None: ...


class Protected(Protocol):
    """The part of an experiment that a plan looks at, to see whether it would keep what the plan promises."""

    @property
    def population(self) -> Population: ...
    @property
    def sampler(self) -> Sampler: ...
    @property
    def local(self) -> Training: ...
    @property
    def transforms(self) -> UpdateTransform: ...
    @property
    def secure_aggregation(self) -> SecureAggregation | None: ...
    @property
    def weighting(self) -> str: ...
    @property
    def min_clients(self) -> int: ...


class Plan(Part):
    """A privacy budget, and what keeps it: sampler, transform and event made from one set of numbers."""

    if TYPE_CHECKING:  # fields of some plans, in whose way a property would be

        @property
        def epsilon(self) -> float: ...
        @property
        def delta(self) -> float: ...
        @property
        def population(self) -> int: ...
        @property
        def sampler(self) -> Sampler: ...

    @property
    def promised_epsilon(self) -> float:
        """Budget ε of the plan; infinite for a plan that does not say."""
        return float("inf")

    @property
    @abc.abstractmethod
    def transform(self) -> UpdateTransform:
        """The transform that bounds an update and makes it private, last among the transforms."""

    @property
    @abc.abstractmethod
    def clients_release(self) -> bool:
        """Say whether clients send noisy updates, which are released as they are sent; False for noise on the sum."""

    @property
    def per_example(self) -> PerExamplePrivacy | None:
        """The privacy of clients' single training steps, for a plan of single examples; else None."""
        return None

    @property
    def calibrated_noise(self) -> float:
        """The noise multiplier, found now if it was not yet; 0 for a plan that does not say."""
        return 0.0

    @property
    def fixed_clip_norm(self) -> float | None:
        """The norm that an update is clipped to; None for a plan that clips in another way."""
        return None

    def check_client(self, examples: int) -> None:
        """Raise ConfigError for a client that holds fewer examples than the price reckons with; asked on the client."""

    def deviation(self, clients: int) -> float:
        """Return the standard deviation of the noise on each number of a sum over `clients` clients; else infinite."""
        return float("inf")

    @property
    def drawn_from(self) -> int:
        """Least number of clients to draw a cohort from; 0 for a plan that does not draw a fixed cohort."""
        return 0

    @property
    def needs(self) -> Trait:
        """Cohorts of clients that are counted each on its own and send nothing but updates; and plain sums."""
        return PLAN_NEEDS | Trait.PLAIN_SUM

    @property
    def hides(self) -> Trait:
        """Losses and metrics that single clients report."""
        return Trait.EACH_LOSS | Trait.CLIENT_METRICS

    @property
    def covers(self) -> Trait:
        """Traits that other parts need, and need no longer under this plan."""
        return Trait.NONE

    @abc.abstractmethod
    def charge(self, ledger: Mapping[str, int]) -> dict[str, int]:
        """Return the ledger with one more round in it."""

    @abc.abstractmethod
    def spent(self, ledger: Mapping[str, int]) -> float:
        """Return ε of everything in the ledger, at the plan's δ. Fast when the ledger grows round by round."""

    @abc.abstractmethod
    def check(self, experiment: Protected) -> None:
        """Raise ConfigError or IncompatibleError for an experiment that would not keep what the plan promises."""

    @abc.abstractmethod
    def check_budget(self, ledger: Mapping[str, int]) -> None:
        """Raise RunStopped when the ledger, with a round that has not begun yet, is over the budget."""
