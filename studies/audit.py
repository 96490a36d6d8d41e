"""`umbel audit`: attacks on a run's experiment, and what they found beside what was claimed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples, leaves
from ..core.experiment import Experiment
from ..core.parts.algorithms import AsynchronousStrategy
from ..core.parts.chain import Chain
from ..core.parts.local import Local
from ..core.parts.private import SecureAggregation
from ..core.parts.sampling import AllClients, FixedCohort
from ..core.random import Key, derive
from ..core.reading.compatible import delta_of, spent
from ..core.runtime import FORGETFUL
from ..core.system.backend import require_tensorflow
from ..core.types import Broadcast, ServerState, Vector
from ..data import Arrays, Iid, Partitioned
from ..privacy import attacks
from ..runtimes.canaries import WithCanaries
from ..runtimes.simulation import Simulation
from ..server import run
from ..server.rounds import RoundSetup, collected
from ..server.store import StoredRun
from . import promises
from .promises import ALIKE, correlation

EXAMPLES = 1000  # examples of each kind, for membership inference
TWIN_EXAMPLES, TWIN_EPOCHS = 64, 200  # examples and epochs of the control's overfitted model
IMAGES = 3  # number of images to reconstruct
CONTROL_ROUNDS = 20  # rounds without protection: as many as show that canaries can be seen
CLEARED = 1e3  # norm of a canary, in clip norms: its update is always clipped
UNPROTECTED = 5.0  # ε that canaries must show where nothing protects them, or they prove nothing


class Finding(NamedTuple):
    """Result of one attack."""

    attack: str
    adversary: str  # party that could mount the attack
    found: Mapping[str, float]  # figures that the attack came to, by name
    control: Mapping[str, float]  # figures without protection, where the attack has to succeed
    # "holds", "exceeds the claim", "resisted", "breaks the promise", "succeeded", "inconclusive" or "not applicable"
    verdict: str
    why: str = ""  # reason why the attack is not applicable


class Audit:
    """Attacks on one stored run, each from the experiment as it was run."""

    def __init__(self, experiment: Experiment, stored: StoredRun, canaries: int = 100, seed: int = 0):
        """Prepare attacks with `canaries` clients added and as many directions held out. seed: of their randomness."""
        self.experiment, self.stored, self.canaries = experiment, stored, canaries
        require_tensorflow("An audit trains, and inverts gradients,")
        self.key = derive(seed, "audit", stored.run)
        self.rounds = len(stored.records)
        if not self.rounds:
            raise ConfigError(f"run {stored.run} has no round yet: there is nothing to audit")
        self.delta = delta_of(experiment.resolved) or 1 / (10 * len(experiment.population))
        self.claimed = spent(experiment.resolved, stored.ledger)

    def findings(self) -> Iterator[Finding]:
        """Mount one attack after another, the slowest last."""
        yield from self.promised()
        yield self.inversion()
        yield self.membership()
        yield self.canary()

    def promised(self) -> Iterator[Finding]:
        """Attack each promise that a run makes besides its ε, or for its sake."""
        experiment, key = self.experiment, self.key.derive("promises")
        bare, size = unprotected(experiment), len(self.stored.server_state.params)
        attacked = {
            ("failure oracle", "the server"): promises.failure_oracle(experiment, bare, key),
            ("repeated rounds", "the server"): promises.repeated_rounds(experiment, key),
            ("low bits", "whoever sees what is noisy"): promises.low_bits(experiment, size, key),
            ("decrypting clients", "three clients"): promises.decrypting_clients(experiment, key),
            ("roll of three", "the server with two clients"): promises.roll_of_three(experiment, key),
        }
        for (attack, who), (found, control, is_kept, is_shown, why_not) in attacked.items():
            verdict = "resisted" if is_kept else "breaks the promise"
            if not is_shown:
                verdict = "inconclusive"
            yield Finding(attack, who, found, control, "not applicable" if why_not else verdict, why_not)

    def canary(self) -> Finding:
        """Train again with canaries, and see how far the model moved along them."""
        who = "whoever has the released model"
        if self.claimed is not None and self.experiment.resolved.local.per_example is not None:
            return Finding("canaries", who, {}, {}, "not applicable", "the plan protects examples, not clients")
        if isinstance(self.experiment.resolved.strategy, AsynchronousStrategy):
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
        who, test = "whoever has the released model", self.experiment.resolved.test_examples()
        if test is None:
            return Finding("membership", who, {}, {}, "not applicable", "the experiment has no test examples")
        inside = self._training_examples(EXAMPLES)
        params = self.stored.server_state.params
        found = self._membership(self.experiment, params, inside, some(test, EXAMPLES, self.key))
        twin_members = some(inside, TWIN_EXAMPLES, self.key)
        twin = run(overfitted(self.experiment, twin_members), Simulation(workers=1), watchers=())
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
        who, examples = "the server", self._training_examples(hiding(self.experiment.secure_aggregation))
        inputs = list(leaves(examples.x))
        if len(inputs) != 1 or inputs[0].dtype.kind != "f" or examples.y is None:
            return Finding("inversion", who, {}, {}, "not applicable", "inputs are not one array of real numbers")
        hides = self.experiment.secure_aggregation is not None
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
            history = run(playing, WithCanaries(simulation, self.canaries, direction, norm), watchers=())
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
        """Compute the mean correlation of IMAGES examples with what is made of the server's view of their cohort.

        Both are taken without the average example: images of digits are alike, and a blend of ten correlates with each.
        """
        from ..clients.tensorflow.engine import TensorFlowEngine
        from ..clients.tensorflow.inversion import invert

        playing = one_each(experiment, examples)
        simulation, found = Simulation(workers=1), []
        try:
            table = RoundSetup(playing.resolved, simulation, simulation.open(playing, FORGETFUL), FORGETFUL)
            engine = TensorFlowEngine(playing)
            params = simulation.initial_params()
            own, transforms = playing.resolved.strategy.init(params), playing.transforms.init(table.opened.spec)
            state = ServerState(0, params, own, transforms, {})
            rate = playing.local.learning_rate_at(1, ())
            broadcast = Broadcast(1, params, playing.resolved.strategy.broadcast(own), transforms, rate)
            x = next(leaves(examples.x))
            bounds = np.full(x.shape[1:], x.min()), np.full(x.shape[1:], x.max())
            average = x.mean(0)  # what all examples have in common gives none of them away
            for image in range(IMAGES):
                key = self.key.derive("inversion", image)
                everyone = [(image + offset) % examples.count for offset in range(cohort)]
                total = collected(table, state, broadcast, sorted(everyone), key).total
                mine = playing.population.examples(image)
                target = next(leaves(mine.y))
                guess = invert(engine, params, total.delta / np.float32(total.weight), target, bounds, key)
                found.append(correlation(guess - average, next(leaves(mine.x))[0] - average))
        finally:
            simulation.close()
        return float(np.mean(found))

    def _training_examples(self, count: int) -> Examples:
        """Collect about `count` of the clients' examples, from clients drawn at random."""
        population, generator = self.experiment.population, self.key.derive("members").generator()
        parts: list[Examples] = []
        for client in generator.permutation(len(population)):
            parts.append(population.examples(int(client)))
            if sum(part.count for part in parts) >= count:
                break
        return some(joined(parts), count, self.key)


