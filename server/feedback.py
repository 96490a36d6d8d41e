"""What a server remembers of its clients for samplers that learn, and what it tells them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.random import Key
from ..core.types import Broadcast, Heard, Knowledge, RoundResult, ServerState, State
from .clock import VirtualClock


def first_feedback(experiment: Experiment) -> State:
    """Nobody was heard; () for a sampler that does not ask."""
    if not getattr(experiment.sampler, "needs_losses", False):
        return ()
    clients = len(experiment.population)
    return Heard(np.full(clients, np.nan, np.float32), np.zeros(clients, np.int32))


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
    losses, heard = state.feedback or (np.zeros(0, np.float32), np.zeros(0, np.int32))
    return sampler.choose(candidates, sizes, key, Knowledge(broadcast.round, losses, heard, seconds))


def updated(state: ServerState, result: RoundResult, round: int) -> State:
    """The feedback after a round. Errors: ConfigError for a runtime that does not say what clients lost."""
    if not state.feedback:
        return state.feedback
    if result.losses is None:
        raise ConfigError("the sampler needs each client's loss, which this runtime does not report; use Simulation")
    losses, heard = state.feedback[0].copy(), state.feedback[1].copy()
    for client, loss in result.losses.items():
        losses[client], heard[client] = loss, round
    return Heard(losses, heard)
