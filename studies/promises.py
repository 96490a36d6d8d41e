"""Attacks on an experiment's promises besides its ε, each with the same attack where nothing protects.

They need no training again: a client's one reply, an account, the noise on one vector, one secure sum.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.examples import Examples, leaves, map_arrays
from ..core.experiment import Experiment
from ..core.parts.algorithms import SplitStrategy
from ..core.parts.discretion import is_discreet
from ..core.parts.private import Plan, RemoteAggregation
from ..core.parts.sampling import least_cohort
from ..core.random import Key
from ..core.reading.compatible import price_of
from ..core.runtime import bytes_of
from ..core.spec import ModelSpec, VariableSpec
from ..core.sums import Meeting
from ..core.types import NOTHING, Broadcast, ClientUpdate, Failure, Shape, Total, Vector
from ..privacy.noise import NoiseStream
from ..privacy.secure_sum import SecureSum

POISON = 3e30  # an input under which a model's numbers overflow
TIMES = 10  # replies that a server asks for, as a multiple of those that were agreed to
CHARGES = 20  # number of charges in which a budget's rounds are asked for: fewer looks into a ledger
TRIALS = 20  # trials of low bits, in either world
COORDINATES = 200_000  # coordinates of the vectors that one trial looks at, together
ROLL = 3  # clients of the smallest sum that is formed at all
SUMMED = 50  # numbers in an update
ALIKE = 0.8  # a correlation at which something was recovered
CHANCE = 0.4  # an advantage above what TRIALS show by chance


class AttackResult(NamedTuple):
    """Figures of an attack, with protection and without; none, and the reason, where there is no such promise."""

    found: dict[str, float]  # figures with the run's protection, by name
    control: dict[str, float]  # figures without protection, by name
    is_kept: bool = True  # whether the promise withstood the attack
    is_shown: bool = True  # whether the attack succeeds without protection
    why_not: str = ""  # reason why there is nothing to attack


def not_promised(why: str) -> AttackResult:
    """Return the result where there is nothing to attack."""
    return AttackResult({}, {}, why_not=why)


def failure_oracle(experiment: Experiment, bare: Experiment, key: Key) -> AttackResult:
    """Attack by a reply's form: does it tell whether its client's examples are finite?

    A server could ask so for any example. bare: the experiment without protection.
    """
    if not is_discreet(experiment.resolved):
        return not_promised("the server sees each update, and why one is missing")
    if isinstance(experiment.resolved.strategy, SplitStrategy):
        return not_promised("a model that is cut sends more than one reply")
    clean = experiment.population.examples(0)
    spoilt = clean._replace(x=map_arrays(_spoilt, clean.x))
    if not any(array.dtype.kind == "f" for array in leaves(clean.x)):
        return not_promised("no input is a real number, which could be made to overflow")
    found, control = (float(len(set(_forms_of(one, (clean, spoilt), key))) > 1) for one in (experiment, bare))
    return AttackResult({"advantage": found}, {"advantage": control}, not found, bool(control))


def _spoilt(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, POISON) if array.dtype.kind == "f" else array


def _forms_of(
    experiment: Experiment, holdings: Sequence[Examples], key: Key
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Yield all that can be seen of a real device's reply but its numbers, for each of what it may hold.

    That is the reply's kind, its bytes and its metrics' names.
    """
    from ..clients.round import train_client
    from ..clients.tensorflow.engine import TensorFlowEngine

    engine, recipe = TensorFlowEngine(experiment, is_live=True), experiment.resolved
    params = engine.initial_params
    strategy, transforms = recipe.strategy, recipe.transforms
    rate = recipe.local.learning_rate_at(1, ())
    broadcast = Broadcast(1, params, strategy.broadcast(strategy.init(params)), transforms.init(engine.spec), rate)
    for examples in holdings:
        rows = np.arange(examples.count, dtype=np.int32)
        reply = train_client(engine, broadcast, 0, key, examples, rows).content
        if isinstance(reply, Failure):
            yield reply.reason, 0, ()
        elif recipe.secure_aggregation is not None:
            yield "masked", 0, ()  # as many numbers of the ring, whatever is in them
        else:
            metrics = sorted(reply.metrics) if isinstance(reply, ClientUpdate) else ()
            yield type(reply).__name__, bytes_of(reply), tuple(metrics)


