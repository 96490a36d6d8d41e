"""Algorithms whose server does what another's does: with a client half alone, or with a mean of their own making."""

from __future__ import annotations

from ..core.errors import IncompatibleError
from ..core.parts.algorithms import (
    AsynchronousStrategy,
    ClientRule,
    ClusteredStrategy,
    SplitStrategy,
    Strategy,
)
from ..core.reading.adapted import adapted, rule_of
from ..core.types import Mean, State, Vector
from ..core.validation import require_methods

MORE_THAN_A_SERVER = (AsynchronousStrategy, SplitStrategy, ClusteredStrategy)


class ClientHalf(Strategy, ClientRule):
    """An algorithm of the clients, whose server is a field: any strategy that is a server's half and no more."""

    server: Strategy

    def init(self, params: Vector) -> State:
        """Return the server's state."""
        return self.server.init(params)

    def broadcast(self, state: State) -> Vector:
        """Return what the server sends."""
        return adapted(self.server, Strategy).broadcast(state)

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take the server's step."""
        return self.server.update(state, params, mean)


def require_server_half(owner: object, server: Strategy) -> None:
    """Raise unless server is a strategy without a client's half, whose rounds are like all others."""
    require_methods("server", server, ("init", "update"), "FedAvg()")
    known = adapted(server, *MORE_THAN_A_SERVER, Strategy)
    if rule_of(known) is not None or isinstance(known, MORE_THAN_A_SERVER):
        name = type(owner).__name__
        raise IncompatibleError(f"server={server!r} is more than a server's half; {name} would drop the rest")