def hiding(aggregation: SecureAggregation | None) -> int:
    """Return the number of clients in a sum that an update is looked for in.

    It is 10, or as many as the aggregation allows.
    """
    least, most = (1, None) if aggregation is None else aggregation.cohort_bounds
    return max(IMAGES, least, min(10, most or 10))


def unprotected(experiment: Experiment) -> Experiment:
    """Return the experiment without plan, transforms and aggregation, in cohorts of the size that is expected."""
    sampler, clients = experiment.resolved.sampler, len(experiment.population)
    if experiment.plan is not None:
        sampler = FixedCohort(max(1, round(sampler.expected_cohort(clients))))
    return dataclasses.replace(
        experiment.filled_in,
        plan=None,
        transforms=Chain(),
        secure_aggregation=None,
        sampler=sampler,
        local=dataclasses.replace(experiment.local, per_example=None),
        callbacks=(),
        min_clients=1,
    )


def one_each(experiment: Experiment, examples: Examples) -> Experiment:
    """Return the experiment with as many clients as examples, each of which takes one step on its own example."""
    local = dataclasses.replace(experiment.local, epochs=1, batch_size=None)
    return dataclasses.replace(
        experiment.filled_in,
        plan=None,
        sampler=AllClients(),
        population=Partitioned(Arrays(*examples), by=Iid(), clients=examples.count),
        local=local,
        validation=None,
        weighting="uniform",
        reweighting=None,
    )


def overfitted(experiment: Experiment, examples: Examples) -> Experiment:
    """Make a control for membership inference: one client trains the model until it knows its examples by heart."""
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
    """Compute the loss of each example alone, in no particular order."""
    alone = Partitioned(Arrays(*examples), by=Iid(), clients=examples.count)
    simulation = Simulation(workers=1, compile="graph")
    try:
        simulation.open(dataclasses.replace(unprotected(experiment), population=alone, validation=alone), FORGETFUL)
        return simulation.evaluate_clients(params, range(examples.count)).per_client["loss"]
    finally:
        simulation.close()


def some(examples: Examples, count: int, key: Key) -> Examples:
    """Draw at most `count` of the examples, at random."""
    rows = key.derive("some").generator().permutation(examples.count)[:count]
    return examples.take(rows)


def joined(parts: list[Examples]) -> Examples:
    """Join all of the examples into one. They are single arrays, or structures of them, alike in every part."""

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


def estimates(found: attacks.CanaryEstimate) -> dict[str, float]:
    """Return the estimate's figures by name."""
    return {"epsilon": found.epsilon, "epsilon_at_least": found.lower, "signal": found.signal}
