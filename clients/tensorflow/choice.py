"""Choice of how a team of workers compiles its clients' training: what was asked for, as far as the model allows it."""

from __future__ import annotations

import logging
from typing import Literal

from .engine import TensorFlowEngine
from .xla import Choice, has_open_lengths, refusal, slow_on_cpu, too_short

log = logging.getLogger(__name__)


def choose(engine: TensorFlowEngine, mode: Literal["auto", "xla", "graph"]) -> Choice:
    """Choose XLA or a graph for all workers of a team, of which engine is any.

    The same experiment gives the same answer in every process with the same kind of device. What XLA cannot compile
    runs as a graph, whatever was asked for.
    """
    if engine.prototype.is_eager:
        return Choice(False, "clients train eagerly")
    if engine.prototype.is_mirrored:
        return Choice(False, "replicas are compiled as a graph")
    if mode == "graph":
        return Choice(False, "asked for")
    experiment = engine.experiment
    if mode == "auto" and (reason := too_short(experiment)) is not None:
        return Choice(False, reason)
    graph = engine.prototype.training_graph(experiment)
    reason = refusal(graph, engine.device) or engine.prototype.lowering_error(experiment)
    if reason is not None:
        if mode == "xla":
            log.warning("clients are compiled as a graph, not with XLA: %s", reason)
        return Choice(False, reason)
    if mode == "xla":
        return Choice(True, "asked for")
    if has_open_lengths(experiment, getattr(engine.model, "inputs", None)):
        return Choice(False, "clients may hold examples of different lengths, and XLA compiles for each")
    if engine.device.startswith("CPU") and (reason := slow_on_cpu(graph)) is not None:
        return Choice(False, reason)
    return Choice(True, "the run is long, and XLA is fast at all of the model's operations")
