"""What a server remembers of what its clients lose: for samplers that learn, and to reweight them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.clusters import fold_of
from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.folds import InTheOpen
from ..core.random import Key
from ..core.types import Assignment, Broadcast, Failure, Heard, Knowledge, Reweighed, RoundResult, ServerState, State
from .clock import VirtualClock, payload


def first_feedback(experiment: Experiment) -> State:
    """Nobody was heard; () for a sampler that does not ask. And nobody has more say than by itself."""
    clients = len(experiment.population)
    heard: State = ()
    if getattr(experiment.sampler, "needs_losses", False):
        heard = Heard(np.full(clients, np.nan, np.float32), np.zeros(clients, np.int32))
    if experiment.reweighting is None:
        return heard
    by_size = experiment.weighting == "examples"
    own = experiment.population.sizes().astype(np.float64) if by_size else np.ones(clients)
    return Reweighed(heard, experiment.reweighting.init(own))


def sampled(
    experiment: Experiment,
    state: ServerState,
    broadcast: Broadcast,
    candidates: Sequence[int],
    clock: VirtualClock | None,
    key: Key,
) -> list[int]:
    """The round's cohort, of the candidates."""
    sampler, sizes = experiment.sampler, experiment.population.sizes
    if not hasattr(sampler, "choose"):
        return sampler.sample(candidates, sizes, key)
    seconds = np.zeros(len(experiment.population)) if clock is None else clock.expected(broadcast)
    known = state.feedback if experiment.reweighting is None else state.feedback.heard
    losses, heard = known or (np.zeros(0, np.float32), np.zeros(0, np.int32))
    return sampler.choose(candidates, sizes, key, Knowledge(broadcast.round, losses, heard, seconds))


def updated(experiment: Experiment, state: ServerState, result: RoundResult, round: int) -> State:
    """The feedback after a round. Errors: ConfigError for a runtime that does not say what clients lost."""
    if not state.feedback:
        return state.feedback
    if result.losses is None:
        raise ConfigError("the sampler needs each client's loss, which this runtime does not report; use Simulation")
    if experiment.reweighting is None:
        return _heard(state.feedback, result.losses, round)
    weights = experiment.reweighting.heard(state.feedback.weights, result.losses)
    return Reweighed(_heard(state.feedback.heard, result.losses, round), weights)


def _heard(before: State, reported: Mapping[int, float], round: int) -> State:
    """What was reported beside what was known; () where nobody asks."""
    if not before:
        return before
    losses, heard = before[0].copy(), before[1].copy()
    for client, loss in reported.items():
        losses[client], heard[client] = loss, round
    return Heard(losses, heard)


class Reweighing:
    """A runtime's rounds, with the weight of each update times its client's factor."""

    def __init__(self, experiment: Experiment, runtime: Any, state: ServerState):
        """runtime: an AsynchronousRuntime, which hands over updates one by one."""
        self.experiment, self.runtime, self.weights = experiment, runtime, state.feedback.weights

    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
        """As the runtime's own. Errors: ConfigError for clients that report no loss."""
        experiment = self.experiment
        assert experiment.reweighting is not None
        factors = experiment.reweighting.factors(self.weights, cohort)
        session = InTheOpen(fold_of(experiment), experiment.encoded_shape(broadcast).delta, experiment.codec)
        failures, losses = [], {}
        work = [Assignment(broadcast, client, key) for client in cohort]
        for client, factor, update in zip(cohort, factors, self.runtime.train_each(work), strict=True):
            if isinstance(update, Failure):
                failures.append(update)
                continue
            if "loss" not in update.metrics:
                raise ConfigError(f"{experiment.reweighting!r} needs clients that report a loss; compile one in")
            losses[client] = update.metrics["loss"].mean()
            session.add(client, update._replace(weight=update.weight * float(factor)))
        down = len(cohort) * payload(broadcast)
        return RoundResult(session.total(), failures, session.bytes_up, down, losses)
