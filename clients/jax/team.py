"""A team on JAX: one engine, whose blocks keep the device busy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import jax

from ...core.experiment import Experiment
from ..choices import BACKEND, TeamSettings
from .engine import JaxEngine
from .refusals import check_simulation
from .width import block_for

log = logging.getLogger(__name__)
BLOCK = "block"  # key among a run's choices: the number of clients who take their steps in one call


def hire(experiment: Experiment, settings: TeamSettings) -> list[JaxEngine]:
    """Make the engine. Errors: ConfigError and IncompatibleError for what JAX does not carry."""
    check_simulation(settings.replicas, settings.compile, settings.devices)
    engine = JaxEngine(experiment, debug=settings.debug, lanes=settings.workers)
    if engine.is_debugged and not settings.debug:
        log.warning("the model is compiled with run_eagerly=True: clients train uncompiled, one at a time, slowly")
    for note in engine.meter.agreement.notes:
        log.warning("%s: %s", experiment.name, note)
    if jax.default_backend() == "cpu" and engine.has_convolutions:
        log.warning(
            "%s: on a CPU a step of convolutions takes JAX about twice TensorFlow's time; KERAS_BACKEND=tensorflow is "
            "faster there",
            experiment.name,
        )
    return [engine]


def choose(team: Sequence[JaxEngine], choices: Mapping[str, str]) -> dict[str, str]:
    """Choose the width of blocks. choices: as the run that is resumed has them, whose width is kept."""
    (engine,) = team
    if not engine.is_debugged:
        own = block_for(engine.experiment, engine.spec.size)
        engine.use_block(int(choices[BLOCK]) if BLOCK in choices else own)
    log.info("clients take their steps %d at a time, on %d lanes", engine.block, engine.lanes.count)
    return {BACKEND: "jax", BLOCK: str(engine.block)}