def repeated_rounds(experiment: Experiment, key: Key) -> AttackResult:
    """Attack by asking again: a server says "round 1" again and again, to average the noise of replies away.

    How many noisy replies does it get?
    """
    from ..clients.policy import Policy, Refused
    from ..clients.spending import Spending, SpendingFile

    plan = experiment.resolved.plan
    if plan is None or not plan.clients_release:
        return not_promised("clients promise no ε of their own")
    before, _ = price_of(experiment.resolved.population)
    promised = plan.promised_epsilon + before
    each = max(1, experiment.rounds // CHARGES)
    replies = Spending(each, {event: each * count for event, count in plan.charge({}).items()})
    policy, total = Policy(max_epsilon=promised), Spending()
    most = TIMES * max(CHARGES, experiment.rounds)
    with tempfile.TemporaryDirectory() as home:
        account = SpendingFile.of(Path(home), 0)
        try:
            while total.replies < most:
                account.charge("audit", "audit", replies, lambda spent: policy.check_spending(experiment, spent))
                total = total.plus(replies)
        except Refused:
            pass
    endless = {event: most * count for event, count in plan.charge({}).items()}
    found = plan.spent(total.events) + before if total.replies else 0.0
    control = plan.spent(endless) + before
    return AttackResult(
        {"replies": total.replies, "epsilon": found},
        {"replies": most, "epsilon": control},
        found <= promised,
        control > promised,
    )


def decrypting_clients(experiment: Experiment, key: Key) -> AttackResult:
    """Attack by clients that decrypt a sum: how like their updates is what they see?"""
    recipe = experiment.resolved
    aggregation, plan = recipe.secure_aggregation, recipe.plan
    if aggregation is None or not aggregation.clients_decrypt:
        return not_promised("no client decrypts anything")
    if plan is None or not plan.transform.adds_noise:
        return not_promised("nothing is promised towards clients of what they decrypt together")
    assert plan.fixed_clip_norm is not None
    size, clients = SUMMED, range(ROLL)
    aggregation = dataclasses.replace(aggregation, metrics=())  # type: ignore[type-var]
    updates = [_unit(key.derive("update", client), size) * np.float32(plan.fixed_clip_norm) for client in clients]
    exact = np.asarray(np.sum(updates, axis=0, dtype=np.float64))

    def seen(is_noisy: bool) -> float:
        server, half = aggregation.rehearse(Meeting("audit", 1, ROLL, Shape(size, 0), bytes(32)), clients, True)
        halves = {client: half(client) for client in clients}
        is_first = True
        while messages := server.advance():
            for client, message in messages.items():
                if is_first:
                    update = ClientUpdate(updates[client], NOTHING, 1.0, {})
                    noisy = plan.transform.encode((), update, Key.fresh()) if is_noisy else update
                    halves[client].check(message)
                    halves[client].provide(noisy, Key.fresh())
                reply = halves[client].answer(message)
                if not isinstance(reply, Failure):
                    server.receive(client, reply)
            is_first = False
        return correlation(server.total().delta, np.asarray(exact))

    found, control = seen(True), seen(False)
    return AttackResult({"correlation": found}, {"correlation": control}, found < ALIKE, control >= ALIKE)


def low_bits(experiment: Experiment, size: int, key: Key) -> AttackResult:
    """Attack by the low bits of a noisy vector: do they tell whether it is the one guessed? size: the model's.

    Added in float32, noise that nearly cancels a coordinate gives an exact difference: a sum whose difference from the
    guess is no float32 number is of another vector (Mironov 2012).
    """
    recipe = experiment.resolved
    plan = recipe.plan
    if plan is None or (not plan.transform.adds_noise and recipe.local.per_example is None):
        return not_promised("there is no noise")
    if plan.fixed_clip_norm is None and recipe.local.per_example is None:
        return not_promised("the clip norm adapts, and so does the noise")
    release, scale, clip_norm = _released(plan, recipe.local.per_example, size)
    guess = np.full(size, clip_norm / np.sqrt(size) * (1 - 2.0**-9), np.float32)
    times = -(-COORDINATES // size)

    def is_another(release: Callable[[Vector], np.ndarray], vector: Vector) -> bool:
        for _ in range(times):
            out = release(vector)
            rest = out.astype(np.float64) - guess
            near = np.abs(out) < np.abs(guess) / 2
            if (near & (rest.astype(np.float32) != rest)).any():
                return True
        return False

    def advantage(release: Callable[[Vector], np.ndarray]) -> float:
        said = [sum(is_another(release, vector) for _ in range(TRIALS)) for vector in (np.zeros_like(guess), guess)]
        return abs(said[0] - said[1]) / TRIALS

    found = advantage(release)
    control = advantage(lambda vector: vector + NoiseStream.live().draw(size, scale))
    return AttackResult({"advantage": found}, {"advantage": control}, found < CHANCE, control >= CHANCE)


def _released(plan: Plan, per_example: object, size: int) -> tuple[Callable[[Vector], np.ndarray], float, float]:
    """Return the function that the plan releases a vector by, the scale of its noise, and the vector's clip norm."""
    if per_example is not None:
        from ..clients.tensorflow.per_example import released

        privacy = plan.per_example
        assert privacy is not None
        batch = float(plan.batch_size)  # type: ignore[attr-defined]
        scale = plan.calibrated_noise * privacy.clip_norm / batch

        def step(vector: Vector) -> np.ndarray:
            noise = np.empty_like(vector)
            privacy.noise(Key.fresh(), batch)(noise)
            out: np.ndarray = released(vector, noise, privacy.grid_step(batch)).numpy()
            return out

        return step, scale, privacy.clip_norm / batch
    transform, clip_norm = plan.transform, plan.fixed_clip_norm
    assert clip_norm is not None
    state = transform.init(ModelSpec((VariableSpec("guessed", (size,), "float32", True, 0),)))

    def sent(vector: Vector) -> np.ndarray:
        return transform.encode(state, ClientUpdate(vector, NOTHING, 1.0, {}), Key.fresh()).delta

    def summed(vector: Vector) -> np.ndarray:
        return transform.decode(state, Total(vector.copy(), NOTHING, 1.0, 1, {}), Key.fresh())[1].delta

    return (sent if plan.clients_release else summed), plan.deviation(1), clip_norm


def roll_of_three(experiment: Experiment, key: Key) -> AttackResult:
    """Attack by a small roll: does a client take part in a sum of three, two of whom are the server's?"""
    recipe = experiment.resolved
    aggregation = recipe.secure_aggregation
    if not isinstance(aggregation, SecureSum):
        return not_promised("no client insists on a roll")
    least = least_cohort(recipe.sampler, len(recipe.population))
    if max(least or 0, aggregation.minimum_clients) <= ROLL:
        return not_promised("the experiment's own cohorts may be of three")
    own = dataclasses.replace(aggregation, metrics=())
    found = _victims_update(own, least, key)
    control = _victims_update(dataclasses.replace(own, minimum_clients=ROLL), 0, key)
    return AttackResult({"correlation": found}, {"correlation": control}, found < ALIKE, control >= ALIKE)


def _victims_update(aggregation: RemoteAggregation, least: int | None, key: Key) -> float:
    """Compute how like the victim's update is what a server makes of a roll of three, two of them its own clients.

    It is 0 where the victim refuses. least: what the victim insists on.
    """
    meeting, victim = Meeting("audit", 1, ROLL, Shape(SUMMED, 0), bytes(32)), 0
    limit = np.float32(aggregation.magnitude_limit)
    updates = [_unit(key.derive("roll", client), SUMMED) * limit for client in range(ROLL)]
    with tempfile.TemporaryDirectory() as folder:
        kits = {client: Path(folder) / f"client{client}" for client in range(ROLL)}
        aggregation.provision(Path(folder) / "server", kits)
        lax = dataclasses.replace(aggregation, minimum_clients=ROLL)  # type: ignore[type-var]
        server = lax.server(meeting._replace(least=0), range(ROLL), Path(folder) / "server")
        halves = {
            client: (aggregation if client == victim else lax).client(
                meeting._replace(least=least if client == victim else 0), client, kits[client], kits[client]
            )
            for client in range(ROLL)
        }
        is_first = True
        while messages := server.advance():
            for client, message in messages.items():
                if is_first:
                    if halves[client].check(message) is not None:
                        return 0.0
                    halves[client].provide(ClientUpdate(updates[client], NOTHING, 1.0, {}), Key.fresh())
                reply = halves[client].answer(message)
                if isinstance(reply, Failure):
                    return 0.0
                server.receive(client, reply)
            is_first = False
        return correlation(server.total().delta - updates[1] - updates[2], updates[victim])


def _unit(key: Key, size: int) -> Vector:
    """Draw a random direction: float32, of norm 1."""
    direction = key.generator().standard_normal(size)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Compute Pearson's correlation over all numbers; 0 where one of the arrays is constant."""
    a, b = (array.astype(np.float64).ravel() - array.mean() for array in (one, other))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0
