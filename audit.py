"""`umbel audit`: attacks on a run's experiment, and what they found beside what was claimed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .core.chain import Chain
from .core.errors import ConfigError
from .core.examples import Examples, leaves
from .core.experiment import Experiment, Local, is_asynchronous
from .core.random import Key, derive
from .core.sampling import AllClients, FixedCohort
from .core.types import Broadcast, Vector
from .data import Arrays, Iid, Partitioned
from .privacy import attacks
from .runtimes.canaries import WithCanaries
from .runtimes.simulation import Simulation
from .server import run
from .server.store import StoredRun

EXAMPLES = 1000  # of each kind, for membership inference
TWIN_EXAMPLES, TWIN_EPOCHS = 64, 200  # of the control's overfitted model
IMAGES = 3  # to reconstruct
CONTROL_ROUNDS = 20  # without protection: as many as show that canaries can be seen
ALIKE = 0.8  # a correlation at which a reconstruction has succeeded
CLEARED = 1e3  # times a clip norm: a canary's update is always clipped
UNPROTECTED = 5.0  # ε that canaries must show where nothing protects them, or they prove nothing


class Finding(NamedTuple):
    """What one attack found."""

    attack: str
    adversary: str  # who could mount it
    found: Mapping[str, float]
    control: Mapping[str, float]  # the same without protection: it has to succeed there
    verdict: str  # "holds", "exceeds the claim", "resisted", "succeeded", "inconclusive", "not applicable"
    why: str = ""


class Audit:
    """The attacks on one stored run, each from the experiment as it was run."""

    def __init__(self, experiment: Experiment, stored: StoredRun, canaries: int = 100, seed: int = 0):
        """canaries: clients added, and directions held out. seed: of the attacks' own randomness."""
        self.experiment, self.stored, self.canaries = experiment, stored, canaries
        self.key = derive(seed, "audit", stored.run)
        self.rounds = len(stored.records)
        if not self.rounds:
            raise ConfigError(f"run {stored.run} has no round yet: there is nothing to audit")
        plan = experiment.plan
        self.delta = plan.delta if plan is not None else 1 / (10 * len(experiment.population))
        self.claimed = None if plan is None else plan.spent(stored.ledger)

    def findings(self) -> Iterator[Finding]:
        """One attack after another, the slowest last."""
        yield self.inversion()
        yield self.membership()
        yield self.canary()

    def canary(self) -> Finding:
        """Train again with canaries, and see how far the model moved along them."""
        who = "whoever has the released model"
        if self.claimed is not None and self.experiment.local.per_example is not None:
            return Finding("canaries", who, {}, {}, "not applicable", "the plan protects examples, not clients")
        if is_asynchronous(self.experiment.strategy):
            return Finding("canaries", who, {}, {}, "not applicable", "asynchronous rounds have no cohorts to join")
        bare = unprotected(self.experiment)
        control = self._canaries(bare, min(self.rounds, CONTROL_ROUNDS), 1.0)
        claimed = self.claimed
        if claimed is None:
            found = self._canaries(self.experiment, self.rounds, 1.0)
            return Finding(
                "canaries", who, estimates(found), estimates(control), "succeeded" if found.lower else "resisted"
            )
        found = self._canaries(self.experiment, self.rounds, CLEARED)
        verdict = "holds" if found.lower <= claimed else "exceeds the claim"
        if control.epsilon < UNPROTECTED:
            verdict = "inconclusive"
        return Finding("canaries", who, estimates(found), estimates(control), verdict)

    def membership(self) -> Finding:
        """Guess by their losses which examples the final model was trained on."""
        who, test = "whoever has the released model", self.experiment.test_examples()
        if test is None:
            return Finding("membership", who, {}, {}, "not applicable", "the experiment has no test examples")
        inside = self._training_examples(EXAMPLES)
        params = self.stored.server_state.params
        found = self._membership(self.experiment, params, inside, some(test, EXAMPLES, self.key))
        twin_members = some(inside, TWIN_EXAMPLES, self.key)
        twin = run(overfitted(self.experiment, twin_members), Simulation(workers=1))
        others = some(test, TWIN_EXAMPLES, self.key)
        control = self._membership(self.experiment, twin.params, twin_members, others)
        if self.claimed is not None:
            verdict = "holds" if found.lower <= self.claimed else "exceeds the claim"
        else:
            verdict = "resisted" if found.lower == 0 else "succeeded"
        if control.auc < 0.6:
            verdict = "inconclusive"
        return Finding("membership", who, found._asdict(), control._asdict(), verdict)

    def inversion(self) -> Finding:
        """Reconstruct examples from what the server sees of clients that hold one each."""
        who, examples = "the server", self._training_examples(hiding(self.experiment.aggregation))
        inputs = list(leaves(examples.x))
        if len(inputs) != 1 or inputs[0].dtype.kind != "f" or examples.y is None:
            return Finding("inversion", who, {}, {}, "not applicable", "inputs are not one array of real numbers")
        hides = self.experiment.aggregation is not None
        found = self._inversion(self.experiment, examples, len(inputs[0]) if hides else 1)
        control = self._inversion(unprotected(self.experiment), examples, 1)
        verdict = "succeeded" if found >= ALIKE else "resisted"
        if control < ALIKE:
            verdict = "inconclusive"
        return Finding("inversion", who, {"correlation": found}, {"correlation": control}, verdict)

    def _canaries(self, experiment: Experiment, rounds: int, norm: float) -> attacks.CanaryEstimate:
        size = len(self.stored.server_state.params)

        def direction(number: int) -> Vector:
            return attacks.canary(self.key, number, size)

        playing = dataclasses.replace(
            experiment,
            rounds=rounds,
            evaluate_every=rounds,
            test=None,
            validation=None,
            callbacks=(),
            devices=None,  # canaries have none
            deadline=None,
        )
        simulation = Simulation()
        try:
            history = run(playing, WithCanaries(simulation, self.canaries, direction, norm))
            way = (history.params - simulation.initial_params()).astype(np.float64)
        finally:
            simulation.close()
        dots = np.array([float((direction(number) * way).sum()) for number in range(2 * self.canaries)])
        return attacks.canary_estimate(dots[: self.canaries], dots[self.canaries :], self.delta)

    def _membership(
        self, experiment: Experiment, params: Vector, inside: Examples, outside: Examples
    ) -> attacks.Membership:
        losses = [example_losses(experiment, params, examples) for examples in (inside, outside)]
        return attacks.membership(losses[0], losses[1], self.delta, self.key.derive("membership"))

    def _inversion(self, experiment: Experiment, examples: Examples, cohort: int) -> float:
        """The mean correlation of IMAGES examples with what is made of the server's view of a cohort they are in.

        Both without the average example: images of digits are alike, and a blend of ten correlates with each.
        """
        from .clients.inversion import invert
        from .clients.worker import Worker

        playing = one_each(experiment, examples)
        simulation, found = Simulation(workers=1), []
        try:
            spec = simulation.open(playing, Forgetful(), None)
            worker = Worker(playing)
            params, state = simulation.initial_params(), playing.transforms.init(spec)
            extra = playing.strategy.broadcast(playing.strategy.init(params))
            broadcast = Broadcast(1, params, extra, state, playing.local.learning_rate_at(1, ()))
            x = next(leaves(examples.x))
            bounds = np.full(x.shape[1:], x.min()), np.full(x.shape[1:], x.max())
            average = x.mean(0)  # what all examples have in common gives none of them away
            for image in range(IMAGES):
                key = self.key.derive("inversion", image)
                everyone = [(image + offset) % examples.count for offset in range(cohort)]
                total = simulation.collect(broadcast, sorted(everyone), key).total
                mine = playing.population.examples(image)
                target = next(leaves(mine.y))
                guess = invert(worker, params, total.delta / np.float32(total.weight), target, bounds, key)
                found.append(correlation(guess - average, next(leaves(mine.x))[0] - average))
        finally:
            simulation.close()
        return float(np.mean(found))

    def _training_examples(self, count: int) -> Examples:
        """About `count` of the clients' examples, from clients drawn at random."""
        population, generator = self.experiment.population, self.key.derive("members").generator()
        parts: list[Examples] = []
        for client in generator.permutation(len(population)):
            parts.append(population.examples(int(client)))
            if sum(part.count for part in parts) >= count:
                break
        return some(joined(parts), count, self.key)


