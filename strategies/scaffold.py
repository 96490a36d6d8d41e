"""SCAFFOLD: control variates take out the drift of clients.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning,
Algorithm 1 with option II. https://arxiv.org/abs/1910.06378
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..core.parts.algorithms import Correction, Strategy
from ..core.types import Broadcast, Mean, State, Vector
from .server_rate import Rate, rate_at, require_rate


class Control(NamedTuple):
    """State of SCAFFOLD on the server."""

    rounds: int  # number of rounds done so far
    c: Vector  # the mean of all clients' control variates, shape (d,)


@dataclass(frozen=True)
class Scaffold(Strategy, Correction):
    """Clients step along g_i(y) − c_i + c; c_i estimates client i's own gradient, c the mean of all.

    On the client, after K steps of rate η:  c_i⁺ ← c_i − c + (x − y)/(K·η)
    On the server:  x ← x + η_g·mean(Δy),  c ← c + participation·mean(Δc)

    Everything starts at 0: the first round is FedAvg's. A client keeps c_i, d numbers, and sends 2·d.

    The paper minimises the plain mean of the clients' losses: `weighting="uniform"`. With "examples" both means are
    weighted, participation is the cohort's share of all examples, and the loss is that weighted by n_i/n.

    Option II takes the way a client went for a sum of gradients, so it is for clients with plain SGD; others are
    refused. A client keeps the c_i⁺ it computed: what clips or adds noise to what it sends makes c differ from their
    mean, and so does an update that is lost after the client has sent it.

    Parameters
    ----------
    server_lr
        η_g, a number or a schedule over rounds.
    """

    server_lr: Rate = 1.0

    remembers: ClassVar[bool] = True
    sgd_momentum: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        require_rate("server_lr", self.server_lr)

    def extra_size(self, size: int) -> int:
        """Return the length of Δc_i, as long as delta."""
        return size

    def offset(self, broadcast: Broadcast, memory: Vector | None) -> Vector:
        """Return c − c_i. memory: c_i."""
        return broadcast.extra if memory is None else broadcast.extra - memory

    def finish(
        self, broadcast: Broadcast, memory: Vector | None, delta: Vector, steps: int, learning_rate: float
    ) -> tuple[Vector, Vector, Vector | None]:
        """Return Δy, Δc_i and c_i⁺. Without a step, or at rate 0, there is nothing to learn about c_i: it stays."""
        if not steps * learning_rate:
            return delta, np.zeros_like(delta), memory
        change = delta * np.float32(-1 / (steps * learning_rate))
        change -= broadcast.extra
        return delta, change, change.copy() if memory is None else memory + change

    def init(self, params: Vector) -> State:
        """Begin with c = 0."""
        return Control(0, np.zeros_like(params))

    def broadcast(self, state: State) -> Vector:
        """Return c."""
        return state.c

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take one step along the mean Δy; c follows the clients that took part."""
        rounds = state.rounds + 1
        c = state.c + np.float32(mean.participation) * mean.extra
        return Control(rounds, c), params + rate_at(self.server_lr, rounds) * mean.delta
