"""A team on JAX: one engine, whose blocks keep the device busy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import keras

from ...core.experiment import Experiment
from ..choices import BACKEND, TeamSettings
from .engine import JaxEngine
from .refusals import check_simulation
from .width import width_for

log = logging.getLogger(__name__)
CONVOLUTIONS = (
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.ConvLSTM2D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)
BLOCK = "block"  # key among a run's choices: the number of clients who take their steps in one call


def hire(experiment: Experiment, settings: TeamSettings) -> list[JaxEngine]:
    """Make the engine. Errors: ConfigError and IncompatibleError for what JAX does not carry."""
    check_simulation(settings.replicas, settings.compile, settings.devices)
    engine = JaxEngine(experiment, debug=settings.debug)
    if engine.is_debugged and not settings.debug:
        log.warning("the model is compiled with run_eagerly=True: clients train uncompiled, one at a time, slowly")
    for note in engine.meter.agreement.notes:
        log.warning("%s: %s", experiment.name, note)
    if jax.default_backend() == "cpu" and has_convolutions(engine.model):
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
        engine.width = int(choices[BLOCK]) if BLOCK in choices else width_for(engine.experiment, engine.spec.size)
    log.info("clients take their steps %d at a time", engine.width)
    return {BACKEND: "jax", BLOCK: str(engine.width)}


def has_convolutions(model: Any) -> bool:
    """Return whether a model has a layer of convolutions."""
    return any(isinstance(layer, CONVOLUTIONS) for layer in model._flatten_layers(include_self=False))