def hiding(aggregation: Any) -> int:
    """How many clients a sum is of that an update is looked for in: 10, or as many as the aggregation allows."""
    least, most = getattr(aggregation, "minimum_clients", 0), getattr(aggregation, "clients", 10)
    return max(IMAGES, least, min(10, most))


class Forgetful:
    """Clients' memory for attacks, which play no second round."""

    def read(self, client: int) -> None:
        """Nothing is remembered."""

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Nothing is kept."""


def unprotected(experiment: Experiment) -> Experiment:
    """The experiment without plan, transforms and aggregation; cohorts as large as they are expected to be."""
    sampler = experiment.sampler
    if experiment.plan is not None:
        sampler = FixedCohort(max(1, round(getattr(sampler, "rate", 1.0) * len(experiment.population))))
    return dataclasses.replace(
        experiment,
        plan=None,
        transforms=Chain(),
        aggregation=None,
        sampler=sampler,
        local=dataclasses.replace(experiment.local, per_example=None),
        callbacks=(),
        min_clients=1,
    )


def one_each(experiment: Experiment, examples: Examples) -> Experiment:
    """The experiment with as many clients as examples, each of which takes one step on its own example."""
    local = dataclasses.replace(experiment.local, epochs=1, batch_size=None)
    return dataclasses.replace(
        experiment,
        plan=None,
        transforms=experiment.transforms,
        sampler=AllClients(),
        population=Partitioned(Arrays(*examples), by=Iid(), clients=examples.count),
        local=local,
        validation=None,
        weighting="uniform",
    )


def overfitted(experiment: Experiment, examples: Examples) -> Experiment:
    """A control for membership inference: the model, trained by one client until it knows its examples by heart."""
    local = Local(epochs=TWIN_EPOCHS, batch_size=8, learning_rate=experiment.local.learning_rate_at(1, ()))
    return dataclasses.replace(
        unprotected(experiment),
        population=Partitioned(Arrays(*examples), by=Iid(), clients=1),
        sampler=AllClients(),
        local=local,
        rounds=1,
        test=None,
        validation=None,
    )


def example_losses(experiment: Experiment, params: Vector, examples: Examples) -> np.ndarray:
    """The loss of each example alone, in no particular order."""
    alone = Partitioned(Arrays(*examples), by=Iid(), clients=examples.count)
    simulation = Simulation(workers=1, compile="graph")
    try:
        simulation.open(dataclasses.replace(unprotected(experiment), population=alone, validation=alone), Forgetful())
        return simulation.evaluate_clients(params, range(examples.count)).per_client["loss"]
    finally:
        simulation.close()


def some(examples: Examples, count: int, key: Key) -> Examples:
    """At most `count` of the examples, at random."""
    rows = key.derive("some").generator().permutation(examples.count)[:count]
    return examples.take(rows)


def joined(parts: list[Examples]) -> Examples:
    """All of the examples in one. They are single arrays, or structures of them, alike in every part."""

    def join(*arrays: Any) -> Any:
        first = arrays[0]
        if first is None:
            return None
        if isinstance(first, dict):
            return {name: join(*(array[name] for array in arrays)) for name in first}
        if isinstance(first, (list, tuple)):
            return type(first)(join(*members) for members in zip(*arrays, strict=True))
        return np.concatenate(arrays)

    return Examples(*(join(*column) for column in zip(*parts, strict=True)))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, of all numbers; 0 where one of them is constant."""
    a, b = (array.astype(np.float64).ravel() - array.mean() for array in (one, other))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def estimates(found: attacks.CanaryEstimate) -> dict[str, float]:
    """The estimate's figures by name."""
    return {"epsilon": found.epsilon, "epsilon_at_least": found.lower, "signal": found.signal}
