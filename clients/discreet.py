"""Clients that answer alike whatever their examples are; see `core.discretion`.

What went wrong is in the client's own log, which stays on its host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ..core.errors import ConfigError, StoreError
from ..core.examples import Examples, map_arrays
from ..core.parts.private import Plan
from ..core.recipe import Recipe, extra_size
from ..core.types import Broadcast, ClientUpdate, Failure
from .engine import Asking
from .policy import Refused

log = logging.getLogger(__name__)  # the client's own log: nothing in it is sent

T = TypeVar("T")
Trained = tuple[T, list[np.ndarray]]


def trained_or_nothing(
    broadcast: Broadcast,
    client: int,
    memory: list[np.ndarray],
    train: Asking[Trained],
    abstain: Callable[[], T],
    is_debugged: bool = False,
) -> Asking[Trained]:
    """Return train's result; where it fails for the sake of the examples, abstain's, and the client's memory as it was.

    Errors: ConfigError for an experiment that fits nobody's examples; everything else where is_debugged.
    """
    try:
        update, kept = yield from train
        if not isinstance(update, Failure):
            return update, kept
        why = update.detail
    except ConfigError:
        raise
    except Exception as error:
        if is_debugged:
            raise
        why = f"{type(error).__name__}: {error}"
    tell_of_nothing(broadcast, client, why)
    return abstain(), memory


def tell_of_nothing(broadcast: Broadcast, client: int, why: str) -> None:
    """Say in the client's own log that, and why, it adds nothing to a round's sum."""
    log.warning("round %d: client %d adds nothing to the sum: %s", broadcast.round, client, why)


def held_back(client: int, work: Callable[[], T]) -> T | Failure:
    """Return work's result; what it raises on a client's examples goes to its own log, and leaves as a bare code.

    Errors: Refused, StoreError, which say what the client agrees to and whether its disk works.
    """
    try:
        return work()
    except (Refused, StoreError):
        raise
    except Exception:
        log.exception("client %d could not do its work", client)
        return Failure(client, "client_error", "the client's own log says why")


def zero_update(experiment: Recipe, broadcast: Broadcast) -> ClientUpdate:
    """Return the update of a client that adds nothing, before the transforms add their noise.

    It weighs 1 under a plan, whose noise or public divisor hides it, and 0 in a sum that is hidden without one.
    """
    size = len(broadcast.params)
    extra = np.zeros(extra_size(experiment.rule, size), np.float32)
    is_covered = experiment.plan is not None or experiment.local.per_example is not None
    return ClientUpdate(np.zeros(size, np.float32), extra, float(is_covered), {})


def check_client(plan: Plan | None, examples: int) -> None:
    """Raise Refused where a client holds other than what the plan's price reckons with."""
    if plan is None:
        return
    try:
        plan.check_client(examples)
    except ConfigError as error:
        raise Refused(str(error)) from error


def blank(sample: Examples) -> Examples:
    """Return one example of sample's shapes and types, all of whose numbers are 0."""
    one = sample.take(slice(0, 1))
    return Examples(*(map_arrays(lambda array: np.zeros(array.shape, array.dtype), part) for part in one))
