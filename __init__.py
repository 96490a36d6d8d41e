"""Umbel: federated learning for Keras.

from umbel import Experiment, FedAvg, FixedCohort, Local, Simulation, run

experiment = Experiment(name=…, model=build_model, population=…, strategy=FedAvg(), sampler=FixedCohort(10))
history = run(experiment, Simulation())
"""

from importlib.metadata import version as _version

from . import data, privacy, strategies
from .core.chain import Chain
from .core.devices import Around, Deadline, Devices, Diurnal, Traces
from .core.errors import ClientError, ConfigError, IncompatibleError, RunStopped, StoreError, UmbelError
from .core.examples import Examples
from .core.experiment import Experiment, Local
from .core.overrides import override
from .core.random import derive
from .core.selection import InTime, Oort, PowerOfChoice
from .keyring import register as _register_keys
from .privacy import AdaptiveClip, Clip, ClipPerLayer, Homomorphic, PerExample, PerExamplePlan, PrivacyPlan, SecureSum
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
    compare,
    cross_validate,
    run,
)
from .strategies import (
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedProx,
    FedYogi,
    Proximal,
    Quantised,
    RandomK,
    Scaffold,
    SemiSynchronous,
    Sign,
    TopK,
)

__version__ = _version("umbel")
_register_keys()

__all__ = [
    "AdaptiveClip",
    "AllClients",
    "Around",
    "Chain",
    "ClientError",
    "Clip",
    "ClipPerLayer",
    "ConfigError",
    "Constant",
    "Cosine",
    "Deadline",
    "Devices",
    "Diurnal",
    "EarlyStopping",
    "Examples",
    "Experiment",
    "ExponentialDecay",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedYogi",
    "FixedCohort",
    "History",
    "Homomorphic",
    "InTime",
    "IncompatibleError",
    "KeepBest",
    "Local",
    "Oort",
    "PerExample",
    "PerExamplePlan",
    "PoissonCohort",
    "PowerOfChoice",
    "PrivacyPlan",
    "Proximal",
    "Quantised",
    "RandomK",
    "ReduceOnPlateau",
    "RunStopped",
    "Scaffold",
    "SecureSum",
    "SemiSynchronous",
    "Sign",
    "Simulation",
    "StepDecay",
    "StopAt",
    "StoreError",
    "TopK",
    "Traces",
    "UmbelError",
    "WarmUp",
    "WeightedCohort",
    "compare",
    "cross_validate",
    "data",
    "derive",
    "override",
    "privacy",
    "run",
    "strategies",
]
