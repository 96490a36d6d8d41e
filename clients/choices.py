"""Choices of how a team computes: what a simulation asks for, and the keys that a run records them under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

COMPILE = "compile"  # key among a run's choices: "xla" or "graph", on TensorFlow
BACKEND = "backend"  # key among a run's choices; without it the run is TensorFlow's


class TeamSettings(NamedTuple):
    """Settings of a simulation that its engines are made by."""

    workers: int | None
    compile: Literal["auto", "xla", "graph"]
    devices: Sequence[str] | None
    debug: bool
    replicas: int
