"""Differential privacy of single examples: DP-SGD inside each client.

    plan = PerExamplePlan(epsilon=4.0, delta=1e-5, rounds=50, population=100,
                          clip_norm=1.0, batch_size=32, smallest_client=600, steps=19)
    Experiment(..., local=Local(batch_size=32, learning_rate=0.1), plan=plan)      # the plan brings local.per_example

Source: Abadi et al. 2016: Deep Learning with Differential Privacy. https://arxiv.org/abs/1607.00133
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import SupportsFloat

import numpy as np

from ..core.bases import Sampler, UpdateTransform
from ..core.errors import IncompatibleError
from ..core.parts.private import PLAN_NEEDS, PerExamplePrivacy, Protected
from ..core.parts.sampling import AllClients
from ..core.random import Key
from ..core.spec import ModelSpec
from ..core.types import ClientUpdate, State, Total, Vector
from ..core.validation import fields_of, require, require_count, require_real
from . import accounting, budget
from .events import Gaussian, require_noise
from .noise import PAIRS, NoiseWorkspace, grid_step, keystream_of, require_scale


@dataclass(frozen=True)
class PerExample(PerExamplePrivacy):
    """Each step of a client clips every example's gradient to clip_norm, and adds N(0, (noise_multiplier·clip_norm)²).

    All trainable variables count together, those that stay at home included: what a client sends depends on them. A
    step's batch is a Poisson one, of expected size batch_size, by which the noisy sum is divided whatever its size.
    Training metrics are left out; an example whose gradient is not finite adds nothing to its step.

    The noise is an AES-128-CTR keystream made normal (`noise`), a new key for every client's round: in
    simulation it follows from the seed, on a real device from the operating system's entropy. Nothing subtracts it
    without that key, which could not be said of TensorFlow's Philox; and it takes a tenth of that one's time on a CPU.

    Parameters
    ----------
    noise_multiplier
        A number, 0 for clipping alone; or what turns into one when first needed, a plan's calibration.
    steps
        The number of every client in every round; None: as many as its epochs have batches.
    """

    clip_norm: float
    noise_multiplier: float | SupportsFloat
    steps: int | None = None

    def __post_init__(self) -> None:
        require_real("clip_norm", self.clip_norm, above=0)
        if self.noise_multiplier != 0:
            require_noise(self.noise_multiplier)
        if self.steps is not None:
            require_count("steps", self.steps)

    def noise(self, key: Key, expected_batch: float) -> Callable[[Vector], None]:
        """Return a function that overwrites a vector with the next numbers of the noise, over expected_batch.

        key: source of this noise alone.
        """
        scale = self._scale(expected_batch)
        require_scale(scale)
        keystream, work = keystream_of(key.derive("per-example noise").digest), NoiseWorkspace(PAIRS)

        def fill(noise: Vector) -> None:
            for start in range(0, len(noise) if scale else 0, 2 * PAIRS):
                work.fill(noise[start : start + 2 * PAIRS], scale, keystream)
            if not scale:
                noise[:] = 0

        return fill

    def grid_step(self, expected_batch: float) -> float:
        """Return the step of the noise's grid: 2⁻²⁰ of the noise's scale, or more; 0 without noise."""
        scale = self._scale(expected_batch)
        return grid_step(scale) if scale else 0.0

    def _scale(self, expected_batch: float) -> float:
        """Return the noise's standard deviation in each number of the mean."""
        return float(self.noise_multiplier) * self.clip_norm / expected_batch


@dataclass(frozen=True)
class NoMetrics(UpdateTransform):
    """Transform that keeps metrics with the client: what it sends is private already, and nothing is left to do."""

    def init(self, spec: ModelSpec) -> State:
        """Return (): there is no state."""
        return ()

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Return the update without metrics."""
        return update._replace(metrics={})

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Return the sum as it is. A sum of nobody is 0, and so is its mean: nothing was released."""
        return state, total._replace(weight=total.weight if total.clients else 1.0, metrics={})


