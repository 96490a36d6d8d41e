"""Directions of metrics, to fall or to rise: known for Keras's own metrics and for losses, asked for otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from ..errors import ConfigError
from ..validation import require

Mode = Literal["min", "max"]
Directions = Mapping[str, Mode | None]  # {name that the model gives a metric: its direction, None if not known}

GROUPS = ("train_", "test_", "validation_")  # prefixes of a model's metrics in a record: what they were measured on
INNER = re.compile(r"^(personal_|cluster_\d+_)")  # next prefix: a client's own model, or a cluster's
PERCENTILE = re.compile(r"_p\d+$")
COMPONENT = re.compile(r"(_\d+)+$")  # suffix of one number of a metric whose value is a vector or a matrix
MODES = ("min", "max")
NO_DIRECTIONS: Directions = {}
# Directions of a record's other numbers. Time and bytes only grow, so that a target is met from below.
OF_ROUNDS: Directions = {
    "staleness": "min",
    "failures": "min",
    **dict.fromkeys(("virtual_seconds", "seconds", "eval_seconds", "bytes_up", "bytes_down", "epsilon"), "max"),
}


class Measures(NamedTuple):
    """Names and directions of the metrics that a model measures."""

    directions: Directions  # direction of every metric that the model is seen to measure
    is_complete: bool  # whether those are all; False: a step of the model's own may measure others


def direction_of(metric: str, directions: Directions) -> Mode | None:
    """Return whether metric, as a round's record names it, is to fall ("min") or to rise ("max"); None: nobody knows.

    A percentile over clients, a component of a vector, and what a client's own model measures go the way of the
    metric that they are of. A name that the model's directions say nothing about is a loss if it ends so, and
    "accuracy" is Keras's: records of runs from before directions were kept have names alone.
    """
    if metric in OF_ROUNDS:
        return OF_ROUNDS[metric]
    names = list(_names(metric))
    known = next((name for name in names if name in directions), None)
    if known is not None and directions[known] is not None:
        return directions[known]
    if any(name == "loss" or name.endswith("_loss") for name in names):
        return "min"
    return "max" if known is None and "accuracy" in names else None


def mode_of(metric: str, directions: Directions, mode: Mode | None, asker: object) -> Mode:
    """Return the way metric is to go: mode where it is given, else the one that is known.

    asker: what needs to know, for the error. Errors: ConfigError where nobody knows.
    """
    direction = mode or direction_of(metric, directions)
    if direction is None:
        raise ConfigError(
            f"{asker} needs to know whether {metric!r} is to fall or to rise, and only of Keras's own metrics and of "
            'losses is that known: say mode="min" or mode="max"'
        )
    return direction


def require_mode(mode: object) -> None:
    """Raise ConfigError for what is neither a mode nor None."""
    require(mode is None or mode in MODES, f"expected mode={mode!r} to be 'min', 'max' or None")


def whole(name: str) -> str:
    """Return the metric that name is a component of; name itself where it is none."""
    return COMPONENT.sub("", name)


def _names(metric: str) -> Iterator[str]:
    """Yield the names that the model may have for a record's metric: the longest first."""
    group = next((group for group in GROUPS if metric.startswith(group)), "")
    name = metric.removeprefix(group)
    for outer in (name, INNER.sub("", name)):
        for middle in (outer, PERCENTILE.sub("", outer)):
            yield middle
            yield whole(middle)
