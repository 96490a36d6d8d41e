"""A team of TensorFlow engines: one for each worker, over a model for each device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.experiment import Experiment
from ...core.validation import require
from ..choices import COMPILE, TeamSettings
from .choice import choose as choose_xla
from .compat import clear_kernels
from .devices import configure_tensorflow, default_workers, pick_devices, shared_out
from .engine import TensorFlowEngine
from .prototype import Prototype

log = logging.getLogger(__name__)
COMPILE_REASON = "compile.reason"


def hire(experiment: Experiment, settings: TeamSettings) -> list[TensorFlowEngine]:
    """Make new engines, and the models that they stand on."""
    configure_tensorflow()
    clear_kernels()  # those of models that are gone: 35 KB for each variable that there ever was
    devices = pick_devices(settings.devices)
    groups = shared_out(devices, settings.replicas)
    usual = default_workers(devices) if settings.replicas == 1 else len(groups)
    count = 1 if settings.debug else settings.workers or usual
    prototypes: dict[tuple[str, ...], Prototype] = {}  # a model for each device, or for each worker with several
    team: list[TensorFlowEngine] = []
    while len(team) < count:
        own = groups[len(team) % len(groups)]
        if own not in prototypes or settings.replicas > 1:
            replicas = own if settings.replicas > 1 else ()
            # The first finds how metrics travel, the others take it over.
            agreement = team[0].meter.agreement if team else None
            base = team[0].base if team else None
            prototypes[own] = Prototype(
                experiment.resolved, own[0], settings.debug, replicas, agreement=agreement, base=base
            )
        team.append(TensorFlowEngine(experiment, own[0], prototype=prototypes[own]))
        if prototypes[own].is_eager and not settings.debug:
            log.warning("the model is compiled with run_eagerly=True: clients train eagerly, one at a time, slowly")
            count = 1
    for note in team[0].prototype.notes:
        log.warning("%s: %s", experiment.name, note)
    return team


def choose(team: Sequence[TensorFlowEngine], settings: TeamSettings, choices: Mapping[str, str]) -> dict[str, str]:
    """Choose how clients' training is compiled. choices: as the run that is resumed has them."""
    compiled, reason = choices.get(COMPILE), choices.get(COMPILE_REASON)
    mode: Any = compiled or settings.compile
    require(settings.replicas == 1 or mode != "xla", "a run that was compiled with XLA goes on with replicas=1 only")
    choice = choose_xla(team[0], mode)
    if compiled is not None and reason is not None:
        choice = choice._replace(reason=reason)
    log.info("clients are compiled %s: %s", "with XLA" if choice.xla else "as a graph", choice.reason)
    for engine in team:
        engine.use_xla(choice.xla)
    return {COMPILE: "xla" if choice.xla else "graph", COMPILE_REASON: choice.reason}