@dataclass(frozen=True, kw_only=True)
class PerExamplePlan(budget.BudgetPlan):
    """Differential privacy of each example, towards whoever sees what clients send, the server included.

    ε is of one example, not of a client, and holds for every client: an example lies with one of them, so that their
    releases compose in parallel, and the dearest client counts, the smallest: it takes each of its examples with the
    highest probability. It is taken to be in all rounds; sampling clients amplifies nothing, since the server sees who
    sends. Neighbours: an example takes part or does not (add or remove one). How many examples a client has is public,
    and with it the probability, the divisor and the number of steps.

    Parameters
    ----------
    rounds
        The number that the budget is to last. The budget, not this, ends a run: fewer cost less.
    population
        Number of clients.
    sampler
        Who takes part in a round; any will do.
    clip_norm
        The largest norm of one example's gradient.
    batch_size
        Expected, that of `local`.
    smallest_client
        A lower bound on the number of examples of a client that has any.
    steps
        The number of every client in every round, in place of epochs.
    noise_multiplier
        The standard deviation of the noise over the clip norm; None: calibrated to the budget when first needed.

    Raises
    ------
    ConfigError
        For a value out of bounds; for a budget that no noise keeps when the noise is calibrated.
    """

    epsilon: float
    delta: float
    rounds: int
    population: int
    clip_norm: float
    batch_size: int
    smallest_client: int
    steps: int
    noise_multiplier: float | None = None
    sampler: Sampler = field(default_factory=AllClients)

    clients_release = True
    needs = PLAN_NEEDS  # any aggregator will do: what a client sends is private already

    def __post_init__(self) -> None:
        for name, count in fields_of(self, "batch_size", "smallest_client", "steps").items():
            require_count(name, count)
        budget.check_numbers(self)
        accounting.require_delta(self.delta, self.smallest_client)
        _ = self.per_example  # checks the rest

    @property
    def sampling_rate(self) -> float:
        """Probability that a batch has an example of the smallest client; no other client's is higher."""
        return min(1.0, self.batch_size / self.smallest_client)

    @property
    def releases_per_round(self) -> int:
        """Number of releases of a client in a round: one a step."""
        return self.steps

    @property
    def unit(self) -> str:
        """Unit of the budget: each example."""
        return "example"

    @property
    def per_example(self) -> PerExample:
        """Clipping and noise of each step that clients take."""
        return PerExample(self.clip_norm, budget.noise_of(self), self.steps)

    @property
    def transform(self) -> NoMetrics:
        """Transform of an update once it is private."""
        return NoMetrics()

    @property
    def round_event(self) -> Gaussian:
        """Event that one step of the smallest client releases; a round has `steps` of them."""
        return Gaussian(float(budget.noise_of(self)), self.sampling_rate)

    def find_noise(self) -> float:
        """Compute the noise multiplier with which `rounds` rounds cost epsilon."""
        return accounting.calibrate(self.epsilon, self.delta, self.rounds * self.steps, self.sampling_rate)

    def check_client(self, examples: int) -> None:
        """Raise ConfigError for a client that holds fewer examples than the price reckons with; asked on the client.

        On real devices nobody else knows how many it holds. Their number is public, so that a refusal tells no more.
        """
        require(
            not 0 < examples < self.smallest_client,
            f"this client holds {examples} examples, and plan.smallest_client={self.smallest_client}, by which ε is "
            "reckoned: each of them would be in a batch more often than it pays for",
        )

    def check(self, experiment: Protected) -> None:
        """Raise ConfigError or IncompatibleError for an experiment that would not keep what the plan promises."""
        local, own = experiment.local, self.per_example
        if local.per_example != own:
            raise IncompatibleError(
                f"local.per_example={local.per_example!r} is not the plan's; leave it out, and the plan brings its own"
            )
        require(
            local.batch_size == self.batch_size,
            f"expected local.batch_size={local.batch_size!r} to be the plan's batch_size={self.batch_size}",
        )
        sizes = np.asarray(experiment.population.sizes())
        smallest = int(sizes[sizes > 0].min(initial=np.iinfo(np.int64).max))
        require(
            smallest >= self.smallest_client,
            f"expected plan.smallest_client={self.smallest_client} ≤ {smallest}, the examples of the smallest client",
        )
        clients = len(experiment.population)
        require(
            clients == self.population,
            f"expected plan.population={self.population} to be the {clients} clients there are",
        )
        require(
            experiment.weighting == "uniform",
            f"expected weighting={experiment.weighting!r} to be 'uniform' under a plan",
        )
        budget.check_metrics(experiment.secure_aggregation)
