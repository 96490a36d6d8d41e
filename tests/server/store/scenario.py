"""A run whose every round is known in advance, and, run as a script, a process that is killed while committing it.

python scenario.py points URL RUN     commits the run's next round over and over, killed (SIGKILL) before its 1st
                                      statement, its 2nd, …, before COMMIT, and at last not at all. Prints a line
                                      per attempt; waits for a line before the next.
python scenario.py upgrade URL RUN    the same, opening a store of an older schema.
python scenario.py on URL RUN         commits round after round; prints each one's number.
"""

import os
import signal
import sys
from itertools import count
from typing import NamedTuple

import numpy as np
from sqlalchemy import Engine, event

from umbel.core.random import derive
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import RoundRecord, ServerState
from umbel.server.store import Store

SIZE = 20_000  # 80 kB: a blob of its own
SPEC = ModelSpec(
    (VariableSpec("dense/kernel", (200, 100), "float32", True, 0), VariableSpec("seed", (2,), "uint32", False, None))
)


class Momentum(NamedTuple):
    """A strategy's state with one of everything."""

    velocity: np.ndarray
    steps: int
    loss: float


def state(round: int) -> ServerState:
    """The state after a round: with NaNs that carry a payload, an infinity, an empty array, booleans, a named tuple."""
    generator = derive(0, "state", round).generator()
    params = generator.standard_normal(SIZE).astype(np.float32)
    params[:2] = np.array([0x7FC01234, 0xFF800000], np.uint32).view(np.float32)
    velocity = generator.standard_normal((SIZE, 2))[:, 0]  # not contiguous
    strategy = {"momentum": 0.1 + round, "mask": velocity > 0, "none": (None, "é", np.zeros(0, np.float32))}
    return ServerState(round, params, (Momentum(velocity, round, float("nan")), strategy), (), {"gaussian": round})


def record(round: int) -> RoundRecord:
    """The round's record: some measured, some not, one diverged."""
    metrics = {"train_loss": 1 / (round + 2), "test_loss": float("nan"), "validation_loss": float("-inf")}
    return RoundRecord(round, 10, round % 3, metrics, 0.1 * round, None, 10**12 + round, None, 0.3 * round)


def memory(round: int) -> dict[int, list[np.ndarray]]:
    """What the round's cohort remembers: some clients for the first time, some again."""
    return {client: [np.full(50, round, np.float32), np.array(client)] for client in range(round, round + 5)}


def remembered(round: int, client: int) -> int | None:
    """The round whose memory the client has after `round` rounds."""
    last = min(client, round)
    return last if last >= 1 and client - last < 5 else None


def begin(store: Store, name: str = "scenario", rounds: int = 50) -> str:
    """A run at round 0."""
    return store.create_run(name, {"strategy": "FedAvg()"}, rounds, 2**70, {"compile": "xla"}, SPEC, state(0))


def commit(store: Store, run: str, round: int, **options: object) -> None:
    """Commit a round of the scenario."""
    store.commit_round(run, state(round), record(round), memory(round), **options)


def bits(tree: object) -> object:
    """The tree with every array and float as its bytes, so that == compares bits."""
    if isinstance(tree, (np.ndarray, np.generic)):
        return (tree.dtype.str, tree.shape, tree.tobytes())
    if isinstance(tree, float):
        return np.float64(tree).tobytes()
    if isinstance(tree, dict):
        return {name: bits(part) for name, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        return [type(tree).__name__, *(bits(part) for part in tree)]
    return tree


def _die_at(point: int) -> None:
    """Kill this process before its point-th statement from now, COMMIT counted among them."""
    left = count(1)

    def step(*_: object) -> None:
        if next(left) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", step)
    event.listen(Engine, "commit", step)


def _attempt(what: str, url: str, run: str, point: int) -> None:
    if what == "upgrade":
        _die_at(point)
        Store.open(url).close()
        return
    store = Store.open(url)
    following = store.load_run(run).server_state.round + 1
    if what == "points":
        _die_at(point)
        commit(store, run, following)
        return
    print(os.getpid(), flush=True)
    for round in count(following):
        commit(store, run, round)
        print(round, flush=True)


def _main(what: str, url: str, run: str) -> None:
    if what == "upgrade":
        import alembic.command  # once, not in every child  # noqa: F401
    for point in count(1):
        child = os.fork()
        if not child:
            _attempt(what, url, run, point)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print("killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}", flush=True)
        if not os.WIFSIGNALED(status) or not sys.stdin.readline():
            return


if __name__ == "__main__":
    _main(*sys.argv[1:])
