"""Contexts of the runs that a node works for: their configuration, and what is kept of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from flwr.app import Context, RecordDict

from ..compat import get_fused_config_from_fab, run_from_proto
from .fleet import FleetApi

KEPT_RUNS = 16  # most runs, and most series of them, that are remembered


class Contexts:
    """Contexts by run. What one keeps is handed on within a series of runs. place: the node's own configuration."""

    def __init__(self, fleet: FleetApi, node: int, place: Mapping[str, int]):
        self._fleet, self._node, self._place = fleet, node, dict[str, Any](place)
        self._contexts: OrderedDict[int, Context] = OrderedDict()
        self._states: OrderedDict[int, RecordDict] = OrderedDict()  # by series

    def of(self, run: int) -> Context:
        """Return the run's context. Errors: those of FleetApi."""
        if run not in self._contexts:
            about = self._fleet.run(self._node, run)
            archive = self._fleet.archive(self._node, run, about.fab_hash)
            state = self._states.setdefault(about.series_id, RecordDict())
            # Of the archive, which holds code, nothing but the configuration is read.
            known = run_from_proto(about)
            config = get_fused_config_from_fab(archive, known)
            self._contexts[run] = Context(run, self._node, self._place, state, config, known.series_id)
        context = self._contexts[run]
        self._contexts.move_to_end(run)
        self._states[context.series_id] = context.state
        self._states.move_to_end(context.series_id)
        for kept in (self._contexts, self._states):
            while len(kept) > KEPT_RUNS:
                kept.popitem(last=False)
        return context
