"""A server's memory of its clients' losses: for samplers that learn, and to reweight clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.bases import LearningSampler
from ..core.errors import ConfigError
from ..core.random import Key
from ..core.reading.adapted import plain_of
from ..core.recipe import Recipe
from ..core.types import (
    Broadcast,
    ClientUpdate,
    Failure,
    Heard,
    Knowledge,
    Reweighed,
    RoundResult,
    ServerState,
    State,
    loss_of,
)
from .clock import VirtualClock
from .collect import CountsAs
from .returned import checked_cohort


def first_feedback(experiment: Recipe) -> State:
    """Return the feedback that a run begins with: nobody was heard; () for a sampler that does not ask.

    Where clients are reweighted, nobody has more say yet than by itself.
    """
    clients = len(experiment.population)
    heard: State = ()
    if experiment.needs_losses:
        heard = Heard(np.full(clients, np.nan, np.float32), np.zeros(clients, np.int32))
    if experiment.reweighting is None:
        return heard
    by_size = experiment.weighting == "examples"
    own = experiment.population.sizes().astype(np.float64) if by_size else np.ones(clients)
    return Reweighed(heard, experiment.reweighting.init(own))


def sampled(
    experiment: Recipe,
    state: ServerState,
    broadcast: Broadcast,
    candidates: Sequence[int],
    clock: VirtualClock | None,
    key: Key,
) -> list[int]:
    """Choose the round's cohort among the candidates."""
    sampler, sizes = experiment.sampler, experiment.population.sizes
    if not isinstance(sampler, LearningSampler):
        return checked_cohort(plain_of(sampler), sampler.sample(candidates, sizes, key), candidates)
    seconds = np.zeros(len(experiment.population)) if clock is None else clock.expected(broadcast)
    known = state.feedback if experiment.reweighting is None else state.feedback.heard
    losses, heard = known or (np.zeros(0, np.float32), np.zeros(0, np.int32))
    knowledge = Knowledge(broadcast.round, losses, heard, seconds)
    return checked_cohort(plain_of(sampler), sampler.choose(candidates, sizes, key, knowledge), candidates)


def updated(experiment: Recipe, state: ServerState, result: RoundResult, round: int) -> State:
    """Return the feedback after a round."""
    if not state.feedback:
        return state.feedback
    if experiment.reweighting is None:
        return _heard(state.feedback, result.losses, round)
    weights = experiment.reweighting.heard(state.feedback.weights, result.losses)
    return Reweighed(_heard(state.feedback.heard, result.losses, round), weights)


def _heard(before: State, reported: Mapping[int, float], round: int) -> State:
    """Return what is known once these losses were reported; () where nobody asks."""
    if not before:
        return before
    losses, heard = before[0].copy(), before[1].copy()
    for client, loss in reported.items():
        losses[client], heard[client] = loss, round
    return Heard(losses, heard)


def reweighted(experiment: Recipe, state: ServerState, cohort: Sequence[int]) -> CountsAs | None:
    """Return a function that multiplies the weight of each update of the cohort by its client's factor.

    None where the experiment has no reweighting. Errors, of the function: ConfigError for clients that report no loss.
    """
    reweighting = experiment.reweighting
    if reweighting is None:
        return None
    factors = dict(zip(cohort, reweighting.factors(state.feedback.weights, cohort), strict=True))

    def counts_as(client: int, update: ClientUpdate | Failure) -> ClientUpdate | Failure:
        if isinstance(update, Failure):
            return update
        if loss_of(update.metrics) is None:
            raise ConfigError(f"{reweighting!r} needs clients that report a loss; compile one in")
        return update._replace(weight=update.weight * float(factors[client]))

    return counts_as
