"""Umbel: federated learning for Keras.

from umbel import Experiment, FedAvg, FixedCohort, Local, Simulation, run

experiment = Experiment(name=…, model=build_model, population=…, strategy=FedAvg(), sampler=FixedCohort(10))
history = run(experiment, Simulation())
"""

from importlib.metadata import version as _version

from . import data, privacy, strategies
from .core.errors import ClientError, ConfigError, IncompatibleError, RunStopped, StoreError, UmbelError
from .core.examples import Examples
from .core.experiment import Experiment
from .core.parts.chain import Chain
from .core.parts.devices import Around, Deadline, Devices, Diurnal, Traces
from .core.parts.epochs import Epochs
from .core.parts.local import Local
from .core.parts.phases import FineTune
from .core.parts.selection import InTime, Oort, PowerOfChoice
from .core.random import derive
from .core.reading.defaults import use as _use_defaults
from .core.reading.overrides import override
from .core.system.quiet import import_quietly as _import_quietly
from .data import FeatureStatistics, Standardised
from .deploy.federated import Flower
from .privacy import AdaptiveClip, Clip, ClipPerLayer, Homomorphic, PerExample, PerExamplePlan, PrivacyPlan, SecureSum
from .runtimes.ray.runtime import Ray
from .runtimes.simulation import Simulation
from .server import (
    AllClients,
    Constant,
    Cosine,
    EachClient,
    EarlyStopping,
    ExponentialDecay,
    FixedCohort,
    History,
    KeepBest,
    PoissonCohort,
    Progress,
    ReduceOnPlateau,
    StepDecay,
    StopAt,
    WarmUp,
    WeightedCohort,
    run,
)
from .strategies import (
    IFCA,
    Agnostic,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedProx,
    FedRep,
    FedYogi,
    PooledVariance,
    Proximal,
    Quantised,
    RandomK,
    Scaffold,
    SemiSynchronous,
    Sign,
    SplitFed,
    TopK,
)
from .studies import compare, cross_validate
from .studies.clustering import Clustering, cluster_clients
from .studies.export import register as _register_exports
from .studies.report import register as _register_reports
from .studies.statistics import federated_statistics
from .studies.sweep import Sweep, sweep

__version__ = _version("umbel")
_import_quietly()
_use_defaults(strategy=FedAvg, runtime=Simulation)
_register_exports()
_register_reports()

__all__ = [
    "IFCA",
    "AdaptiveClip",
    "Agnostic",
    "AllClients",
    "Around",
    "Chain",
    "ClientError",
    "Clip",
    "ClipPerLayer",
    "Clustering",
    "ConfigError",
    "Constant",
    "Cosine",
    "Deadline",
    "Devices",
    "Ditto",
    "Diurnal",
    "EachClient",
    "EarlyStopping",
    "Epochs",
    "Examples",
    "Experiment",
    "ExponentialDecay",
    "FeatureStatistics",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedRep",
    "FedYogi",
    "FineTune",
    "FixedCohort",
    "Flower",
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
    "PooledVariance",
    "PowerOfChoice",
    "PrivacyPlan",
    "Progress",
    "Proximal",
    "Quantised",
    "RandomK",
    "Ray",
    "ReduceOnPlateau",
    "RunStopped",
    "Scaffold",
    "SecureSum",
    "SemiSynchronous",
    "Sign",
    "Simulation",
    "SplitFed",
    "Standardised",
    "StepDecay",
    "StopAt",
    "StoreError",
    "Sweep",
    "TopK",
    "Traces",
    "UmbelError",
    "WarmUp",
    "WeightedCohort",
    "cluster_clients",
    "compare",
    "cross_validate",
    "data",
    "derive",
    "federated_statistics",
    "override",
    "privacy",
    "run",
    "strategies",
    "sweep",
]
