"""What excludes a model that is cut in two, the first half with clients, the second with the server."""

from __future__ import annotations

from typing import Any

from .chain import Chain
from .errors import IncompatibleError
from .protocols import Strategy


def is_split(strategy: Strategy) -> bool:
    """Whether strategy is a SplitStrategy."""
    return hasattr(strategy, "handed_on")


def check_split(experiment: Any) -> None:
    """Errors: IncompatibleError for what reckons with clients that hold a whole model, and send but once a round."""
    strategy = experiment.strategy
    if not is_split(strategy):
        return
    for name, part in (("plan", experiment.plan), ("local.per_example", experiment.local.per_example)):
        if part is not None:
            raise IncompatibleError(
                f"{strategy!r} sends activations and labels in every step, which {name}={part!r} does not cover"
            )
    if experiment.aggregation is not None:
        raise IncompatibleError(
            f"{strategy!r} shows the server each client's activations and labels; {experiment.aggregation!r} would "
            "hide nothing but the updates"
        )
    transforms = None if experiment.transforms == Chain() else experiment.transforms
    for name, part in (("transforms", transforms), ("codec", experiment.codec), ("rule", experiment.rule)):
        if part is not None:
            raise IncompatibleError(f"{name}={part!r} is for whole models; clients of {strategy!r} hold a half")
    if experiment.devices is not None:
        raise IncompatibleError(
            f"{experiment.devices!r} reckons with one broadcast and one update; {strategy!r} sends in every step"
        )
