"""Single rounds: what a server collects from a cohort, without a run around it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from federations import Nowhere
from umbel.core.experiment import Experiment
from umbel.core.protocols import Memory
from umbel.core.random import Key
from umbel.core.runtime import Runtime
from umbel.core.spec import ModelSpec
from umbel.core.types import Broadcast, RoundResult, ServerState
from umbel.server.rounds import RoundSetup, collected

_tables: weakref.WeakKeyDictionary[Any, RoundSetup] = weakref.WeakKeyDictionary()


def begin(runtime: Runtime, experiment: Experiment, memory: Memory | None = None) -> ModelSpec:
    """Open runtime for rounds of experiment."""
    memory = memory or Nowhere()
    opened = runtime.open(experiment, memory)
    _tables[runtime] = RoundSetup(experiment.resolved, runtime, opened, memory)
    return opened.spec


def collect(runtime: Runtime, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult:
    """Return what the cohort's training comes to."""
    state = ServerState(broadcast.round - 1, broadcast.params, (), broadcast.transforms, {})
    return collected(_tables[runtime], state, broadcast, cohort, key)
