"""Umbel: federated learning for Keras.

from umbel import Experiment, FedAvg, FixedCohort, Local, Simulation, run

experiment = Experiment(name=…, model=build_model, population=…, strategy=FedAvg(), sampler=FixedCohort(10))
history = run(experiment, Simulation())
"""

from importlib.metadata import version as _version

from . import data
from .core.chain import Chain
from .core.errors import ClientError, ConfigError, IncompatibleError, RunStopped, StoreError, UmbelError
from .core.examples import Examples
from .core.experiment import Experiment, Local
from .core.overrides import override
from .core.random import derive
from .privacy import Clip
from .runtimes.simulation import Simulation
from .server import (
    AllClients,
    Constant,
    Cosine,
    EarlyStopping,
    ExponentialDecay,
    FixedCohort,
    History,
    KeepBest,
    PoissonCohort,
    ReduceOnPlateau,
    StepDecay,
    StopAt,
    WarmUp,
    WeightedCohort,
    cross_validate,
    run,
)
from .strategies import FedAvg

__version__ = _version("umbel")

__all__ = [
    "AllClients",
    "Chain",
    "ClientError",
    "Clip",
    "ConfigError",
    "Constant",
    "Cosine",
    "EarlyStopping",
    "Examples",
    "Experiment",
    "ExponentialDecay",
    "FedAvg",
    "FixedCohort",
    "History",
    "IncompatibleError",
    "KeepBest",
    "Local",
    "PoissonCohort",
    "ReduceOnPlateau",
    "RunStopped",
    "Simulation",
    "StepDecay",
    "StopAt",
    "StoreError",
    "UmbelError",
    "WarmUp",
    "WeightedCohort",
    "cross_validate",
    "data",
    "derive",
    "override",
    "run",
]
