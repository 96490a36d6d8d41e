"""Likeness of a cluster's nodes: the same software, which is asked for, and the same bits, which are told."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import NamedTuple

from ...core.errors import ConfigError

log = logging.getLogger(__name__)

PACKAGES = ("umbel", "keras", "tensorflow", "numpy")
NICE = 5  # above which other processes of a machine take most of its time
HARDWARE = "ray.hardware"  # choice of a run: whether all nodes compute the same bits
SAME, MIXED = "same", "mixed"


class Greeting(NamedTuple):
    """Facts about a process of the cluster, before it is trusted with an experiment."""

    versions: Mapping[str, str]
    process: int
    niceness: int


def versions() -> dict[str, str]:
    """Return the versions that all nodes have to have in common, of this process."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def check_alike(greeting: Greeting, node: str) -> None:
    """Raise ConfigError for a node on which other versions are installed."""
    own = versions()
    others = [name for name, here in own.items() if greeting.versions.get(name) != here]
    if others:
        there = ", ".join(f"{name} {greeting.versions.get(name, 'not at all')}" for name in others)
        here = ", ".join(f"{name} {own[name]}" for name in others)
        raise ConfigError(f"node {node} has {there}, and this process {here}: install the same on every node")


def warn_of_niceness(greeting: Greeting, node: str, own: int) -> None:
    """Warn of processes that everything else on their machine comes before."""
    if greeting.niceness - own > NICE:
        log.warning(
            "on node %s Ray's processes are %d nicer than this one, and give way to all others: start Ray there with "
            "RAY_worker_niceness=0",
            node,
            greeting.niceness - own,
        )


def check_hardware(now: str, choices: Mapping[str, str] | None) -> str:
    """Return what a run says of its nodes' hardware. choices: of the run that is resumed, if one is.

    Errors: ConfigError for a run whose bits were those of any one machine, on nodes that differ.
    """
    if choices is None:
        return now
    before = choices.get(HARDWARE, SAME)
    if now == MIXED and before == SAME:
        raise ConfigError(
            "the run was begun on nodes that compute the same bits, and those of this cluster do not: resume it on "
            "machines of one kind, or start a new run"
        )
    return before
